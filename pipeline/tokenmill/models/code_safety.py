"""Keep models from running code on this machine, unless the job allows it explicitly.

A model is data: safetensors, JSON, and a chat template that runs in a sandbox. Two things can run
code: Python files in its folder (`trust_remote_code`), and pickled weights when they are loaded.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
# The values of vLLM's `load_format` that read only pickled weights.
_PICKLED_FORMATS = ("pt", "npcache")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def trusts_code(model: ModelSource) -> bool:
    """Whether the job allows the model's own Python files to run."""
    return bool(model.engine.get("trust_remote_code"))


def trust_warnings(models: Mapping[str, ModelSource]) -> Iterator[str]:
    """A line for each thing that the job takes on trust, given its models by their keys."""
    for key, model in models.items():
        if trusts_code(model):
            yield (
                f"WARNING: {key}.engine.trust_remote_code: Python files of {model.source} run on "
                "this machine with your rights"
            )
        if model.engine.get("load_format") in _PICKLED_FORMATS:
            yield (
                f"WARNING: {key}.engine.load_format: loading the pickled weights of {model.source} "
                "can run code on this machine"
            )
        if model.is_hub_id and not _COMMIT.fullmatch(model.revision or ""):
            yield (
                f"WARNING: {key}.revision: {model.source} is not pinned; the Hub may serve "
                "different weights later; pin a commit hash (40 digits)"
            )


def check_not_pickled(folder: Path, model: ModelSource) -> None:
    """Raise `UserError` for a folder with only pickled weights, unless the job asks for them."""
    if "load_format" in model.engine or next(folder.glob("**/*.safetensors"), None):
        return
    pickled = next((path for pattern in _PICKLED for path in folder.glob(pattern)), None)
    if pickled is not None:
        raise UserError(
            f"model.source: {model.source} has no *.safetensors, only pickled weights "
            f"({pickled.name}), which can run code; convert it, or set engine.load_format: pt if "
            "you trust it"
        )
