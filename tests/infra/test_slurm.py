"""The batch script, with stand-ins for Slurm, Ray and tokenmill."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers.command import ROOT

SCRIPT = ROOT / "infra" / "slurm" / "run.sbatch"


def write_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def run(tmp_path: Path, tokenmill: str) -> tuple[int, list[str]]:
    """The script's exit code and what it called, with that in tokenmill's place; two nodes."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    note = f'echo "${{0##*/}} $*" >> {calls}'
    (programs / "activate").touch()
    names = 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; fi'
    write_program(programs, "scontrol", f"{note}\n{names}")
    write_program(programs, "srun", note)
    write_program(programs, "ray", note)
    write_program(programs, "tokenmill", f'{note}\n[ -n "$RAY_AUTH_TOKEN" ] || exit 9\n{tokenmill}')
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TOKENMILL_VENV": str(tmp_path),
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(
        ["/usr/bin/env", "bash", str(SCRIPT), "job.yaml", "--limit", "5"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, calls.read_text().splitlines()


def test_a_run_is_on_all_nodes(tmp_path: Path) -> None:
    """The first node has the head, the other joins it, and the run gets its options and address."""
    both_started = f"until [ $(grep -c ^srun {tmp_path}/calls) = 2 ]; do :; done"
    folder = f'echo "folder $RAY_TMPDIR" >> {tmp_path}/calls'
    code, calls = run(tmp_path, f"{both_started}; {folder}; exit 0")
    assert code == 0
    assert "folder /tmp/ray-7" in calls
    assert "tokenmill run job.yaml --limit 5 --address one:6379" in calls
    heads = [call for call in calls if call.startswith("srun") and "--head" in call]
    others = [call for call in calls if "ray start --address one:6379" in call]
    assert ["--nodelist=one" in call for call in heads] == [True]
    assert ["--exclude=one" in call for call in others] == [True]
    assert "requeue" not in " ".join(calls)


def test_a_stopped_run_is_queued_again(tmp_path: Path) -> None:
    """Exit code 4 means a stop: the job goes back to the queue, once."""
    code, calls = run(tmp_path, "exit 4")
    assert code == 4
    assert calls.count("scontrol requeue 7") == 1


def test_slurms_warning_reaches_the_run(tmp_path: Path) -> None:
    """SIGTERM to the batch script stops the run, whose own exit code decides."""
    ask = "trap 'exit 4' TERM; kill -TERM $PPID; while :; do read -t 0.1 <> <(:) || :; done"
    code, calls = run(tmp_path, ask)
    assert code == 4
    assert "scontrol requeue 7" in calls


@pytest.mark.parametrize("code", [1, 2, 3])
def test_other_ends_are_the_jobs(tmp_path: Path, code: int) -> None:
    """A failure, a mistake and too many rejects end the job with their exit code."""
    ended, calls = run(tmp_path, f"exit {code}")
    assert ended == code
    assert "requeue" not in " ".join(calls)
