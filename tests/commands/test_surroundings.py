"""Surroundings in which a run cannot start: refused at once, in one line that says what to do."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from helpers.command import ROOT, command
from helpers.inprocess import job_over, write_corpus
from tokenmill.errors import ExitCode

LONG = "/tmp/" + "x" * 60  # noqa: S108 - never created


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over a few rows."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out")))
    return path


def works(*prefix: str) -> bool:
    """Whether this user may run a program behind the prefix."""
    done = subprocess.run(
        ["/usr/bin/env", *prefix, "true"], capture_output=True, check=False, cwd="/"
    )
    return done.returncode == 0


def refused(
    job: Path, *prefix: str, code: ExitCode = ExitCode.USER_ERROR, cwd: Path | None = None
) -> str:
    """The error line of a run behind the prefix, which must end with the exit code."""
    done = subprocess.run(
        ["/usr/bin/env", *prefix, *command("run", job)],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipeline")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "--debug" not in line
    return line


@pytest.mark.parametrize(
    ("variable", "code", "words"),
    [
        ("RAY_ADDRESS=127.0.0.1:1", ExitCode.FAILED, "RAY_ADDRESS"),
        ("RAY_ADDRESS=http://127.0.0.1:8265", ExitCode.USER_ERROR, "RAY_ADDRESS"),
        (f"RAY_TMPDIR={LONG}", ExitCode.USER_ERROR, f"RAY_TMPDIR={LONG}"),
        ("HOME=/dev/null", ExitCode.USER_ERROR, "TOKENMILL_CACHE"),
        ("HOME=/proc", ExitCode.USER_ERROR, "TOKENMILL_CACHE"),
    ],
)
def test_a_variable_with_which_no_run_can_start_is_named(
    variable: str, code: ExitCode, words: str, job: Path
) -> None:
    """An address without Ray may get one later, so it is a failure; the others are mistakes."""
    assert words in refused(job, variable, code=code)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (("unshare", "-rn"), ("127.0.0.1", "loopback")),
        (("prlimit", "--nofile=64"), ("open files", "ulimit -n")),
        (("-u", "HOME", "setpriv", "--reuid=65534", "--clear-groups"), ("TOKENMILL_CACHE",)),
    ],
    ids=["no loopback interface", "few open files", "another user without a home"],
)
def test_a_machine_on_which_no_run_can_start_is_described(
    prefix: Sequence[str], words: Sequence[str], job: Path
) -> None:
    """Ray would wait for its own processes without end."""
    if not works(*prefix):
        pytest.skip(f"{' '.join(prefix)} is not permitted here")
    if "setpriv" in prefix:
        # The other user writes into the output, and its files are read by this one.
        for folder in job.parents[:-2]:
            folder.chmod(0o777)
    line = refused(job, *prefix)
    assert all(word in line for word in words), line


def test_a_deleted_working_directory_is_reported(job: Path, tmp_path: Path) -> None:
    """No command can work there, so each says what to do."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    assert "current folder" in refused(job, "bash", "-c", script, "bash", cwd=gone)
