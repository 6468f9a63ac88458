"""Commands whose terminal, pipe or file goes away: exit codes depend on the work alone.

The commands run as their own processes, with units in the process itself instead of on Ray.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.command import ROOT, WITHOUT_RAY, output_rows, wait_for_commit
from helpers.inprocess import CORPUS, job_over, write_corpus
from tokenmill.errors import ExitCode

NUM_ROWS = sum(map(len, CORPUS.values()))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over a few rows."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out")))
    return path


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start a shell script with `tokenmill` and the arguments as its "$@", in its own group."""
    shell = [
        "/usr/bin/env",
        "--default-signal=INT,HUP",
        "bash",
        "-o",
        "pipefail",
        "-c",
        script,
        "bash",
    ]
    return subprocess.Popen(
        [*shell, *WITHOUT_RAY, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipeline")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run such a script to its end."""
    process = start(script, *arguments)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(
    "script",
    [
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" >/dev/full 2>&1',
        '"$@" 2>&1 | head -1',
        '"$@" --log-format json >&- 2>&-',
    ],
)
def test_a_run_outlives_its_terminal(script: str, job: Path, tmp_path: Path) -> None:
    """It finishes with exit code 0 and all rows, and puts nothing printed into the output."""
    done = run(script, "run", job)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert len(output_rows(tmp_path / "out")) == NUM_ROWS


def test_the_exit_code_of_a_run_is_kept(job: Path) -> None:
    """Too many rejects are still exit code 3, and a mistake 2."""
    over = run('"$@" >/dev/full', "run", job, "--set", "max_reject_rate=0.0")
    assert over.returncode == ExitCode.OVER_REJECT_BUDGET
    mistake = run('"$@" 2>&1 | true', "run", job, "--input", job)
    assert mistake.returncode == ExitCode.USER_ERROR


def test_commands_that_print_end_quietly_without_a_reader(job: Path, tmp_path: Path) -> None:
    """A closed pipe is no error; a full disk is one, in one line, because the result is lost."""
    output = tmp_path / "out"
    assert run('"$@"', "run", job).returncode == ExitCode.FINISHED
    commands = [["--help"], ["plan", job], ["report", output]]
    for arguments in commands:
        quiet = run('"$@" | true', *arguments)
        assert (quiet.returncode, quiet.stderr) == (ExitCode.FINISHED, ""), arguments
        full = run('"$@" >/dev/full', *arguments)
        assert full.returncode == ExitCode.FAILED, arguments
        (line,) = full.stderr.splitlines()
        assert line.startswith("error: stdout: ")


def test_a_gate_keeps_its_exit_code_without_a_reader(job: Path, tmp_path: Path) -> None:
    """`compare` exits with 1 for changed answers, whether they are read or not."""
    for name, tokens in (("a", 16), ("b", 1)):
        changes = ["--output", tmp_path / name, "--set", f"sampling.max_tokens={tokens}"]
        assert run('"$@"', "run", job, *changes).returncode == ExitCode.FINISHED
    for script in ('"$@"', '"$@" | true'):
        assert run(script, "compare", tmp_path / "a", tmp_path / "b").returncode == 1, script


def test_closing_the_terminal_stops_a_run(job: Path, tmp_path: Path) -> None:
    """SIGHUP is a stop: exit code 4, a line in the log, and `status` no longer says running."""
    process = start('exec "$@"', "run", job, "--set", "model.engine.step_s=0.1")
    wait_for_commit(process, tmp_path / "out")
    os.killpg(process.pid, signal.SIGHUP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.STOPPED, stderr
    assert "units are saved" in stderr
    assert "stopped" in run('"$@"', "status", tmp_path / "out").stdout


def test_a_run_under_nohup_outlives_its_terminal(job: Path, tmp_path: Path) -> None:
    """SIGHUP is ignored if it was ignored at the start."""
    slow = ("--set", "model.engine.step_s=0.02")
    process = start('exec nohup "$@"', "run", job, *slow)
    wait_for_commit(process, tmp_path / "out")
    os.killpg(process.pid, signal.SIGHUP)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == ExitCode.FINISHED, stderr
    assert len(output_rows(tmp_path / "out")) == NUM_ROWS
