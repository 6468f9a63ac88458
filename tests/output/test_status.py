"""The status of an output while a run is active, after it stopped, and when it is finished."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from helpers.inprocess import drive, invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.heartbeat import ALIVE_NAME, Heartbeat, is_alive
from tokenmill.output.output import open_output
from tokenmill.output.runs import run_folder
from tokenmill.output.status import StatusReader, changes
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.storage.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A finished output of eight rows, three of them rejects, in units of two."""
    corpus = write_corpus(tmp_path / "corpus")
    job = Job.model_validate(job_over(corpus, tmp_path / "out"))
    store = LocalStore(job.output.path)
    summary = drive(job, store)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    return store


def unfinished(store: LocalStore) -> str:
    """Delete `_SUCCESS` and one unit of two rows, and return the unit's key."""
    Path(store.url, SUCCESS_KEY).unlink()
    key = next(iter(store.list("data"))).key
    Path(store.url, key).unlink()
    return key


def test_a_finished_output_has_all_its_rows(store: LocalStore) -> None:
    """Units, rows, rejects by class and tokens are those in `_SUCCESS`."""
    status = StatusReader(open_output(store)).read()
    totals = json.loads(store.read(SUCCESS_KEY))
    assert status.state == "finished"
    assert (status.rows_done, status.rows) == (8, 8)
    assert status.units_done == status.units == totals["units"]
    assert status.rejects == totals["rejects"] == {"empty_input": 3}
    assert status.input_tokens == totals["input_tokens"]
    assert (status.running, status.rows_per_s, status.remaining_s) == ((), None, None)


def test_a_stopped_run_has_no_remaining_time(store: LocalStore) -> None:
    """Without a heartbeat there is no speed, but the missing units are counted."""
    unfinished(store)
    status = StatusReader(open_output(store)).read()
    assert status.state == "stopped"
    assert (status.rows_done, status.units - status.units_done) == (6, 1)
    assert status.remaining_s is None


def test_a_run_with_a_heartbeat_has_a_speed(store: LocalStore) -> None:
    """A run is over once it has a summary, or no heartbeat for two minutes."""
    unfinished(store)
    key = f"{run_folder('a')}/{ALIVE_NAME}"
    reader = StatusReader(open_output(store))
    store.replace(key, json.dumps({"at": time.time() - 60}).encode())
    status = reader.read()
    assert (status.state, status.running) == ("running", ("a",))
    assert status.rows_per_s is not None and status.rows_per_s > 0
    assert status.remaining_s == pytest.approx(2 / status.rows_per_s)
    store.replace(key, json.dumps({"at": time.time() - 180}).encode())
    assert reader.read().state == "stopped"
    store.replace(key, json.dumps({"at": time.time()}).encode())
    store.replace(f"{run_folder('a')}/summary.json", b"{}")
    assert reader.read().state == "stopped"


class RecordingStore(LocalStore):
    """A store that records which objects are opened."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[str] = []

    def open(self, key: str) -> BinaryIO:
        self.opened.append(key)
        return super().open(key)


def test_a_unit_is_read_once(store: LocalStore) -> None:
    """A second reading opens only the objects that are new."""
    key = unfinished(store)
    recording = RecordingStore(store.url)
    reader = StatusReader(open_output(recording))
    first = reader.read()
    recording.opened.clear()
    other = next(iter(store.list("data"))).key
    Path(store.url, key).write_bytes(Path(store.url, other).read_bytes())
    assert reader.read().units_done == first.units_done + 1
    assert recording.opened == [key]


def test_a_heartbeat_is_written_while_its_context_is_open(tmp_path: Path) -> None:
    """The first heartbeat is written after the given time."""
    store = LocalStore(str(tmp_path / "out"))
    key = f"{run_folder('a')}/{ALIVE_NAME}"
    with Heartbeat(store, "a", first_s=0.01):
        deadline = time.monotonic() + 30
        while not Path(store.url, key).exists():
            assert time.monotonic() < deadline
    heartbeat = json.loads(store.read(key))
    assert {"host", "pid", "at"} <= heartbeat.keys()
    assert is_alive(heartbeat, time.time())


def heartbeat_of(process: "subprocess.Popen[bytes]", store: LocalStore, run: str) -> dict[str, Any]:
    """A heartbeat of the run, as if `process` had written it."""
    with Heartbeat(store, run, first_s=0.0):
        key = f"{run_folder(run)}/{ALIVE_NAME}"
        deadline = time.monotonic() + 30
        while not Path(store.url, key).exists():
            assert time.monotonic() < deadline
    started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return {**json.loads(store.read(key)), "pid": process.pid, "started": started}


def test_a_process_that_was_killed_is_not_running(store: LocalStore) -> None:
    """Its end is seen at once on its machine, also before it is reaped; elsewhere its time counts.

    A later process with the same id is not taken for it, and a heartbeat of an earlier version has
    no more than its time.
    """
    unfinished(store)
    reader = StatusReader(open_output(store))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        heartbeat = heartbeat_of(process, store, "a")
        key = f"{run_folder('a')}/{ALIVE_NAME}"

        def running(**changes: Any) -> tuple[str, ...]:
            store.replace(key, json.dumps({**heartbeat, **changes}).encode())
            return reader.read().running

        assert running() == ("a",)
        assert running(started=heartbeat["started"] - 1) == ()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert running() == ()
        process.wait()
        assert running() == ()
        assert reader.read().state == "stopped"
        assert running(machine="another machine") == ("a",)
        assert running(machine=None) == ("a",)


def test_a_watch_ends_with_the_output_and_can_be_read_by_its_changes(store: LocalStore) -> None:
    """Every reading is yielded once; what only changes the speed is no change."""
    key = unfinished(store)
    reader = StatusReader(open_output(store))
    waits: list[int] = []

    def wait() -> None:
        waits.append(len(waits))
        if len(waits) == 3:
            job = open_output(store).job
            drive(job, store)

    statuses = list(reader.until_finished(wait))
    assert [status.state for status in statuses] == ["stopped"] * 3 + ["finished"]
    assert [status.rows_done for status in changes(statuses)] == [6, 8]
    faster = replace(statuses[0], rows_per_s=3.0, remaining_s=1.0)
    assert list(changes([statuses[0], faster, statuses[-1]])) == [statuses[0], statuses[-1]]
    assert Path(store.url, key).exists()


def test_the_command_prints_the_status_as_text_and_as_json(store: LocalStore) -> None:
    """Both forms show rows, rejects and state; a missing output is a user error."""
    done = invoke("status", store.url)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert "8 of 8" in done.stdout and "3 empty_input" in done.stdout
    facts = json.loads(invoke("status", store.url, "--json").stdout)
    assert (facts["state"], facts["rows_done"]) == ("finished", 8)
    (line,) = invoke("status", store.url, "--watch").stdout.splitlines()
    assert line.startswith("finished") and "rows 8/8" in line
    (line,) = invoke("status", store.url, "--watch", "--json").stdout.splitlines()
    assert json.loads(line) == facts
    assert invoke("status", "/nowhere").exit_code == ExitCode.USER_ERROR
