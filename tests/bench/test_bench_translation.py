"""The bench of translations: its scores, its rows and its report."""

import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT
from tokenmill.job.job import Job

BENCH = runpy.run_path(str(ROOT / "bench" / "translation.py"))
REFERENCES = ["Le colis est parti lundi matin.", "La facture est payée depuis hier."]


def test_scores_go_from_nothing_to_the_reference_itself() -> None:
    """100 is the human translation, word for word; a row without one counts as empty."""
    quality = BENCH["translation_quality"]
    whole = quality(REFERENCES, REFERENCES)
    assert (whole.chrf, whole.bleu) == (pytest.approx(100), pytest.approx(100))
    assert quality([None, None], REFERENCES).chrf == 0
    assert 0 < quality([REFERENCES[0], None], REFERENCES).chrf < 100
    assert "version" in whole.signatures[0]


def test_only_rows_with_a_reference_are_translated(tmp_path: Path) -> None:
    """Evenly from all of the corpus; the source has the reference's form."""
    rows = [
        {"title": f"t{i}", "text": f"x{i}", "ref_fr": None if i % 2 else f"r{i}"} for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = BENCH["reference_rows"](tmp_path, 3).to_pylist()
    assert found == [{"source": f"t{i}\n\nx{i}", "reference": f"r{i}"} for i in (0, 6, 12)]


def test_the_benchs_job_is_valid(tmp_path: Path) -> None:
    """It is found to be right by the same checks as anybody's."""
    job = Job.model_validate(BENCH["translation_job"](tmp_path, {"source": "fake"}, tmp_path))
    assert job.steps[0].kind.name == "translate"


def test_the_report_says_what_came_of_the_rows() -> None:
    """Scores of the model, of doing nothing, of what passes; rejects count as empty."""
    row: dict[str, Any] = {
        "source": "The parcel left.", "reference": REFERENCES[0], "translation": REFERENCES[0],
        "error": None, "failed_checks": [], "checks_passed": True, "attempts": 1,
        "num_input_tokens": 30, "num_generated_tokens": 10,
    }  # fmt: skip
    failed = {**row, "failed_checks": ["language"], "checks_passed": False, "attempts": 2}
    reject = dict.fromkeys(row) | {"source": "x", "reference": "y", "error": {"class": "x"}}
    report = "\n".join(BENCH["report"]([row, failed, reject]))
    assert "rows that pass the checks: chrF 100.0, BLEU 100.0 (1 rows)" in report
    assert "checks passed: 1 of 3; failed: {'language': 1}" in report
    assert "rows by attempts: {1: 1, 2: 1}; rejects: 1" in report
    assert "tokens a row: 20 in, 7 out" in report
