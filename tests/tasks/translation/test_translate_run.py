"""The shipped translation job with real Ray and real vLLM on the demo corpus."""

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

# Several paragraphs, templates and a chat model's own tokens; one paragraph; nothing.
DOCUMENTS = ("nasty-jinja", "nasty-tokens", "release-007", "nasty-empty")
# Pieces of half of it: paragraphs are cut into sentences, too.
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The output of some documents' translation, and their texts."""
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


def gaps(text: str) -> list[str]:
    """What stands between a text's paragraphs."""
    return re.findall(r"\s*\n\s*\n\s*", text)


def test_paragraphs_stand_in_a_real_translation(run: tuple[Path, dict[str, str]]) -> None:
    """However poor a small model's French is: as many paragraphs, and the same gaps between."""
    output, texts = run
    rows = answered(output)
    assert {row["doc_id"] for row in rows} == set(DOCUMENTS) - {"nasty-empty"}
    for row in rows:
        assert row["translation"] != texts[row["doc_id"]]
        gaps = [
            re.findall(r"\s*\n\s*\n\s*", text)
            for text in (row["translation"], texts[row["doc_id"]])
        ]
        assert gaps[0] == gaps[1]


def test_a_real_translations_checks_agree_with_it(run: tuple[Path, dict[str, str]]) -> None:
    """A row passes exactly where no check failed; only failures were tried twice."""
    for row in answered(run[0]):
        assert row["checks_passed"] == (row["failed_checks"] == [])
        assert row["attempts"] == 2 or row["checks_passed"]
        assert row["translation_origin"] == "model"
        assert row["detected_language"] is not None
        assert row["placeholders_kept"] == ("placeholders" not in row["failed_checks"])
        if row["placeholders_kept"] and row["doc_id"] == "nasty-jinja":
            assert "{{ ''.__class__.__mro__ }}" in row["translation"]


def test_a_translations_columns_have_their_types(run: tuple[Path, dict[str, str]]) -> None:
    """Numbers are numbers, and the names of failed checks are a list."""
    schema = ds.dataset(run[0] / "data", format="parquet").schema
    assert schema.field("checks_passed").type == pa.bool_()
    assert schema.field("length_ratio").type == pa.float64()
    assert schema.field("failed_checks").type == pa.list_(pa.string())
