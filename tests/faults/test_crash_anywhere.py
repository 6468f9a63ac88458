"""Real processes that die: the run goes on by itself, or the same command carries on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOT, output_rows, wait_for_commit
from helpers.inprocess import invoke
from helpers.s3_server import S3Server
from helpers.stores import contents
from tokenmill.errors import ExitCode
from tokenmill.output.heartbeat import ALIVE_NAME
from tokenmill.storage.local import LocalStore
from tokenmill.storage.s3 import S3Store

from faults import driver as inline
from faults import real, world
from faults.world import by_place, losses, read_rows

pytestmark = pytest.mark.integration

Undisturbed = dict[world.Place, dict[str, Any]]
# Of a stop by a signal.
GRACE_S = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a job whose run takes some ten seconds."""
    folder = tmp_path_factory.mktemp("crash")
    world.write_corpus(folder / "corpus", shards=2, rows=60, poison=False)
    world.write_job(folder / "job.yaml", ", step_s: 0.05")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Undisturbed:
    """The rows of a run in peace."""
    arguments = ["run", folder / "job.yaml", "--input", folder / "corpus"]
    process = inline.start([*arguments, "--output", folder / "peace"], {}, folder, "")
    process.join()
    assert process.exitcode == ExitCode.FINISHED
    return by_place(read_rows(LocalStore(str(folder / "peace")))[0])


#: A cluster that is not tokenmill's own must ask for a token.
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-cluster-with-two-nodes"}


def start(
    folder: Path, output: Path | str, *more: str, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    return real.start(folder / "job.yaml", folder / "corpus", output, *more, env=env)


def finished(driver: "subprocess.Popen[str]") -> str:
    """What a run said that must have ended well."""
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == ExitCode.FINISHED, said
    return said


def prove(output: Path, undisturbed: Undisturbed) -> None:
    """Whole by the deepest proof, and row for row what an undisturbed run makes."""
    proof = invoke("verify", output, "--deep")
    assert proof.exit_code == ExitCode.FINISHED, proof.stdout
    assert losses(LocalStore(str(output)), undisturbed).none


def test_the_run_goes_on_where_a_part_of_it_is_killed(
    folder: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A replica, a worker that commits, the coordinator and another replica get kill -9."""
    output = tmp_path / "out"
    driver = start(folder, output)
    wait_for_commit(driver, output)
    for title in (real.REPLICA, real.COMMIT, real.BOARD, real.REPLICA):
        assert real.kill_one(driver, title), title
    finished(driver)
    prove(output, undisturbed)


@pytest.mark.chaos
def test_two_drivers_that_start_together_make_one_output(
    folder: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Both end well, and each unit is one driver's."""
    output = tmp_path / "out"
    drivers = [start(folder, output) for _ in range(2)]
    for driver in drivers:
        finished(driver)
    prove(output, undisturbed)
    ours = [run["units"] - run["lost_races"] for run in real.summaries(output)]
    assert sum(ours) == 20


@pytest.mark.chaos
def test_a_driver_that_sleeps_through_the_end_changes_nothing(
    folder: Path, undisturbed: Undisturbed, s3_server: S3Server, s3_bucket: str
) -> None:
    """A whole machine that is paused and wakes after _SUCCESS: 0 bytes changed.

    But for its sign of life, in the folder of its own run.
    """
    output = f"s3://{s3_bucket}/out"
    store = S3Store(output, s3_server.endpoint_url)
    zombie = start(folder, output)
    while not list(store.list("data")):
        assert zombie.poll() is None, zombie.communicate()[0]
    real.whole_tree(zombie, signal.SIGSTOP)
    finished(start(folder, output))
    before = contents(store)
    assert "_SUCCESS" in before
    before = {key: data for key, data in before.items() if not key.endswith(ALIVE_NAME)}
    real.whole_tree(zombie, signal.SIGCONT)
    said, _ = zombie.communicate(timeout=300)
    after = contents(store)
    assert {key: after[key] for key in before} == before, said
    assert all(key.startswith("_tokenmill/runs/") for key in after.keys() - before)
    assert losses(store, undisturbed).none


@pytest.mark.chaos
def test_a_spot_notice_ends_the_run_in_time_and_the_next_one_finishes_it(
    folder: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """SIGTERM: an exit code of its own within 30 s; what is committed stays."""
    output = tmp_path / "out"
    driver = start(folder, output)
    wait_for_commit(driver, output)
    sent_at = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=GRACE_S)
    assert driver.returncode == ExitCode.STOPPED, said
    assert time.monotonic() - sent_at < GRACE_S
    committed = contents(LocalStore(str(output)), "data")
    assert committed
    assert "Resuming:" in finished(start(folder, output))
    assert committed.items() <= contents(LocalStore(str(output)), "data").items()
    prove(output, undisturbed)


@contextmanager
def two_nodes(head_cpus: int, second_cpus: int) -> Iterator["subprocess.Popen[str]"]:
    """A cluster on this machine."""
    command = [sys.executable, "-m", "faults.two_nodes", str(head_cpus), str(second_cpus)]
    with subprocess.Popen(
        command,
        cwd=ROOT / "tests",
        env={**os.environ, **WITH_TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        try:
            yield cluster
        finally:
            assert cluster.stdin is not None
            cluster.stdin.close()
            cluster.wait(60)


@pytest.mark.chaos
def test_the_run_outlives_a_node(folder: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A node is lost with a replica on it: the other one goes on, and the lost one comes again."""
    output = tmp_path / "out"
    with two_nodes(head_cpus=6, second_cpus=2) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        more = ("--address", address, "--set", "model.replicas=3")
        driver = start(folder, output, *more, env=WITH_TOKEN)
        wait_for_commit(driver, output)
        cluster.stdin.write("lose\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline().strip() == "lost"
        assert not (output / "_SUCCESS").exists()
        finished(driver)
    prove(output, undisturbed)


@pytest.mark.chaos
def test_a_poison_row_among_a_thousand_is_found_while_other_units_go_on(tmp_path: Path) -> None:
    """At most 2 log2(1000) + 3 engines die of it, and its neighbours are answered."""
    world.write_corpus(tmp_path / "corpus", shards=2, rows=1000, poison=True)
    job = world.write_job(tmp_path / "job.yaml")
    output = tmp_path / "out"
    settings = ("--set", "units.rows=1000", "--set", "max_reject_rate=1")
    finished(real.start(job, tmp_path / "corpus", output, *settings))
    rows = output_rows(output)
    crashed = [row for row in rows if (row["error"] or {}).get("class") == "engine_crash"]
    assert [(row["source_file"], row["source_row"]) for row in crashed] == [
        ("shard-1.parquet", 250)
    ]
    (summary,) = real.summaries(output)
    assert 1 < summary["engine_deaths"] <= 2 * 10 + 3
    assert summary["totals"]["rows"] == 2000
