"""Two runs on Ray at the same time, on a machine with little of everything."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from helpers.command import (
    ROOT,
    all_end,
    command,
    input_positions,
    output_rows,
    positions,
    tokenmill,
    wait_for_commit,
    workers,
)
from helpers.inprocess import job_over, write_corpus
from helpers.ray_cluster import free_port
from tokenmill.errors import ExitCode

#: Ray's objects do not fit, and go to a disk instead.
SMALL_SHARED_MEMORY = 'mount -t tmpfs -o size=16m tmpfs /dev/shm; exec "$@"'
#: The run's terminal is closed after the first line.
ONE_LINE = '"$@" 2>&1 | head -1'


def on_a_small_machine() -> list[str]:
    """A prefix for few open files and, where that is permitted, little shared memory."""
    prefix = ["/usr/bin/env", "--default-signal=INT,HUP", "prlimit", "--nofile=256"]
    small = ["unshare", "-m", "bash", "-e", "-c", SMALL_SHARED_MEMORY, "bash"]
    tried = subprocess.run([*prefix, *small, "true"], capture_output=True, check=False)
    return prefix if tried.returncode else [*prefix, *small]


def start(
    prefix: Sequence[str], environment: dict[str, str], *arguments: str | Path
) -> subprocess.Popen[str]:
    """Start a run in its own process group."""
    return subprocess.Popen(
        [*prefix, *command("run", *arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.integration
def test_two_runs_on_a_small_machine_do_not_meet(tmp_path: Path) -> None:
    """One loses its terminal and finishes; the other is stopped by SIGHUP with all its processes.

    Both have few open files, little shared memory, a path for temporary files that is too long for
    sockets, and the address of a cluster of `ray start` that has ended.
    """
    temporary = tmp_path / ("x" * 60)
    (temporary / "ray").mkdir(parents=True)
    (temporary / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    environment = {"TMPDIR": str(temporary), "TOKENMILL_CACHE": str(tmp_path / "cache")}
    corpus = write_corpus(tmp_path / "corpus", {f"{name}.parquet": ["a text"] * 6 for name in "ab"})
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(job_over(corpus, tmp_path / "out")))
    small = on_a_small_machine()
    slow = ("--output", tmp_path / "slow", "--set", "model.engine.step_s=0.3")

    stopped = start(small, environment, job, *slow)
    shell = ["bash", "-o", "pipefail", "-c", ONE_LINE, "bash"]
    finished = start([*small, *shell], environment, job)

    wait_for_commit(stopped, tmp_path / "slow")
    processes = workers(stopped)
    os.killpg(stopped.pid, signal.SIGHUP)
    printed = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == ExitCode.STOPPED, printed
    assert "units are saved" in printed
    assert processes and all_end(processes)
    assert "stopped" in tokenmill("status", tmp_path / "slow").stdout

    printed = finished.communicate(timeout=300)[0]
    assert finished.returncode == ExitCode.FINISHED, printed
    assert len(printed.splitlines()) == 1
    assert positions(output_rows(tmp_path / "out")) == input_positions(corpus)
    assert len(list((tmp_path / "cache" / "logs").iterdir())) == 2
