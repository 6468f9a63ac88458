"""Full disks and folders without permission: one line of error, and nothing is lost."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT, command, output_rows
from helpers.inprocess import invoke
from tokenmill.errors import ExitCode

JOB = """
name: tiny
input: {{path: {input}}}
model: {{source: fake, engine: {{output_tokens: 30}}}}
prompt: {{user: "{{{{ text }}}}"}}
sampling: {{max_tokens: 60}}
output: {{path: {output}}}
units: {{rows: 100}}
"""
NUM_ROWS = 2000


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over a folder of one shard."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = [f"row {number}" for number in range(NUM_ROWS)]
    pq.write_table(pa.table({"text": text}), corpus / "a.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(input=corpus, output=tmp_path / "out"))
    return path


def run(prefix: Sequence[str | Path], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`tokenmill run` in the surroundings that the prefix makes."""
    return subprocess.run(
        [*prefix, *command("run", *arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# A full disk.

ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=128k tmpfs "$1"
shift
code=0
"$@" || code=$?
cp -r "$DISK/." "$KEPT"
exit $code
"""


def may_mount() -> bool:
    """Whether this user may make a namespace and mount a disk in it."""
    tried = subprocess.run(
        ["/usr/bin/env", "unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


@pytest.mark.integration
@pytest.mark.skipif(not may_mount(), reason="mounting a small disk needs user namespaces")
def test_a_full_disk_stops_the_run_and_keeps_its_commits(job: Path, tmp_path: Path) -> None:
    """A run on a disk of 128 KiB ends with 1 and a line; on a larger one it ends, all rows once."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    output = disk / "out"
    small = ["/usr/bin/env", f"DISK={disk}", f"KEPT={kept}", "unshare", "-rm"]
    small += ["bash", "-c", ON_A_SMALL_DISK, "bash", str(disk)]

    stopped = run(small, job, "--output", output)

    assert stopped.returncode == ExitCode.FAILED, stopped.stderr
    assert "no space left" in stopped.stderr.splitlines()[-1]
    assert str(output) in stopped.stderr.splitlines()[-1]
    committed = {path.name for path in kept.glob("out/data/*/*.parquet")}
    assert f"{len(committed)} of 20 units are saved." in stopped.stderr
    assert 0 < len(committed) < 20

    shutil.copytree(kept, disk, dirs_exist_ok=True)
    resumed = invoke("run", job, "--output", output)

    assert resumed.exit_code == ExitCode.FINISHED, resumed.stderr
    assert f"Resuming: {len(committed)} of 20 units are saved" in resumed.stderr
    assert [row["source_row"] for row in output_rows(output)] == list(range(NUM_ROWS))


# No permission.


def as_a_user() -> list[str]:
    """A prefix with which the superuser, too, is refused what a file's mode refuses."""
    if os.geteuid():
        return []
    return ["/usr/bin/env", "setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def refused(job: Path, *arguments: str | Path) -> str:
    """The one line with which the job is refused to a user."""
    done = run(as_a_user(), job, *arguments)
    assert done.returncode == ExitCode.USER_ERROR, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_an_output_that_may_not_be_written_is_named(job: Path, tmp_path: Path) -> None:
    """A folder that is read-only is refused before anything starts."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    line = refused(job, "--output", locked / "out")
    assert f"{locked}/out" in line
    assert "permission denied" in line


def test_a_shard_that_may_not_be_read_is_named(job: Path, tmp_path: Path) -> None:
    """A shard without the right to read it stops the run; it is not taken for a bad one."""
    shard = tmp_path / "corpus" / "a.parquet"
    shard.chmod(0)
    line = refused(job, "--set", "input.on_bad_shard=skip")
    assert str(shard) in line
    assert "permission denied" in line


def test_a_folder_that_may_not_be_listed_is_named(job: Path, tmp_path: Path) -> None:
    """An input folder without the right to list it is named itself, not the one above."""
    corpus = tmp_path / "corpus"
    corpus.chmod(0)
    line = refused(job)
    corpus.chmod(0o755)
    assert f"{corpus}: permission denied" in line


def test_a_job_that_may_not_be_read_is_named(job: Path) -> None:
    """A job file without the right to read it is refused in a line like any other mistake."""
    job.chmod(0)
    assert f"{job}: cannot read the job file" in refused(job)


def test_a_cache_that_may_not_be_written_is_named(job: Path, tmp_path: Path) -> None:
    """A folder for logs and models that is read-only is a mistake, in one line."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    prefix = [*as_a_user(), "/usr/bin/env", f"TOKENMILL_CACHE={locked}"]
    done = run(prefix, job)
    assert done.returncode == ExitCode.USER_ERROR
    assert str(locked) in done.stderr.splitlines()[-1]
