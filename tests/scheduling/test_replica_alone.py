"""A replica on bad days: a unit alone in its engine, and an engine that no longer moves."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from helpers.factories import rendered, row_tasks, text_of
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.request import Completion, Request
from tokenmill.scheduling.replica import AnsweredUnit, Replica

# Far more than anything here takes: what hangs must fail, not stop the tests.
TIMEOUT_S = 20


def ignore(*_: Any) -> None:
    """A callback for tests that are not about it."""


def unit_of(*texts: str) -> pa.Table:
    return rendered(FakeTokenizer().encode_texts(texts))


class Watched(FakeEngine):
    """Notes with each request what else is in the engine; its steps may be held back."""

    def __init__(self) -> None:
        super().__init__(FakeSettings(max_num_seqs=8))
        self.may_step = threading.Event()
        self.entered: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.company: list[frozenset[str]] = []
        self._inside: dict[int, str] = {}

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self._inside[key] = text_of(request.prompt_token_ids).split()[0]
        self.company.append(frozenset(self._inside.values()))
        self.entered.put(self._inside[key])

    def step(self) -> Sequence[Completion]:
        assert self.may_step.wait(TIMEOUT_S)
        ended = super().step()
        for completion in ended:
            del self._inside[completion.key]
        return ended


class Halves:
    """A journal that names half of the rows that are left."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, ...]] = []

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        self.groups.append(tuple(unanswered[: (len(unanswered) + 1) // 2]))
        return self.groups[-1]

    def survived(self) -> None:
        """Nothing is under suspicion here."""


def alone(replica: Replica, unit: pa.Table, condemned: Sequence[int] = ()) -> AnsweredUnit:
    return replica.answer_alone(unit, frozenset(condemned), Halves())


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.001)


def in_background(deed: Callable[..., AnsweredUnit], *arguments: Any) -> Future[AnsweredUnit]:
    """In a thread that nothing waits for: one that hangs must not stop the tests."""
    future: Future[AnsweredUnit] = Future()
    thread = threading.Thread(target=lambda: future.set_result(deed(*arguments)), daemon=True)
    thread.start()
    return future


# Alone in the engine.


def test_a_unit_runs_alone_once_the_engine_is_empty_and_before_who_comes_later() -> None:
    """It waits for those that are inside; those that come after it wait for it."""
    engine = Watched()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    before = in_background(replica.answer, unit_of("before 1", "before 2"))
    assert [engine.entered.get(timeout=TIMEOUT_S) for _ in range(2)] == ["before"] * 2
    suspect = in_background(alone, replica, unit_of("suspect 1", "suspect 2", "suspect 3"))
    wait_until(lambda: replica._gate._is_closed)
    later = in_background(replica.answer, unit_of("later"))
    engine.may_step.set()
    for future in (before, suspect, later):
        assert future.result(TIMEOUT_S).rows.column("error").null_count
    order = [engine.entered.get(timeout=TIMEOUT_S) for _ in range(4)]
    assert order == ["suspect", "suspect", "suspect", "later"]
    assert frozenset({"suspect", "before"}) not in engine.company
    assert {names for names in engine.company if "suspect" in names} == {frozenset({"suspect"})}


def test_whoever_comes_when_a_unit_that_is_alone_has_company_never() -> None:
    """Of many callers at once, some of them alone, each gets its rows and the alone no company."""
    engine = Watched()
    engine.may_step.set()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    units = [
        unit_of(f"{kind}{number} x", f"{kind}{number} y") for number in range(8) for kind in "as"
    ]
    with ThreadPoolExecutor(len(units)) as callers:
        deeds = [
            callers.submit(alone if number % 2 else replica.answer, *arguments)
            for number, unit in enumerate(units)
            for arguments in [(replica, unit) if number % 2 else (unit,)]
        ]
        assert all(deed.result(TIMEOUT_S).rows.num_rows == 2 for deed in deeds)
    for names in engine.company:
        assert len(names) == 1 or not any(name.startswith("s") for name in names)


def test_rows_run_in_the_journals_groups_and_come_back_in_order() -> None:
    """Groups are asked for until all rows have answers, which are those of a run in company."""
    engine = FakeEngine(FakeSettings())
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    unit = unit_of(*(f"row {number}" for number in range(7)))
    journal = Halves()
    rows = replica.answer_alone(unit, frozenset(), journal).rows
    assert [len(group) for group in journal.groups] == [4, 2, 1]
    assert rows.equals(replica.answer(unit).rows)


def test_condemned_rows_are_rejects_that_were_never_sent() -> None:
    """Rows that have killed an engine are not put into another one."""
    engine = Watched()
    engine.may_step.set()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    rows = alone(replica, unit_of("a", "b", "c"), [1]).rows
    errors = rows.column("error").to_pylist()
    assert [error and error["class"] for error in errors] == [None, "engine_crash", None]
    assert rows.column("num_input_tokens").to_pylist()[1] is None
    assert [engine.entered.get(timeout=TIMEOUT_S) for _ in range(2)] == ["a", "c"]
    assert engine.entered.empty()


def test_a_unit_of_condemned_rows_needs_no_engine() -> None:
    """With all rows condemned nobody is asked anything."""
    engine = Watched()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    assert alone(replica, unit_of("a", "b"), [0, 1]).rows.column("error").null_count == 0


# An engine that no longer moves.


class Hanging(FakeEngine):
    """An engine whose step never ends."""

    def step(self) -> Sequence[Completion]:
        threading.Event().wait()
        raise AssertionError


def test_a_step_that_hangs_is_a_death() -> None:
    """When a step takes longer than any request may, the engine is given up, with the setting."""
    deaths: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    engine = Hanging(FakeSettings())
    replica = Replica(lambda: engine, row_tasks(), ignore, deaths.put, timeout_s=0.2)
    in_background(replica.answer, unit_of("one"))
    death = deaths.get(timeout=TIMEOUT_S)
    assert isinstance(death, TimeoutError)
    assert "model.request_timeout_s" in str(death)
    # A death is told once.
    with pytest.raises(queue.Empty):
        deaths.get(timeout=0.5)


def test_an_engine_that_moves_lives_however_long_a_unit_takes() -> None:
    """Many short steps are no hanging one, and an engine without work hangs in none."""
    deaths: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    engine = FakeEngine(FakeSettings(max_num_seqs=1, step_s=0.02, output_tokens=2))
    # A busy machine may hold a step up for half a second.
    replica = Replica(lambda: engine, row_tasks(), ignore, deaths.put, timeout_s=1)
    unit = unit_of(*(f"row {number}" for number in range(30)))
    answered = replica.answer(unit)
    assert answered.seconds > 1
    assert answered.rows.column("error").null_count == 30
    with pytest.raises(queue.Empty):
        deaths.get(timeout=1.2)
