"""Make a small vision and a small speech model with random weights, and print their answers.

Run as a script, `python tests/helpers/tiny_media_models.py FOLDER SMOLLM2 IMAGE QUESTION AUDIO`
makes FOLDER/seeing, an Idefics3 with the tokenizer of SmolLM2, and FOLDER/hearing, a Whisper whose
tokens are bytes. The last line of its output is JSON with the greedy answers of transformers: to
the question about the image file, and for each window (int16 at 16 kHz) in the audio file, an .npz.
"""

import json
import sys
from pathlib import Path
from typing import Any

MAX_TOKENS = 12
LANGUAGE = "fr"
SEEN_PIXELS = 64
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Larger than usual, so that answers differ from each other.
RANGE = 0.3
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": RANGE,
}


def make_seeing(folder: Path, smollm2: Path) -> Any:
    """An Idefics3: neither its processor nor vLLM's model needs torchvision."""
    import transformers as hf  # noqa: PLC0415
    from transformers.models.idefics3.image_processing_pil_idefics3 import (  # noqa: PLC0415
        Idefics3ImageProcessorPil,
    )

    tokenizer = hf.AutoTokenizer.from_pretrained(smollm2)
    image_tokens = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": image_tokens})
    tokenizer.chat_template = TEMPLATE
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = {
        **SIZE,
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = hf.Idefics3Config(
        vision_config={**SIZE, "image_size": SEEN_PIXELS, "patch_size": 16},
        text_config=text,
        image_token_id=image,
        scale_factor=2,
        pad_token_id=2,
    )
    model = hf.Idefics3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    side = {"longest_edge": SEEN_PIXELS}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    processor = hf.Idefics3Processor(
        images, tokenizer=tokenizer, image_seq_len=4, chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Older models on the hub have it in this file.
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return model.eval(), processor


def make_hearing(folder: Path) -> Any:
    """A Whisper whose vocabulary is the bytes and its control tokens."""
    import transformers as hf  # noqa: PLC0415
    from tokenizers.pre_tokenizers import ByteLevel  # noqa: PLC0415

    vocabulary = {byte: index for index, byte in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = hf.WhisperTokenizer(vocab={**vocabulary, "<|endoftext|>": 256}, merges=[])
    marks = ["startoftranscript", "en", LANGUAGE, "transcribe", "notimestamps"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_target_positions=64,
        init_std=RANGE,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=256,
        decoder_start_token_id=257,
        begin_suppress_tokens=None,
    )
    model = hf.WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor = hf.WhisperProcessor(hf.WhisperFeatureExtractor(feature_size=80), tokenizer)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), processor


def greedy(model: Any, tokenizer: Any, ids: list[int], **inputs: Any) -> str:
    """Decode greedily with the model's forward pass, independent of the settings of `generate`."""
    import torch  # noqa: PLC0415

    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    new: list[int] = []
    while len(new) < MAX_TOKENS and tokenizer.eos_token_id not in new:
        with torch.no_grad():
            logits = model(**{name: torch.tensor([[*ids, *new]])}, **inputs).logits
        new.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(new, skip_special_tokens=True))


def main(folder: Path, smollm2: Path, image: Path, question: str, audio: Path) -> None:
    """Make both models, and print their answers."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    torch.manual_seed(0)
    model, processor = make_seeing(folder / "seeing", smollm2)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=text, images=[Image.open(image)], return_tensors="pt")
    ids = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    seen = greedy(model, processor.tokenizer, ids, **inputs)
    num_tokens = len(ids)
    model, processor = make_hearing(folder / "hearing")
    marks = ["startoftranscript", LANGUAGE, "transcribe", "notimestamps"]
    ids = processor.tokenizer.convert_tokens_to_ids([f"<|{mark}|>" for mark in marks])
    heard = []
    for window in np.load(audio).values():
        features = processor.feature_extractor(
            window.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt"
        )
        heard.append(
            greedy(model, processor.tokenizer, ids, input_features=features.input_features)
        )
    print(json.dumps({"seen": seen, "num_tokens": num_tokens, "heard": heard}))


if __name__ == "__main__":
    folder, smollm2, image, question, audio = sys.argv[1:]
    main(Path(folder), Path(smollm2), Path(image), question, Path(audio))
