"""Every command that reads an input or an output, over values that Python or Arrow handle badly."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.factories import strings_of_bytes
from helpers.inprocess import invoke, job_over
from tokenmill.errors import ExitCode

TEXTS = ["one", "", "three"]
#: A column next to the texts, or the texts themselves; row 1 is always rejected.
ODD: dict[str, dict[str, pa.Array]] = {
    "views": {
        "text": pa.array(TEXTS, pa.string_view()),
        "value": pa.array([b"a", None, b"b"], pa.binary_view()),
    },
    "bytes": {
        "text": pa.array([b"caf\xc3\xa9", b"caf\xe9", b"x"]),
        "value": pa.array([{"a": b"caf\xc3\xa9"}, {"a": b"\xff"}, None]),
    },
    "not UTF-8": {
        "text": strings_of_bytes([b"one", b"caf\xe9", b"three"]),
        "value": pa.array(["a", None, "b"]),
    },
    "not UTF-8, kept": {"text": pa.array(TEXTS), "value": strings_of_bytes([b"\xff", b"a", b""])},
    "far dates": {
        "text": pa.array(TEXTS),
        "value": pa.array([2**31 - 1, -719163, None], pa.date32()),
    },
    "far timestamps": {
        "text": pa.array(TEXTS),
        "value": pa.array([2**62, 253402300800000000, None], pa.timestamp("us", "+05:30")),
    },
    "UUIDs": {
        "text": pa.array(TEXTS),
        "value": pa.array([bytes(16), None, bytes(range(16))], pa.uuid()),
    },
    "JSON": {"text": pa.array(TEXTS), "value": pa.array(['{"a": 1}', None, "[]"], pa.json_())},
}

WHERE = "value IS NULL OR value IS NOT NULL"


@pytest.mark.parametrize("name", ODD)
def test_every_command_reads_odd_values(name: str, tmp_path: Path) -> None:
    """None of them ends in an error, and the export as JSON lines has each row."""
    corpus, output = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    pq.write_table(pa.table(ODD[name]), corpus / "a.parquet")
    job_file = write_job(
        tmp_path, keep=["text", "value"], where="value IS NULL OR value IS NOT NULL"
    )
    for command in ("validate", "plan", "preview", "run"):
        done(command, job_file)
    done("init", "--input", corpus, "--output", tmp_path / "init.yaml")
    done("rejects", output, "--export", tmp_path / "rejects.jsonl")
    done("report", output)
    done("compare", output, output)
    for target in ("parquet", "hf-dataset", "delta", "iceberg", "openai-batch", "jsonl"):
        done("export", output, tmp_path / f"rows.{target}", "--to", target)
    done("retry", output)
    done("verify", "--deep", output)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["source_row"] for row in rows] == [0, 1, 2]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert all(isinstance(row["value"], str | dict | None) for row in rows)


def test_bytes_that_are_text_are_shown_as_text(tmp_path: Path) -> None:
    """By `preview`, and chosen by `init`."""
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table(ODD["bytes"]).slice(0, 1), tmp_path / "corpus" / "a.parquet")
    job_file = write_job(tmp_path, keep=["value"])
    (row,) = json.loads(done("preview", job_file, "--json"))
    assert row["read"] == {"text": "café", "value": {"a": "café"}}
    assert "café" in done("preview", job_file)
    done("init", "--input", tmp_path / "corpus", "--output", tmp_path / "init.yaml")
    assert "{{ text }}" in (tmp_path / "init.yaml").read_text()


def write_job(folder: Path, **inputs: Any) -> Path:
    """A job over the folder's corpus with these keys of `input`."""
    job = job_over(folder / "corpus", folder / "out")
    job["input"] |= inputs
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def done(*arguments: str | Path) -> str:
    """What a command printed that must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == ExitCode.FINISHED, (arguments, result.stderr, result.exception)
    return result.stdout
