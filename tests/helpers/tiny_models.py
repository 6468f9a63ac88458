"""Makes small models with random weights, for tests of kinds of which none comes as a wheel.

Run as a script, `tiny_models.py FOLDER SMOLLM2 MINILM`: FOLDER/reward, a reward model
with the chat tokenizer of the one, and FOLDER/rerank, a cross-encoder with the tokenizer of the
other. Heads are 32 wide: vLLM's attention on a CPU has no kernel for fewer.
"""

import sys
from pathlib import Path


def main(folder: Path, smollm2: Path, minilm: Path) -> None:
    """Make both."""
    import torch  # noqa: PLC0415 - not for who imports this file
    import transformers as hf  # noqa: PLC0415

    torch.manual_seed(0)
    size = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 1,
        # Larger than usual, so that the numbers differ from text to text.
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
