"""What a model's config.json says: context length, parameters."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.tasks.task import Runner

# Kinds of rotary scaling by whose factor vLLM multiplies the context.
_STRETCHING = ("linear", "dynamic")
# What the usual architectures call their context in config.json.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)


def count_parameters(folder: Path) -> int:
    """The numbers in a model folder's safetensors files, by their headers; 0 where it has none.

    A file begins with its header's length, eight bytes little-endian, and the header as JSON. Of a
    quantized model several weights are one number.
    """
    total = 0
    for path in _weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


def _weight_files(folder: Path) -> list[Path]:
    """Those of the index, if there is one: some folders hold the same weights in two forms."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [folder / name for name in sorted(names)]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json; `embedding_size` and `num_labels` as vLLM finds them."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model.source: {folder} has no readable config.json") from error
    text = config.get("text_config") or config
    labels = config.get("id2label")
    derived = {
        "embedding_size": _dense_size(folder) or text.get("hidden_size") or text.get("n_embd"),
        # What transformers takes where a config says nothing.
        "num_labels": 2 if labels is None else len(labels),
    }
    return derived | config


def _dense_size(folder: Path) -> int | None:
    """What sentence-transformers' last dense layer makes of the model's vectors, if it has one."""
    file = folder / "modules.json"
    modules = json.loads(file.read_text()) if file.is_file() else []
    dense = [module["path"] for module in modules if module["type"].endswith(".Dense")]
    if not dense:
        return None
    return int(json.loads((folder / dense[-1] / "config.json").read_text())["out_features"])


def _stretch(config: Mapping[str, Any]) -> float:
    """By how much rotary positions are stretched where the context is given without that."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    # Of the other kinds, and in Gemma 3, the context is given stretched.
    if kind not in _STRETCHING or str(config.get("model_type")).startswith("gemma3"):
        return 1.0
    return float(rope.get("factor") or 1.0)


def max_model_len(
    model: ModelSource, runner: Runner, place: str, folder: Path, config: Mapping[str, Any]
) -> int:
    """The context in tokens as vLLM finds it: what the job sets, or what the model was made for."""
    wanted = model.engine.get("max_model_len")
    if isinstance(wanted, int) and wanted > 0:
        return wanted
    for file in sorted(folder.glob("sentence_*_config.json")):
        length = json.loads(file.read_text()).get("max_seq_length")
        if isinstance(length, int):
            return length
    for section in (config.get("text_config", {}), config):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                length = int(section[key] * _stretch(section))
                return min(length, _tokenizer_limit(runner, folder, config))
    raise UserError(
        f"{place}.engine.max_model_len: {model.source} does not say how long its context is; set it"
    )


def _tokenizer_limit(runner: Runner, folder: Path, config: Mapping[str, Any]) -> int:
    """RoBERTa's 514 positions are 512 tokens, which only its tokenizer says."""
    file = folder / "tokenizer_config.json"
    absolute = config.get("position_embedding_type") == "absolute"
    if runner == "generate" or not absolute or not file.is_file():
        return 2**31
    return int(json.loads(file.read_text()).get("model_max_length", 2**31))
