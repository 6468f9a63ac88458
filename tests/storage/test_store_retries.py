"""Writes that fail: tried again while the store may come back; then the run stops, resumable."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import drive, drive_retry, job_over, write_corpus
from helpers.stores import refusal
from tokenmill.errors import ExitCode, NoSpace, RunFailed, TokenmillError, UserError
from tokenmill.job.job import Job
from tokenmill.output.rejects import Selection
from tokenmill.output.totals import read_success
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.retry import PAUSES_S, persist

MOST_TRIES = len(PAUSES_S) + 1
BUSY = RunFailed("s3://bucket/out: SlowDown")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries as ever, without the pauses."""
    monkeypatch.setattr("tokenmill.storage.retry.PAUSES_S", (0.0,) * len(PAUSES_S))


class Failing:
    """A store whose writes of units fail so many times; after they were made, if `made`."""

    def __init__(
        self, inner: Store, error: Exception, times: int = 10**9, made: bool = False
    ) -> None:
        self.url = inner.url
        self.num_writes = 0
        self._inner = inner
        self._error = error
        self._left = times
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
        if self._left:
            self._left -= 1
            if self._made:
                write()
            raise self._error
        return write()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Of one unit with two rows, one of which fails until its engine is mended."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "two"]})
    model = {"source": "fake", "engine": {"error_rate": 1}}
    return Job.model_validate(job_over(corpus, tmp_path / "out", model=model))


@pytest.mark.parametrize("made", [False, True], ids=["refused", "made and the reply lost"])
def test_a_unit_is_written_as_soon_as_the_store_comes_back(
    job: Job, store: LocalStore, made: bool
) -> None:
    """A store that fails a few times is asked again; the unit stands once and is ours."""
    failing = Failing(store, BUSY, MOST_TRIES - 1, made)
    summary = drive(job, failing)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.lost_races == 0
    assert failing.num_writes == MOST_TRIES


@pytest.mark.parametrize("made", [False, True], ids=["refused", "made and the reply lost"])
def test_a_repair_is_written_as_soon_as_the_store_comes_back(
    job: Job, store: LocalStore, made: bool
) -> None:
    """An exchange that fails is made again, or known as made, and is on record once."""
    drive(job, store)
    before = read_success(store)
    failing = Failing(store, BUSY, MOST_TRIES - 1, made)
    drive_retry(failing, Selection(), "model.engine.error_rate=0")
    after = read_success(store)
    assert before is not None and after is not None
    assert (before.rejects, after.rejects) == ({"engine_error": 2}, {})
    # The same two prompts once more, and not once more for each try.
    assert after.input_tokens == 2 * before.input_tokens


def test_a_store_that_stays_away_stops_the_run_with_its_reason(job: Job, store: LocalStore) -> None:
    """After the last try the run stops; once the store is back, the same job runs the rest."""
    failing = Failing(store, BUSY)
    assert refusal(RunFailed, lambda: drive(job, failing)) == str(BUSY)
    assert failing.num_writes == MOST_TRIES
    assert list(store.list("data")) == []
    summary = drive(job, store)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED


@pytest.mark.parametrize(
    "error", [UserError("s3://bucket/out: refused"), NoSpace("/out: no space left")]
)
def test_what_waiting_does_not_mend_stops_the_run_at_once(
    job: Job, store: LocalStore, error: TokenmillError
) -> None:
    """Rights and full disks are told after the first try."""
    failing = Failing(store, error)
    assert refusal(type(error), lambda: drive(job, failing)) == str(error)
    assert failing.num_writes == 1


def test_a_mistake_of_ours_is_not_repeated() -> None:
    """An error that is no word of the store passes through."""
    tries = []

    def write() -> None:
        tries.append(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        persist(write)
    assert len(tries) == 1


def test_the_pauses_double_and_end_after_about_a_minute() -> None:
    """A server that restarts is waited for; a dead one stops the run soon enough."""
    assert all(later == 2 * pause for pause, later in pairwise(PAUSES_S))
    assert 60 <= sum(PAUSES_S) <= 90
