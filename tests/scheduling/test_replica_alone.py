"""A replica after crashes: a unit alone in its engine, and an engine that hangs."""

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

# Far longer than anything here takes: a test that hangs must fail, not stop the others.
TIMEOUT_S = 20


def ignore(*_: Any) -> None:
    """A callback that does nothing."""


def unit_of(*texts: str) -> pa.Table:
    return rendered(FakeTokenizer().encode_texts(texts))


class WatchedEngine(FakeEngine):
    """Records which prompts, by their first word, share the engine; its steps can be held back."""

    def __init__(self) -> None:
        super().__init__(FakeSettings(max_num_seqs=8))
        self.may_step = threading.Event()
        self.entered: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.together: list[frozenset[str]] = []
        self._inside: dict[int, str] = {}

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self._inside[key] = text_of(request.prompt_token_ids).split()[0]
        self.together.append(frozenset(self._inside.values()))
        self.entered.put(self._inside[key])

    def step(self) -> Sequence[Completion]:
        assert self.may_step.wait(TIMEOUT_S)
        ended = super().step()
        for completion in ended:
            del self._inside[completion.key]
        return ended


class HalvingSearch:
    """A search that returns half of the remaining rows each time."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, ...]] = []

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        self.groups.append(tuple(unanswered[: (len(unanswered) + 1) // 2]))
        return self.groups[-1]

    def survived(self) -> None:
        """There are no suspects here."""


def answer_alone(replica: Replica, unit: pa.Table, poison: Sequence[int] = ()) -> AnsweredUnit:
    return replica.answer_alone(unit, frozenset(poison), HalvingSearch())


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.001)


def in_background(call: Callable[..., AnsweredUnit], *arguments: Any) -> Future[AnsweredUnit]:
    """The call's result, in a daemon thread: one that hangs must not stop the tests."""
    future: Future[AnsweredUnit] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except (RuntimeError, TimeoutError) as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# Alone in the engine.


def test_a_unit_runs_alone_once_the_engine_is_empty_and_before_later_units() -> None:
    """It waits for the units in the engine; units submitted after it wait for it."""
    engine = WatchedEngine()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    before = in_background(replica.answer, unit_of("before 1", "before 2"))
    assert [engine.entered.get(timeout=TIMEOUT_S) for _ in range(2)] == ["before"] * 2
    assert not replica.is_exclusive
    suspects = unit_of("suspect 1", "suspect 2", "suspect 3")
    suspect = in_background(answer_alone, replica, suspects)
    wait_until(lambda: replica.is_exclusive)
    later = in_background(replica.answer, unit_of("later"))
    engine.may_step.set()
    for future in (before, suspect, later):
        assert future.result(TIMEOUT_S).rows.column("error").null_count
    order = [engine.entered.get(timeout=TIMEOUT_S) for _ in range(4)]
    assert order == ["suspect", "suspect", "suspect", "later"]
    assert frozenset({"suspect", "before"}) not in engine.together
    assert {names for names in engine.together if "suspect" in names} == {frozenset({"suspect"})}


def test_a_unit_that_runs_alone_never_shares_the_engine() -> None:
    """Of many callers at once, each gets its rows, and those that run alone share with none."""
    engine = WatchedEngine()
    engine.may_step.set()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    units = [
        unit_of(f"{kind}{number} x", f"{kind}{number} y") for number in range(8) for kind in "as"
    ]
    with ThreadPoolExecutor(len(units)) as callers:
        futures = [
            callers.submit(answer_alone if number % 2 else replica.answer, *arguments)
            for number, unit in enumerate(units)
            for arguments in [(replica, unit) if number % 2 else (unit,)]
        ]
        assert all(future.result(TIMEOUT_S).rows.num_rows == 2 for future in futures)
    for names in engine.together:
        assert len(names) == 1 or not any(name.startswith("s") for name in names)


def test_rows_run_in_the_groups_of_the_search_and_come_back_in_order() -> None:
    """Groups are run until all rows are answered; the answers are those of a normal run."""
    engine = FakeEngine(FakeSettings())
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    unit = unit_of(*(f"row {number}" for number in range(7)))
    search = HalvingSearch()
    rows = replica.answer_alone(unit, frozenset(), search).rows
    assert [len(group) for group in search.groups] == [4, 2, 1]
    assert rows.equals(replica.answer(unit).rows)


def test_poison_rows_are_rejected_without_being_sent() -> None:
    """Rows that have crashed engines are not put into another one."""
    engine = WatchedEngine()
    engine.may_step.set()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    rows = answer_alone(replica, unit_of("a", "b", "c"), [1]).rows
    errors = rows.column("error").to_pylist()
    assert [error and error["class"] for error in errors] == [None, "engine_crash", None]
    assert rows.column("num_input_tokens").to_pylist()[1] is None
    assert [engine.entered.get(timeout=TIMEOUT_S) for _ in range(2)] == ["a", "c"]
    assert engine.entered.empty()


def test_a_unit_of_poison_rows_needs_no_engine() -> None:
    """If all rows are poison, nothing is run."""
    engine = WatchedEngine()
    replica = Replica(lambda: engine, row_tasks(), ignore, ignore)
    unit = unit_of("a", "b")
    assert answer_alone(replica, unit, [0, 1]).rows.column("error").null_count == 0


# An engine that hangs.


class HangingEngine(FakeEngine):
    """An engine whose steps end when `may_step` is set."""

    def __init__(self) -> None:
        super().__init__(FakeSettings())
        self.may_step = threading.Event()
        self.has_stepped = threading.Event()

    def step(self) -> Sequence[Completion]:
        self.may_step.wait()
        self.has_stepped.set()
        return super().step()


def test_a_step_that_hangs_is_a_crash() -> None:
    """If a step takes longer than a request may, the engine is given up; the error says why."""
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = Replica(HangingEngine, row_tasks(), ignore, crashes.put, timeout_s=0.2)
    in_background(replica.answer, unit_of("one"))
    crash = crashes.get(timeout=TIMEOUT_S)
    assert isinstance(crash, TimeoutError)
    assert "model.request_timeout_s" in str(crash)
    # A crash is reported once.
    with pytest.raises(queue.Empty):
        crashes.get(timeout=0.5)


def test_no_caller_waits_for_an_engine_that_hangs() -> None:
    """All callers get the error, those before it and later ones, even if the step ends one day."""
    engine = HangingEngine()
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = Replica(lambda: engine, row_tasks(), ignore, crashes.put, timeout_s=0.2)
    calls = [in_background(replica.answer, unit_of("one")) for _ in range(3)]
    assert isinstance(crashes.get(timeout=TIMEOUT_S), TimeoutError)
    engine.may_step.set()
    assert engine.has_stepped.wait(TIMEOUT_S)
    for call in [*calls, in_background(replica.answer, unit_of("later"))]:
        assert isinstance(call.exception(TIMEOUT_S), TimeoutError)
    assert crashes.empty()


def test_an_engine_that_has_crashed_does_not_hang_too() -> None:
    """The time limit of a step that crashed does not report a second crash."""
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    engine = FakeEngine(FakeSettings(crash_on="poison"))
    replica = Replica(lambda: engine, row_tasks(), ignore, crashes.put, timeout_s=0.2)
    call = in_background(replica.answer, unit_of("poison"))
    assert isinstance(call.exception(TIMEOUT_S), RuntimeError)
    assert isinstance(crashes.get(timeout=TIMEOUT_S), RuntimeError)
    with pytest.raises(queue.Empty):
        crashes.get(timeout=0.5)


def test_an_engine_that_makes_progress_may_take_long_for_a_unit() -> None:
    """Many short steps are not a hang, and neither is an engine without work."""
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    engine = FakeEngine(FakeSettings(max_num_seqs=1, step_s=0.02, output_tokens=2))
    # On a busy machine a step may take half a second longer.
    replica = Replica(lambda: engine, row_tasks(), ignore, crashes.put, timeout_s=1)
    unit = unit_of(*(f"row {number}" for number in range(30)))
    answered = replica.answer(unit)
    assert answered.seconds > 1
    assert answered.rows.column("error").null_count == 30
    with pytest.raises(queue.Empty):
        crashes.get(timeout=1.2)
