"""The shipped translation job on the demo corpus, with Ray and vLLM."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from helpers.command import ROOT, output_rows
from helpers.fork_server import tokenmill
from tokenmill.errors import ExitCode

pytestmark = [pytest.mark.integration, pytest.mark.shipped]

# Documents with several paragraphs, templates and control tokens, with one paragraph, and empty.
DOCUMENTS = ("nasty-jinja", "nasty-tokens", "release-007", "nasty-empty")
# Segments have at most half as many tokens, so paragraphs are split into sentences.
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The output of a run over some documents, and the documents' texts."""
    folder = tmp_path_factory.mktemp("translate")
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, folder / "corpus"], check=True, capture_output=True)
    done = tokenmill(
        *("run", ROOT / "jobs" / "translate.yaml", "--input", folder / "corpus"),
        *("--output", folder / "out", "--set", f"input.where=doc_id IN {DOCUMENTS}"),
        *("--set", f"sampling.max_tokens={MAX_TOKENS}", "--set", "max_rejects=1"),
        *("--set", "max_reject_rate=1"),
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    texts = ds.dataset(folder / "corpus").to_table(columns=["doc_id", "text"]).to_pylist()
    return folder / "out", {row["doc_id"]: row["text"] for row in texts}


def answered(output: Path) -> list[dict[str, Any]]:
    return [row for row in output_rows(output) if row["error"] is None]


def paragraph_gaps(text: str) -> list[str]:
    """The whitespace between the paragraphs of a text."""
    return re.findall(r"\s*\n\s*\n\s*", text)


def test_a_translation_keeps_the_paragraphs(run: tuple[Path, dict[str, str]]) -> None:
    """Even if the model is poor, the whitespace between the paragraphs is the same."""
    output, texts = run
    rows = answered(output)
    assert {row["doc_id"] for row in rows} == set(DOCUMENTS) - {"nasty-empty"}
    for row in rows:
        assert row["translation"] != texts[row["doc_id"]]
        assert paragraph_gaps(row["translation"]) == paragraph_gaps(texts[row["doc_id"]])


def test_the_check_columns_agree_with_the_translation(run: tuple[Path, dict[str, str]]) -> None:
    """A row passes if and only if no check failed, and a row that failed was tried twice."""
    for row in answered(run[0]):
        assert row["checks_passed"] == (row["failed_checks"] == [])
        assert row["attempts"] == 2 or row["checks_passed"]
        assert row["translation_origin"] == "model"
        assert row["detected_language"] is not None
        assert row["placeholders_kept"] == ("placeholders" not in row["failed_checks"])
        if row["placeholders_kept"] and row["doc_id"] == "nasty-jinja":
            assert "{{ ''.__class__.__mro__ }}" in row["translation"]


def test_the_output_columns_have_their_types(run: tuple[Path, dict[str, str]]) -> None:
    """The checks are booleans and numbers, and `failed_checks` is a list of names."""
    schema = ds.dataset(run[0] / "data", format="parquet").schema
    assert schema.field("checks_passed").type == pa.bool_()
    assert schema.field("length_ratio").type == pa.float64()
    assert schema.field("failed_checks").type == pa.list_(pa.string())
