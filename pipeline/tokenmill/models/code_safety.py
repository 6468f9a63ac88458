"""What of a model may run code on this machine: nothing, unless the job says so, and then loudly.

A model is data: safetensors, JSON, and a chat template that runs in a sandbox. Two things are more:
Python files beside it (`trust_remote_code`), and pickled weights, which are a program to unpack.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
# The values of vLLM's `load_format` that read pickled weights, and nothing else.
_PICKLED_FORMATS = ("pt", "npcache")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def trusts_code(model: ModelSource) -> bool:
    """Whether the job lets the model's own Python files run."""
    return bool(model.engine.get("trust_remote_code"))


def warnings(models: Mapping[str, ModelSource]) -> Iterator[str]:
    """A line for each thing that a job, whose models stand at these places, takes on trust."""
    for place, model in models.items():
        if model.is_fake:
            continue
        if trusts_code(model):
            yield (
                f"WARNING: {place}.engine.trust_remote_code: Python files of {model.source} run "
                "here, with your rights"
            )
        if model.engine.get("load_format") in _PICKLED_FORMATS:
            yield (
                f"WARNING: {place}.engine.load_format: pickled weights of {model.source} are "
                "unpacked here, which can run code"
            )
        if model.is_hub_id and not _COMMIT.fullmatch(model.revision or ""):
            yield (
                f"WARNING: {place}.revision: {model.source} is not pinned, and may be another "
                "model tomorrow; set the commit's 40 digits"
            )


def check_not_pickled(folder: Path, model: ModelSource) -> None:
    """Raise `UserError` for a folder of pickled weights alone, unless the job asks for them."""
    if "load_format" in model.engine or next(folder.glob("**/*.safetensors"), None):
        return
    pickled = next((found for name in _PICKLED for found in folder.glob(name)), None)
    if pickled is not None:
        raise UserError(
            f"model.source: {model.source} has no *.safetensors, only pickled weights "
            f"({pickled.name}), which can run code; convert it, or set engine.load_format: pt if "
            "you trust it"
        )
