"""Requests that take too long are aborted and rejected, and do not delay other requests."""

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
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.storage.local import LocalStore
from tokenmill.tasks.row_tasks import AnsweredRow

HANG = "for ever"
# Far longer than the fake engine needs for the requests that it answers, by the test's clock.
TIMEOUT_S = 20.0
# The same by the real clock, in a whole run on a busy machine.
RUN_TIMEOUT_S = 3.0
# A request that is never aborted must fail the test, not stop the others.
MAX_S = 20


class Clock:
    """A clock that advances by 0.03 s each time it is read.

    Requests that hang expire after some hundred steps, however busy the machine is.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 0.03
        return self._now


def answered(texts: list[str], max_num_seqs: int, timeout_s: float) -> list[AnsweredRow]:
    """The rows of a unit after its way through a scheduler."""
    engine = FakeEngine(FakeSettings(max_num_seqs=max_num_seqs, hang_on=HANG))
    scheduler = Scheduler(engine, row_tasks(), timeout_s, clock=Clock())
    unit = scheduler.submit(rendered(FakeTokenizer().encode_texts(texts)))
    ends_at = time.monotonic() + MAX_S
    while unit not in scheduler.step():
        assert time.monotonic() < ends_at
    assert scheduler.load.num_running == 0
    assert not scheduler.has_work
    return [row for row in unit.answers if row is not None]


def reject_of(row: AnsweredRow) -> Reject | None:
    return row.result.reject


@pytest.mark.parametrize("max_num_seqs", [1, 2, 64])
def test_a_request_that_hangs_is_rejected_in_time(max_num_seqs: int) -> None:
    """Each request that hangs is a reject of its own, even if they fill the engine's batch."""
    texts = [f"hangs {HANG}", f"hangs too {HANG}", "one", f"and this {HANG}", "two"]
    rows = answered(texts, max_num_seqs, TIMEOUT_S)
    classes = [None if (reject := reject_of(row)) is None else reject.reject_class for row in rows]
    timeout = RejectClass.TIMEOUT
    assert classes == [timeout, timeout, None, timeout, None]
    for row, text in zip(rows, texts, strict=True):
        assert (row.token_counts is None) is (HANG in text)


def test_the_reason_names_the_setting_and_one_attempt() -> None:
    """The message has the job key of the limit, and its value."""
    (row,) = answered([HANG], 4, TIMEOUT_S)
    reject = reject_of(row)
    assert reject is not None
    assert (reject.reject_class, reject.attempts) == (RejectClass.TIMEOUT, 1)
    assert f"model.request_timeout_s ({TIMEOUT_S:g} s)" in reject.message


def test_without_a_limit_nothing_is_aborted() -> None:
    """All answers are waited for."""
    rows = answered(["one", "two", "three"], 1, math.inf)
    assert all(reject_of(row) is None for row in rows)


def test_a_row_that_hangs_costs_a_run_only_its_own_answer(tmp_path: Path) -> None:
    """The time limit rejects the row; a retry with an engine that does not hang answers it."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", f"waits {HANG}", "three"]})
    model = {
        "source": "fake",
        "request_timeout_s": RUN_TIMEOUT_S,
        "engine": {"hang_on": HANG, "max_num_seqs": 1},
    }
    store = LocalStore(str(tmp_path / "out"))
    drive(Job.model_validate(job_over(corpus, store.url, model=model)), store)
    totals = read_success(store)
    assert totals is not None and totals.rejects == {"timeout": 1}
    drive_retry(store, Selection(frozenset({"timeout"})), "model.engine.hang_on=other")
    totals = read_success(store)
    assert totals is not None and totals.rejects == {}
