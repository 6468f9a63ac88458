"""A small chaos run with a fixed seed; `make chaos` is the large one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import ROOT

pytestmark = pytest.mark.integration


def test_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    """Kills, signals, storms and zombies on real S3: each output is that of an undisturbed run."""
    words = ["--seed", "1", "--rounds", "1", "--report", str(tmp_path / "report.json")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "faults.chaos", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    for name in ("rows_lost", "rows_doubled", "rows_different", "objects_torn"):
        assert report[name] == 0
    assert report["bytes_changed_after_success"] == 0
    assert report["kills"] >= 8
    assert report["num_faults"] >= 30
