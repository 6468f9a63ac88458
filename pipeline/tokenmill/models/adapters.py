"""LoRA adapters: fetch them, and derive the engine arguments that they need.

An adapter is a folder in the format of Hugging Face's peft: `adapter_config.json` and
`adapter_model.safetensors`. It is fetched from the same kinds of sources as a model.
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
# The ranks that vLLM supports (`MaxLoRARanks`).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Default number of adapters in a batch on a GPU: each slot takes memory whether it is used or not.
_MAX_SLOTS = 8


def fetch_adapters(sources: Mapping[str, str]) -> dict[str, Path]:
    """Fetch adapters; their folders on this machine by name. Raises `UserError` or `RunFailed`."""
    return {name: _fetch(f"model.adapters.{name}", source) for name, source in sources.items()}


def check_adapters(sources: Mapping[str, str]) -> None:
    """Raise `UserError` for a local folder without an adapter. Nothing is fetched."""
    for name, source in sources.items():
        if not _is_fetched(source):
            _check_files(f"model.adapters.{name}", Path(source).expanduser(), source)


def _is_fetched(source: str) -> bool:
    is_path = source.startswith(("/", "./", "../", "~"))
    is_hub_id = source.count("/") == 1 and not is_path and not Path(source).is_dir()
    return is_remote(source) or is_hub_id


def _fetch(key: str, source: str) -> Path:
    if is_remote(source):
        folder = fetch_s3(source, key, marker=_CONFIG)
    elif _is_fetched(source):
        folder = fetch_hub(source, key=key)
    else:
        folder = Path(source).expanduser().resolve()
    return _check_files(key, folder, source)


def _check_files(key: str, folder: Path, source: str) -> Path:
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{key}: {source} is not a LoRA adapter (it has no {name}); use a folder in peft's "
                "format, a hub id (owner/name) or s3://"
            )
    return folder


def adapter_arguments(
    adapters: Mapping[str, Path], arguments: Mapping[str, Any], *, on_cpu: bool
) -> dict[str, Any]:
    """The engine arguments that the adapters need, overridden by the job's. Raises `UserError`."""
    if not adapters:
        return dict(arguments)
    rank = max(_rank(name, folder) for name, folder in adapters.items())
    default_slots = len(adapters) + 1 if on_cpu else min(len(adapters), _MAX_SLOTS)
    slots = arguments.get("max_loras", default_slots)
    if on_cpu and slots < default_slots:
        # On a CPU, vLLM 0.32 computes rows without an adapter with the adapter in the last slot
        # (`lora/ops/torch_ops/lora_ops.py`: index -1), so that slot must remain empty.
        raise UserError(
            f"model.engine.max_loras: with {len(adapters)} adapters on a CPU it must be at least "
            f"{default_slots}: one slot remains empty for rows without an adapter; leave it out"
        )
    return {
        "enable_lora": True,
        "max_loras": default_slots,
        "max_lora_rank": next((supported for supported in _RANKS if supported >= rank), rank),
        "max_cpu_loras": max(slots, len(adapters)),
        **arguments,
    }


def _rank(name: str, folder: Path) -> int:
    """The largest rank in the adapter's configuration."""
    try:
        config = json.loads((folder / _CONFIG).read_text())
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        return max(int(rank) for rank in ranks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model.adapters.{name}: {_CONFIG} has no valid rank (r): {error!r}"
        ) from error
