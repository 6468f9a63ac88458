"""Make small models with random weights, of kinds for which no wheel exists.

Run as a script, `tiny_models.py FOLDER SMOLLM2 MINILM` makes FOLDER/reward, a reward model with the
chat tokenizer of SmolLM2, and FOLDER/rerank, a cross-encoder with the tokenizer of MiniLM. Their
attention heads are 32 wide, the least for which vLLM has a CPU kernel.
"""

import sys
from pathlib import Path


def main(folder: Path, smollm2: Path, minilm: Path) -> None:
    """Make both models in `folder`."""
    import torch  # noqa: PLC0415 - only the script pays for the import
    import transformers as hf  # noqa: PLC0415

    torch.manual_seed(0)
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 1,
        # Larger than usual, so that the outputs differ from text to text.
        "initializer_range": 0.3,
    }
    tokenizer = hf.AutoTokenizer.from_pretrained(smollm2)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=2,
        **size,
    )
    hf.LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    config = hf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **size)
    hf.BertForSequenceClassification(config).save_pretrained(folder / "rerank")
    tokenizer.save_pretrained(folder / "rerank")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
