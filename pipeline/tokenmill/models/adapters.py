"""LoRA adapters: where they come from, and what an engine needs to know to hold them.

An adapter is a folder in the form of Hugging Face's peft: `adapter_config.json` and
`adapter_model.safetensors`. It comes from where models come from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.errors import UserError
from tokenmill.models.fetch import fetch_hub, fetch_s3
from tokenmill.storage.open import is_remote

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# vLLM's own choices (`MaxLoRARanks`).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# In a GPU's batch at a time, by default: each place costs memory whether it is used or not.
_MOST_IN_BATCH = 8


def fetch_adapters(sources: Mapping[str, str]) -> dict[str, Path]:
    """The adapters' folders on this machine, by name. Raises `UserError` or `RunFailed`."""
    return {name: _fetch(f"model.adapters.{name}", source) for name, source in sources.items()}


def check_adapters(sources: Mapping[str, str]) -> None:
    """Raise `UserError` for local folders that hold no adapter, without fetching anything."""
    for name, source in sources.items():
        if not _is_fetched(source):
            _checked(f"model.adapters.{name}", Path(source).expanduser(), source)


def _is_fetched(source: str) -> bool:
    is_path = source.startswith(("/", "./", "../", "~"))
    is_hub_id = source.count("/") == 1 and not is_path and not Path(source).is_dir()
    return is_remote(source) or is_hub_id


def _fetch(place: str, source: str) -> Path:
    if is_remote(source):
        folder = fetch_s3(source, place, marker=_CONFIG)
    elif _is_fetched(source):
        folder = fetch_hub(source, place=place)
    else:
        folder = Path(source).expanduser().resolve()
    return _checked(place, folder, source)


def _checked(place: str, folder: Path, source: str) -> Path:
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{place}: {source} is no LoRA adapter (it has no {name}); give a folder in "
                "peft's form, a hub id (owner/name) or s3://"
            )
    return folder


def adapter_arguments(
    adapters: Mapping[str, Path], arguments: Mapping[str, Any], *, on_cpu: bool
) -> dict[str, Any]:
    """The job's engine arguments, and before them what its adapters need. Raises `UserError`."""
    if not adapters:
        return dict(arguments)
    rank = max(_rank(name, folder) for name, folder in adapters.items())
    places = len(adapters) + 1 if on_cpu else min(len(adapters), _MOST_IN_BATCH)
    wanted = arguments.get("max_loras", places)
    if on_cpu and wanted < places:
        # On the CPU vLLM 0.32 computes rows without an adapter with the last place's
        # (`lora/ops/torch_ops/lora_ops.py`: index -1), so that place must stay empty.
        raise UserError(
            f"model.engine.max_loras: with {len(adapters)} adapters on a CPU it must be at least "
            f"{places}: one place stays empty for the rows without an adapter; leave it out"
        )
    return {
        "enable_lora": True,
        "max_loras": places,
        "max_lora_rank": next((known for known in _RANKS if known >= rank), rank),
        "max_cpu_loras": max(wanted, len(adapters)),
        **arguments,
    }


def _rank(name: str, folder: Path) -> int:
    """The largest of the adapter's ranks, as its own configuration tells."""
    try:
        config = json.loads((folder / _CONFIG).read_text())
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        return max(int(rank) for rank in ranks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model.adapters.{name}: {_CONFIG} does not tell its rank (r): {error!r}"
        ) from error
