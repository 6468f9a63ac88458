"""Compare images and audio through tiny random-weight models in vLLM with transformers."""

import io
import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import tiny_media_models
from helpers.command import output_rows
from helpers.fork_server import run_script, tokenmill
from PIL import Image
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import fetch_model
from tokenmill.tasks.multimodal.transcribe import audio_windows

pytestmark = pytest.mark.integration

QUESTION = "What is it?"
ENGINE = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}
SAMPLING = {"temperature": 0, "max_tokens": tiny_media_models.MAX_TOKENS}


@dataclass(frozen=True)
class Tiny:
    """The models' folder, an image and an audio file, and the output of transformers for them."""

    folder: Path
    image: bytes
    audio: bytes
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("models")
    draw = np.random.default_rng(0)
    # The size that the model reads, so that scaling is not part of the comparison.
    side = tiny_media_models.SEEN_PIXELS
    picture = io.BytesIO()
    pixels = draw.integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    (folder / "image.png").write_bytes(picture.getvalue())
    samples = (draw.standard_normal(16_000 * 40) * 3000).astype(np.int16)
    np.savez(folder / "audio.npz", *audio_windows(samples))
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    printed = run_script(
        Path(tiny_media_models.__file__),
        folder,
        fetch_model(ModelSource(source="bundled:smollm2-135m")),
        folder / "image.png",
        QUESTION,
        folder / "audio.npz",
    )
    return Tiny(folder, picture.getvalue(), sound.getvalue(), json.loads(printed.splitlines()[-1]))


def run(folder: Path, rows: pa.Table, **keys: Any) -> list[dict[str, Any]]:
    """The output rows of a job over these rows, rejects included."""
    pq.write_table(rows, folder / "in.parquet")
    job = {
        "name": "job",
        "input": {"path": str(folder / "in.parquet"), "keep": ["id"]},
        "sampling": SAMPLING,
        "output": {"path": str(folder / "out")},
        "max_reject_rate": 1,
        **keys,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    done = tokenmill("run", folder / "job.yaml")
    assert done.returncode == 0, done.stderr
    return sorted(output_rows(folder / "out"), key=lambda row: row["id"])


def classes(rows: list[dict[str, Any]]) -> list[str | None]:
    return [None if row["error"] is None else row["error"]["class"] for row in rows]


def test_descriptions_match_transformers(tiny: Tiny, tmp_path: Path) -> None:
    """Bytes and a path are answered; bad, missing and too long inputs are rejected.

    The image's tokens count as input.
    """
    (tmp_path / "a.png").write_bytes(tiny.image)
    values = [
        {"bytes": tiny.image, "path": None},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": "../a.png"},
        {"bytes": b"broken", "path": None},
        None,
        {"bytes": tiny.image, "path": None},
    ]
    # The last question alone fits into the context, but not with the tokens of its image.
    questions = [QUESTION] * 5 + [QUESTION * 122]
    rows = pa.table({"id": range(6), "image": values, "question": questions})
    answered = run(
        tmp_path,
        rows,
        model={"source": str(tiny.folder / "seeing"), "engine": ENGINE},
        prompt={"user": "{{ question }}"},
        task={"kind": "describe", "image": "image"},
    )
    assert classes(answered) == [
        None,
        None,
        "bad_media",
        "bad_media",
        "empty_input",
        "prompt_too_long",
    ]
    for row in answered[:2]:
        assert row["description"] == tiny.expected["seen"]
        assert row["finish_reason"] == "length"
        assert row["num_input_tokens"] == tiny.expected["num_tokens"]


def test_transcripts_match_transformers(tiny: Tiny, tmp_path: Path) -> None:
    """40 s are read in two windows whose texts are joined; missing files and nulls are rejected."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.wav").write_bytes(tiny.audio)
    values = ["deep/a.wav", "deep/none.wav", None, str(tmp_path / "deep" / "a.wav")]
    rows = pa.table({"id": range(4), "audio": values})
    answered = run(
        tmp_path,
        rows,
        model={"source": str(tiny.folder / "hearing"), "engine": ENGINE},
        task={"kind": "transcribe", "audio": "audio", "language": tiny_media_models.LANGUAGE},
    )
    assert classes(answered) == [None, "bad_media", "empty_input", None]
    for row in (answered[0], answered[3]):
        assert row["transcript"] == " ".join(text.strip() for text in tiny.expected["heard"])
        assert row["audio_seconds"] == 40
        # The four tokens that start each of the two windows.
        assert row["num_input_tokens"] == 8
