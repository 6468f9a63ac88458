"""Documents longer than the context are truncated or chunked, with Ray and vLLM."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from helpers.command import ROOT, input_positions, output_rows, positions
from helpers.fork_server import tokenmill
from tokenmill.errors import ExitCode

pytestmark = [pytest.mark.integration, pytest.mark.shipped]

# A few rows, including the long document.
SMALL = (
    *("--set", "model.engine={max_model_len: 1024, max_num_seqs: 8}"),
    *("--set", "input.where=section = 'account'"),
)
TRUNCATE = "length={policy: truncate, column: text, keep: middle, marker: ' … '}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus as Parquet shards."""
    folder = tmp_path_factory.mktemp("corpus")
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, folder], check=True, capture_output=True)
    return folder


def answered(corpus: Path, output: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The output rows by `doc_id`, after a run over the rows of the section `account`."""
    done = tokenmill("run", *arguments, "--input", corpus, "--output", output, *SMALL)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    rows = output_rows(output)
    sections = ds.dataset(corpus).to_table(columns=["section"]).column(0).to_pylist()
    inputs = zip(input_positions(corpus), sections, strict=True)
    assert positions(rows) == [position for position, section in inputs if section == "account"]
    return {row["doc_id"]: row for row in rows}


def test_a_document_longer_than_the_context_is_truncated(corpus: Path, tmp_path: Path) -> None:
    """Its prompt fills the context except for the answer; the other rows are unchanged."""
    job = str(ROOT / "jobs" / "summarize.yaml")
    set_ = ("--set", TRUNCATE, "--set", "sampling.max_tokens=12")
    rows = answered(corpus, tmp_path / "out", job, *set_)
    long = rows.pop("nasty-long")
    assert long["error"] is None and long["generated_text"]
    assert 1024 - 12 - 5 <= long["num_input_tokens"] <= 1024 - 12
    assert long["truncated_tokens"] > 5_000 and long["num_chunks"] == 1
    assert {row["truncated_tokens"] for row in rows.values() if row["error"] is None} == {0}


def test_a_long_document_is_summarized_from_its_chunks(corpus: Path, tmp_path: Path) -> None:
    """Each chunk is answered once, and a second prompt over their answers gives the result."""
    job = str(ROOT / "jobs" / "digest.yaml")
    set_ = ("--set", "length.max_tokens=900", "--set", "sampling.max_tokens=12")
    rows = answered(corpus, tmp_path / "out", job, *set_)
    long = rows.pop("nasty-long")
    assert long["error"] is None and long["generated_text"]
    assert 7 <= long["num_chunks"] <= 10 and long["truncated_tokens"] == 0
    # The tokens of the text, of its overlaps, and of the prompts of the chunks and the join.
    assert 6_500 <= long["num_input_tokens"] <= 10_000
    assert long["num_generated_tokens"] > 12 * (long["num_chunks"] - 1)
    assert {row["num_chunks"] for row in rows.values() if row["error"] is None} == {1}
    assert dict(long["cleaned"]) == {"nfc": 0, "control": 0, "whitespace": 0}
