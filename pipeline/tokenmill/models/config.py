"""Read a model's config: context length, number of parameters, sizes of its outputs."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.tasks.task import Runner

# Kinds of rotary scaling for which vLLM multiplies the context length by the factor.
_SCALING_KINDS = ("linear", "dynamic")
# The names of the context length in the config.json of common architectures.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)


def count_parameters(folder: Path) -> int:
    """Count the numbers in a model's safetensors files, from their headers; 0 without such files.

    A file begins with the length of its header, eight bytes little-endian, and the header as JSON.
    In a quantized model, one number may hold several weights.
    """
    total = 0
    for path in _weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


def _weight_files(folder: Path) -> list[Path]:
    """The files in the index, if there is one: some folders hold the same weights in two forms."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [folder / name for name in sorted(names)]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json, with `embedding_size` and `num_labels` derived as vLLM does.

    Raises `UserError` if the folder has no readable config.json.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model.source: {folder} has no readable config.json") from error
    text = config.get("text_config") or config
    labels = config.get("id2label")
    derived = {
        "embedding_size": _dense_size(folder) or text.get("hidden_size") or text.get("n_embd"),
        # The default of transformers is two labels.
        "num_labels": 2 if labels is None else len(labels),
    }
    return derived | config


def vocab_size(config: Mapping[str, Any]) -> int | None:
    """The number of token ids of a model, from its config; None if the config does not say it."""
    text = config.get("text_config") or config
    size = text.get("vocab_size")
    return size if isinstance(size, int) else None


def _dense_size(folder: Path) -> int | None:
    """The output size of sentence-transformers' last dense layer, if the model has one."""
    file = folder / "modules.json"
    modules = json.loads(file.read_text()) if file.is_file() else []
    dense = [module["path"] for module in modules if module["type"].endswith(".Dense")]
    if not dense:
        return None
    return int(json.loads((folder / dense[-1] / "config.json").read_text())["out_features"])


def _context_factor(config: Mapping[str, Any]) -> float:
    """The factor of rotary scaling that is not included in the config's context length."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    # For the other kinds, and in Gemma 3, the context length includes the factor.
    if kind not in _SCALING_KINDS or str(config.get("model_type")).startswith("gemma3"):
        return 1.0
    return float(rope.get("factor") or 1.0)


def max_model_len(
    model: ModelSource, runner: Runner, key: str, folder: Path, config: Mapping[str, Any]
) -> int:
    """The context length in tokens, as vLLM determines it: the job's, or else the model's.

    `key` is the job key of the model. Raises `UserError` if neither is known.
    """
    configured = model.engine.get("max_model_len")
    if isinstance(configured, int) and configured > 0:
        return configured
    for file in sorted(folder.glob("sentence_*_config.json")):
        length = json.loads(file.read_text()).get("max_seq_length")
        if isinstance(length, int):
            return length
    for section in (config.get("text_config", {}), config):
        for name in _CONTEXT_KEYS:
            if isinstance(section.get(name), int):
                length = int(section[name] * _context_factor(section))
                return min(length, _tokenizer_limit(runner, folder, config))
    raise UserError(
        f"{key}.engine.max_model_len: the config of {model.source} has no context length; set it"
    )


def _tokenizer_limit(runner: Runner, folder: Path, config: Mapping[str, Any]) -> int:
    """The tokenizer's limit: RoBERTa has 514 positions for 512 tokens, and only it says so."""
    file = folder / "tokenizer_config.json"
    absolute = config.get("position_embedding_type") == "absolute"
    if runner == "generate" or not absolute or not file.is_file():
        return 2**31
    return int(json.loads(file.read_text()).get("model_max_length", 2**31))
