"""Fingerprints of the shipped jobs do not change: outputs of earlier versions can be resumed."""

import json
from pathlib import Path

import pytest
from helpers.command import ROOT
from tokenmill.job.loader import load_job

#: The fingerprint of each job in `jobs/`. An entry only changes with the text of its job.
GOLDEN: dict[str, str] = json.loads(Path(__file__).with_name("fingerprints.json").read_text())
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_shipped_job_keeps_its_fingerprint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run resumes only an output of the same fingerprint, so the format of sections is fixed."""
    monkeypatch.chdir(ROOT)
    assert load_job(path).fingerprint == GOLDEN[path.name]


def test_every_golden_fingerprint_is_of_a_shipped_job() -> None:
    """A job that is removed is removed here."""
    assert GOLDEN.keys() == {path.name for path in JOBS}
