"""Writes that fail are retried in case the store recovers; then the run stops, resumable."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.inprocess import drive, drive_retry, job_over, write_corpus
from helpers.stores import refusal
from tokenmill.errors import ExitCode, NoSpace, RunFailed, TokenmillError, UserError
from tokenmill.job.job import Job
from tokenmill.output.rejects import Selection
from tokenmill.output.success import read_success
from tokenmill.storage.base import Store
from tokenmill.storage.retry import MAX_TRIES, persist

BUSY = RunFailed("s3://bucket/out: SlowDown")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, in seconds: recorded instead of slept."""
    pauses_s: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=pauses_s.append))
    return pauses_s


class Failing:
    """A store whose first `times` writes of units fail; after the object was written, if `made`."""

    def __init__(
        self, inner: Store, error: Exception, times: int = 10**9, made: bool = False
    ) -> None:
        self.url = inner.url
        self.num_writes = 0
        self._inner = inner
        self._error = error
        self._num_failures = times
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._write(key, lambda: self._inner.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        return self._write(key, lambda: self._inner.put_if_match(key, data, version))

    def _write(self, key: str, write: Callable[[], bool]) -> bool:
        if not key.startswith("data/"):
            return write()
        self.num_writes += 1
        if self.num_writes <= self._num_failures:
            if self._made:
                write()
            raise self._error
        return write()


@pytest.fixture
def job(tmp_path: Path, memory_store: Store) -> Job:
    """A job of one unit with two rows, which are rejected until the engine's `error_rate` is 0."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "two"]})
    model = {"source": "fake", "engine": {"error_rate": 1}}
    return Job.model_validate(job_over(corpus, memory_store.url, model=model))


@pytest.mark.parametrize("made", [False, True], ids=["refused", "written, reply lost"])
def test_a_unit_is_written_once_the_store_recovers(
    job: Job, memory_store: Store, made: bool
) -> None:
    """A write is retried; the unit is committed once, and counts as ours."""
    failing = Failing(memory_store, BUSY, MAX_TRIES - 1, made)
    summary = drive(job, failing)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.lost_races == 0
    assert failing.num_writes == MAX_TRIES


@pytest.mark.parametrize("made", [False, True], ids=["refused", "written, reply lost"])
def test_a_repair_is_written_once_the_store_recovers(
    job: Job, memory_store: Store, made: bool
) -> None:
    """A repair is retried, or recognized as written, and is recorded once."""
    drive(job, memory_store)
    before = read_success(memory_store)
    failing = Failing(memory_store, BUSY, MAX_TRIES - 1, made)
    drive_retry(failing, Selection(), "model.engine.error_rate=0")
    after = read_success(memory_store)
    assert before is not None and after is not None
    assert (before.rejects, after.rejects) == ({"engine_error": 2}, {})
    # The two prompts ran once more, not once for each try.
    assert after.input_tokens == 2 * before.input_tokens


def test_a_store_that_does_not_recover_stops_the_run(job: Job, memory_store: Store) -> None:
    """After the last try the run stops with the store's error; a later run does the rest."""
    failing = Failing(memory_store, BUSY)
    assert refusal(RunFailed, lambda: drive(job, failing)) == str(BUSY)
    assert failing.num_writes == MAX_TRIES
    assert list(memory_store.list("data")) == []
    summary = drive(job, memory_store)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED


@pytest.mark.parametrize(
    "error", [UserError("s3://bucket/out: refused"), NoSpace("/out: no space left")]
)
def test_an_error_that_waiting_does_not_fix_stops_the_run_at_once(
    job: Job, memory_store: Store, error: TokenmillError, pauses: list[float]
) -> None:
    """Missing rights and a full disk are reported after the first try."""
    failing = Failing(memory_store, error)
    assert refusal(type(error), lambda: drive(job, failing)) == str(error)
    assert failing.num_writes == 1
    assert pauses == []


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()], ids=["bug", "Ctrl-C"])
def test_other_errors_are_not_retried(error: BaseException, pauses: list[float]) -> None:
    """A bug and an interrupt are raised at once."""
    tries = []

    def write() -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        persist(write)
    assert len(tries) == 1
    assert pauses == []


def test_an_interrupt_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a pause is raised, and the write is not tried again."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=interrupted))
    tries = []

    def write() -> None:
        tries.append(1)
        raise BUSY

    with pytest.raises(KeyboardInterrupt):
        persist(write)
    assert len(tries) == 1


def test_the_pauses_double_and_end_after_about_a_minute(pauses: list[float]) -> None:
    """A restarting server gets the time it needs; a dead one stops the run soon enough."""

    def write() -> None:
        raise BUSY

    with pytest.raises(RunFailed):
        persist(write)
    assert all(
        longest / 2 <= pause <= longest
        for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 32), strict=True)
    )
