"""The replica: many callers, one engine, and nobody left waiting when it dies."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from helpers.factories import job, rendered, row_tasks
from tokenmill.engine.base import EngineResources, EngineUsage
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.errors import UserError
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.stages.load import load_engine

SHARE = EngineResources(num_gpus=0, num_threads=1)
# Far more than anything here takes: what hangs must fail, not stop the tests.
TIMEOUT_S = 20


def ignore(*_: Any) -> None:
    """A callback for tests that are not about it."""


def fake_replica(
    fake: FakeEngine | None = None,
    on_load: Callable[[ReplicaLoad], None] = ignore,
    on_death: Callable[[BaseException], None] = ignore,
) -> Replica:
    engine = fake or FakeEngine(FakeSettings(max_num_seqs=4))
    return Replica(lambda: engine, row_tasks(), on_load, on_death)


def unit_of(*texts: str) -> pa.Table:
    return rendered(FakeTokenizer().encode_texts(texts))


def ask_in_background(replica: Replica, unit: pa.Table) -> Future[AnsweredUnit]:
    """The answer in a thread that nothing waits for: one that hangs must not stop the tests."""
    future: Future[AnsweredUnit] = Future()

    def ask() -> None:
        try:
            future.set_result(replica.answer(unit))
        except RuntimeError as error:
            future.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return future


def test_callers_at_once_get_their_own_rows_answered() -> None:
    """Twelve callers share one engine; each gets what it gets from an engine of its own."""
    units = [unit_of(*(f"{number} {row}" for row in range(number))) for number in range(12)]
    replica = fake_replica()
    with ThreadPoolExecutor(12) as callers:
        together = [
            future.result(TIMEOUT_S)
            for future in [callers.submit(replica.answer, unit) for unit in units]
        ]
    for unit, answered in zip(units, together, strict=True):
        assert answered.rows.equals(fake_replica().answer(unit).rows)
        assert answered.rows.num_rows == unit.num_rows
        assert answered.rows.column("error").null_count == unit.num_rows
        assert answered.seconds >= 0


def test_rejected_rows_stay_in_their_place() -> None:
    """A unit with rejects, or of rejects alone, comes back with all its rows."""
    reject = Reject(RejectClass.EMPTY_INPUT, "the prompt is empty")
    replica = fake_replica()
    mixed = replica.answer(rendered([reject, [1, 2], reject])).rows
    assert [error is None for error in mixed.column("error").to_pylist()] == [False, True, False]
    assert replica.answer(rendered([reject])).rows.num_rows == 1


def test_a_replica_tells_what_its_engine_is() -> None:
    """The engine's facts are there as soon as the replica is."""
    engine = FakeEngine(FakeSettings(max_model_len=99, max_num_seqs=3))
    assert fake_replica(engine).info == engine.info


def test_an_engine_that_cannot_load_raises_in_the_constructor() -> None:
    """The caller gets the engine's own error, and death is not reported."""
    deaths: list[BaseException] = []

    def load() -> FakeEngine:
        raise UserError("model.engine: no such thing")

    with pytest.raises(UserError, match="no such thing"):
        Replica(load, row_tasks(), ignore, deaths.append)
    assert deaths == []


class Stuck(FakeEngine):
    """An engine whose first step waits until it is let go, and then dies."""

    def __init__(self) -> None:
        super().__init__(FakeSettings(max_num_seqs=4))
        self.stepping = threading.Event()
        self.may_die = threading.Event()

    def step(self) -> Sequence[Completion]:
        self.stepping.set()
        assert self.may_die.wait(TIMEOUT_S)
        raise RuntimeError("CUDA error")


def assert_all_fail(futures: Sequence[Future[AnsweredUnit]]) -> None:
    for future in futures:
        with pytest.raises(RuntimeError, match="CUDA error"):
            future.result(TIMEOUT_S)


def test_a_dying_engine_is_told_and_nobody_waits_for_it() -> None:
    """Callers with rows in it, those behind them and those that come later all get the error."""
    engine = Stuck()
    deaths: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = fake_replica(engine, on_death=deaths.put)
    first = ask_in_background(replica, unit_of("in the engine"))
    assert engine.stepping.wait(TIMEOUT_S)
    behind = [ask_in_background(replica, unit_of("not yet in it")) for _ in range(3)]
    engine.may_die.set()
    assert str(deaths.get(timeout=TIMEOUT_S)) == "CUDA error"
    assert_all_fail([first, *behind])
    assert_all_fail([ask_in_background(replica, unit_of("too late"))])
    assert deaths.empty()


def test_a_death_is_told_before_the_callers_hear_of_it() -> None:
    """`on_death` comes first, so that it can end the process before a caller gives up its unit."""
    engine = Stuck()
    callers: list[Future[AnsweredUnit]] = []
    were_done: queue.SimpleQueue[bool] = queue.SimpleQueue()
    replica = fake_replica(engine, on_death=lambda _: were_done.put(callers[0].done()))
    callers.append(ask_in_background(replica, unit_of("one")))
    engine.may_die.set()
    assert were_done.get(timeout=TIMEOUT_S) is False
    assert_all_fail(callers)


def test_callers_get_the_engines_error_even_if_its_death_cannot_be_told() -> None:
    """A callback that fails, as where the driver is gone, leaves nobody waiting."""
    engine = Stuck()
    engine.may_die.set()

    def on_death(_: BaseException) -> None:
        raise SystemExit("nobody there")

    assert_all_fail([ask_in_background(fake_replica(engine, on_death=on_death), unit_of("one"))])


def test_a_prompt_that_kills_the_engine_is_a_death() -> None:
    """An engine may also die when it is given a request."""
    deaths: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = fake_replica(FakeEngine(FakeSettings(crash_on="poison")), on_death=deaths.put)
    future = ask_in_background(replica, unit_of("fine", "some poison"))
    with pytest.raises(RuntimeError, match="poison"):
        future.result(TIMEOUT_S)
    assert "poison" in str(deaths.get(timeout=TIMEOUT_S))


def test_the_load_is_reported_when_the_work_is_done() -> None:
    """After its last unit an idle replica has told all its tokens."""
    loads: queue.SimpleQueue[ReplicaLoad] = queue.SimpleQueue()
    answered = fake_replica(on_load=loads.put).answer(unit_of("one", "two"))
    num_input_tokens = sum(answered.rows.column("num_input_tokens").to_pylist())
    expected = ReplicaLoad(
        num_running=0,
        num_units=0,
        input_tokens=num_input_tokens,
        generated_tokens=sum(answered.rows.column("num_generated_tokens").to_pylist()),
        answered_rows=2,
        usage=EngineUsage(kv_cache_usage=0, prefix_tokens=num_input_tokens),
    )
    load = loads.get(timeout=TIMEOUT_S)
    while load != expected:
        load = loads.get(timeout=TIMEOUT_S)


@pytest.mark.parametrize("max_tokens", [3, None])
def test_the_engine_follows_the_job(max_tokens: int | None) -> None:
    """A job's fake engine has the job's settings and its longest answer, or none."""
    changes = {"model.engine": {"max_num_seqs": 5}, "sampling.max_tokens": max_tokens}
    engine = load_engine(job(changes), SHARE)
    tasks = row_tasks(job(changes).steps)
    answered = Replica(lambda: engine, tasks, ignore, ignore).answer(unit_of(*map(str, range(50))))
    longest = max(answered.rows.column("num_generated_tokens").to_pylist())
    assert engine.info.max_num_seqs == 5
    assert longest == 3 if max_tokens else longest > 8


def test_a_wrong_setting_is_found_before_an_engine_is_there() -> None:
    """Loading checks the job's engine arguments."""
    with pytest.raises(UserError, match=r"model\.engine\.max_seqs"):
        load_engine(job({"model.engine": {"max_seqs": 5}}), SHARE)
