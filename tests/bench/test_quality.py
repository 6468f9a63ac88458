"""The quality bench from its command line: a sample, a run without a model, and its figures."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT
from tokenmill.job.loader import load_job

from bench.quality import sample

pytestmark = pytest.mark.integration

ROWS = {
    "title": ["a", "b", "c", "d"],
    "text": ["one", "two", "three", "four"],
    "section": ["games", "mail", "unheard-of", "games"],
    "tags": [["role::program"], [], None, ["use::gameplaying", "role::program"]],
}
TYPES = pa.schema(
    [
        ("title", pa.string()),
        ("text", pa.string()),
        ("section", pa.string()),
        ("tags", pa.list_(pa.string())),
    ]
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four rows with their truths; one section is none of the job's, two rows have no tags."""
    pq.write_table(pa.table(ROWS, TYPES), tmp_path / "rows.parquet")
    return tmp_path


def figures(job: str, corpus: Path) -> dict[str, str]:
    options = ("--data", corpus, "--set", "model={source: fake}")
    done = subprocess.run(
        [sys.executable, "-m", "bench.quality", f"bench/{job}.yaml", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    return {line[:24].strip(): line[24:].strip() for line in lines}


def test_a_classification_is_judged_by_its_section(corpus: Path) -> None:
    """Rows whose section is one of the choices are drawn, and every figure is a number."""
    found = figures("sections", corpus)
    assert (found["rows"], found["labels"]) == ("3", "12")
    assert found["always the commonest"] == "0.667"
    assert all(0 <= float(value) < 20 for value in found.values())


def test_tags_are_judged_by_the_tags(corpus: Path) -> None:
    """Rows that a person has tagged are drawn; the truth's column may be called as the task's."""
    found = figures("debtags", corpus)
    assert (found["rows"], found["labels"]) == ("2", "10")
    assert found["true tags a row"] == "1.500"
    assert 0 <= float(found["precision"]) <= 1


def test_the_same_seed_draws_the_same_rows(corpus: Path) -> None:
    """A sample follows from the corpus and the seed, in the corpus's order."""
    (step,) = load_job(ROOT / "bench" / "sections.yaml").steps
    drawn = [sample(corpus, "section", step.section, 2, seed) for seed in (1, 1, 2, 3, 4, 5)]
    assert drawn[0].equals(drawn[1])
    assert len({tuple(rows["title"].to_pylist()) for rows in drawn}) > 1
    assert all(rows["title"].to_pylist() == sorted(rows["title"].to_pylist()) for rows in drawn)
