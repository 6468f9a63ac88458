"""Requests that take too long: aborted, rejected, and out of the others' way."""

import math
import time
from pathlib import Path

import pytest
from helpers.factories import rendered, row_tasks
from helpers.inprocess import drive, drive_retry, job_over, write_corpus
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.job.job import Job
from tokenmill.output.rejects import Selection
from tokenmill.output.success import read_success
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.scheduling import scheduler as scheduling
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.storage.local import LocalStore
from tokenmill.tasks.row_tasks import AnsweredRow

HANG = "for ever"
# Far longer than the fake engine needs for what it does answer, by either clock.
TIMEOUT_S = 20.0
# What is never aborted must fail, not stop the tests.
MOST_S = 20


class Clock:
    """Each look at it is 0.03 s later than the one before."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 0.03
        return self._now


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs runs out of time after some hundred steps, however busy the machine is."""
    monkeypatch.setattr(scheduling, "time", Clock())


def answered(texts: list[str], max_num_seqs: int, timeout_s: float) -> list[AnsweredRow]:
    """The rows of a unit after its way through a scheduler."""
    engine = FakeEngine(FakeSettings(max_num_seqs=max_num_seqs, hang_on=HANG))
    scheduler = Scheduler(engine, row_tasks(), timeout_s)
    unit = scheduler.submit(rendered(FakeTokenizer().encode_texts(texts)))
    ends_at = time.monotonic() + MOST_S
    while unit not in scheduler.step():
        assert time.monotonic() < ends_at
    assert scheduler.load.num_running == 0
    assert not scheduler.has_work
    return [row for row in unit.answers if row is not None]


def reject_of(row: AnsweredRow) -> Reject | None:
    return row.result.reject


@pytest.mark.parametrize("max_num_seqs", [1, 2, 64])
def test_a_request_without_an_answer_is_rejected_in_time(max_num_seqs: int) -> None:
    """Requests that hang are rejects of their own, also where they fill the engine's batch."""
    texts = [f"hangs {HANG}", f"hangs too {HANG}", "one", f"and this {HANG}", "two"]
    rows = answered(texts, max_num_seqs, TIMEOUT_S)
    classes = [None if (reject := reject_of(row)) is None else reject.reject_class for row in rows]
    timeout = RejectClass.TIMEOUT
    assert classes == [timeout, timeout, None, timeout, None]
    for row, text in zip(rows, texts, strict=True):
        assert (row.num_generated_tokens is None) is (HANG in text)


def test_the_reason_names_the_setting_and_one_attempt() -> None:
    """The message says which key of the job it was, and its value."""
    (row,) = answered([HANG], 4, TIMEOUT_S)
    expected = f"no answer within model.request_timeout_s ({TIMEOUT_S:g} s)"
    assert reject_of(row) == Reject(RejectClass.TIMEOUT, expected, attempts=1)


def test_without_a_limit_nothing_is_aborted() -> None:
    """Answers that come are taken however long it may be."""
    rows = answered(["one", "two", "three"], 1, math.inf)
    assert all(reject_of(row) is None for row in rows)


def test_a_row_that_hangs_costs_a_run_its_own_answer_only(tmp_path: Path) -> None:
    """The job's time limit rejects the row; a retry with an engine that is mended answers it."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", f"waits {HANG}", "three"]})
    model = {
        "source": "fake",
        "request_timeout_s": TIMEOUT_S,
        "engine": {"hang_on": HANG, "max_num_seqs": 1},
    }
    store = LocalStore(str(tmp_path / "out"))
    drive(Job.model_validate(job_over(corpus, store.url, model=model)), store)
    totals = read_success(store)
    assert totals is not None and totals.rejects == {"timeout": 1}
    drive_retry(store, Selection(frozenset({"timeout"})), "model.engine.hang_on=other")
    totals = read_success(store)
    assert totals is not None and totals.rejects == {}
