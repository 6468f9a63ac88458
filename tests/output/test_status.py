"""What an output's objects tell of it while a run is at work, after it stopped, and at the end."""

import json
import time
from pathlib import Path

import pytest
from helpers.inprocess import drive, invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.heartbeat import ALIVE_NAME, Heartbeat
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import SUCCESS_KEY, run_folder
from tokenmill.output.status import Watch
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
    """Take the success and one unit of two rows away; the key of that unit."""
    Path(store.url, SUCCESS_KEY).unlink()
    key = next(iter(store.list("data"))).key
    Path(store.url, key).unlink()
    return key


def test_a_finished_output_has_all_its_rows(store: LocalStore) -> None:
    """Units, rows, rejects by class and tokens are those that its success counts."""
    status = Watch(open_output(store)).look()
    totals = json.loads(store.read(SUCCESS_KEY))
    assert status.state == "finished"
    assert (status.rows_done, status.rows) == (8, 8)
    assert status.units_done == status.units == totals["units"]
    assert status.rejects == totals["rejects"] == {"empty_input": 3}
    assert status.input_tokens == totals["input_tokens"]
    assert (status.running, status.rows_per_s, status.remaining_s) == ((), None, None)


def test_what_is_left_of_a_stopped_run_is_told(store: LocalStore) -> None:
    """Without a sign of life there is no pace, and no time left."""
    unfinished(store)
    status = Watch(open_output(store)).look()
    assert status.state == "stopped"
    assert (status.rows_done, status.units - status.units_done) == (6, 1)
    assert status.remaining_s is None


def test_a_run_that_gives_a_sign_of_life_has_a_pace(store: LocalStore) -> None:
    """Until it ends; one that fell silent two minutes ago, or left a summary, is over."""
    unfinished(store)
    key = f"{run_folder('a')}/{ALIVE_NAME}"
    watch = Watch(open_output(store))
    store.replace(key, json.dumps({"at": time.time() - 60}).encode())
    status = watch.look()
    assert (status.state, status.running) == ("running", ("a",))
    assert status.rows_per_s is not None and status.rows_per_s > 0
    assert status.remaining_s == pytest.approx(2 / status.rows_per_s)
    store.replace(key, json.dumps({"at": time.time() - 180}).encode())
    assert watch.look().state == "stopped"
    store.replace(key, json.dumps({"at": time.time()}).encode())
    store.replace(f"{run_folder('a')}/summary.json", b"{}")
    assert watch.look().state == "stopped"


def test_a_unit_is_read_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look reads what has come since, and no more."""
    key = unfinished(store)
    read: list[str] = []
    watch = Watch(open_output(store))
    first = watch.look()
    opened = LocalStore.open

    def open_and_tell(self: LocalStore, name: str) -> object:
        read.append(name)
        return opened(self, name)

    monkeypatch.setattr(LocalStore, "open", open_and_tell)
    other = next(iter(store.list("data"))).key
    Path(store.url, key).write_bytes(Path(store.url, other).read_bytes())
    assert watch.look().units_done == first.units_done + 1
    assert read == [key]


def test_a_heartbeat_beats_until_its_context_ends(tmp_path: Path) -> None:
    """The first sign comes after the time it is given; a store that is away harms nobody."""
    store = LocalStore(str(tmp_path / "out"))
    key = f"{run_folder('a')}/{ALIVE_NAME}"
    with Heartbeat(store, "a", first_s=0.01):
        deadline = time.monotonic() + 30
        while not Path(store.url, key).exists():
            assert time.monotonic() < deadline
    assert {"host", "pid", "at"} == json.loads(store.read(key)).keys()


def test_the_command_shows_it_in_words_and_as_json(store: LocalStore) -> None:
    """Each fact on a line within 100 columns; the same facts by name for programs."""
    done = invoke("status", store.url)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert "8 of 8" in done.stdout and "3 empty_input" in done.stdout
    facts = json.loads(invoke("status", store.url, "--json").stdout)
    assert (facts["state"], facts["rows_done"]) == ("finished", 8)
    watched = invoke("status", store.url, "--watch")
    assert "finished" in watched.stdout
    assert invoke("status", "/nowhere").exit_code == ExitCode.USER_ERROR
