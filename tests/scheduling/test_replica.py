"""The replica: many callers, one engine, and no caller left waiting when the engine crashes."""

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

RESOURCES = EngineResources(num_gpus=0, num_threads=1)
# Far longer than anything here takes: a test that hangs must fail, not stop the others.
TIMEOUT_S = 20


def ignore(*_: Any) -> None:
    """A callback that does nothing."""


def fake_replica(
    fake: FakeEngine | None = None,
    on_load: Callable[[ReplicaLoad], None] = ignore,
    on_crash: Callable[[BaseException], None] = ignore,
) -> Replica:
    engine = fake or FakeEngine(FakeSettings(max_num_seqs=4))
    return Replica(lambda: engine, row_tasks(), on_load, on_crash)


def unit_of(*texts: str) -> pa.Table:
    return rendered(FakeTokenizer().encode_texts(texts))


def answer_in_background(replica: Replica, unit: pa.Table) -> Future[AnsweredUnit]:
    """The answer, in a daemon thread: one that hangs must not stop the tests."""
    future: Future[AnsweredUnit] = Future()

    def answer() -> None:
        try:
            future.set_result(replica.answer(unit))
        except RuntimeError as error:
            future.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    return future


def test_callers_at_once_get_their_own_rows_answered() -> None:
    """Twelve callers share one engine; each gets the answers that its own engine would give."""
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


def test_rejected_rows_keep_their_position() -> None:
    """A unit with rejects, or of rejects only, comes back with all its rows."""
    reject = Reject(RejectClass.EMPTY_INPUT, "the prompt is empty")
    replica = fake_replica()
    mixed = replica.answer(rendered([reject, [1, 2], reject])).rows
    assert [error is None for error in mixed.column("error").to_pylist()] == [False, True, False]
    assert replica.answer(rendered([reject])).rows.num_rows == 1


def test_a_replica_has_the_facts_of_its_engine() -> None:
    """They are available as soon as the replica is."""
    engine = FakeEngine(FakeSettings(max_model_len=99, max_num_seqs=3))
    assert fake_replica(engine).info == engine.info


def test_an_engine_that_cannot_load_raises_in_the_constructor() -> None:
    """The caller gets the engine's own error, which is not reported as a crash."""
    crashes: list[BaseException] = []

    def load() -> FakeEngine:
        raise UserError("model.engine: no such thing")

    with pytest.raises(UserError, match="no such thing"):
        Replica(load, row_tasks(), ignore, crashes.append)
    assert crashes == []


class CrashingEngine(FakeEngine):
    """An engine whose first step waits for `may_crash`, and then crashes."""

    def __init__(self) -> None:
        super().__init__(FakeSettings(max_num_seqs=4))
        self.stepping = threading.Event()
        self.may_crash = threading.Event()

    def step(self) -> Sequence[Completion]:
        self.stepping.set()
        assert self.may_crash.wait(TIMEOUT_S)
        raise RuntimeError("CUDA error")


def assert_all_fail(futures: Sequence[Future[AnsweredUnit]]) -> None:
    for future in futures:
        with pytest.raises(RuntimeError, match="CUDA error"):
            future.result(TIMEOUT_S)


def test_a_crash_is_reported_and_fails_all_callers() -> None:
    """Callers with rows in the engine, queued callers and later callers all get the error."""
    engine = CrashingEngine()
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = fake_replica(engine, on_crash=crashes.put)
    first = answer_in_background(replica, unit_of("in the engine"))
    assert engine.stepping.wait(TIMEOUT_S)
    queued = [answer_in_background(replica, unit_of("not yet in it")) for _ in range(3)]
    engine.may_crash.set()
    assert str(crashes.get(timeout=TIMEOUT_S)) == "CUDA error"
    assert_all_fail([first, *queued])
    assert_all_fail([answer_in_background(replica, unit_of("too late"))])
    assert crashes.empty()


def test_a_crash_is_reported_before_callers_get_the_error() -> None:
    """`on_crash` comes first, so that it can end the process before a caller drops its unit."""
    engine = CrashingEngine()
    callers: list[Future[AnsweredUnit]] = []
    were_done: queue.SimpleQueue[bool] = queue.SimpleQueue()
    replica = fake_replica(engine, on_crash=lambda _: were_done.put(callers[0].done()))
    callers.append(answer_in_background(replica, unit_of("one")))
    engine.may_crash.set()
    assert were_done.get(timeout=TIMEOUT_S) is False
    assert_all_fail(callers)


def test_callers_get_the_error_even_if_the_crash_cannot_be_reported() -> None:
    """If `on_crash` raises, for example because the driver is gone, no caller is left waiting."""
    engine = CrashingEngine()
    engine.may_crash.set()

    def on_crash(_: BaseException) -> None:
        raise SystemExit("no driver")

    replica = fake_replica(engine, on_crash=on_crash)
    assert_all_fail([answer_in_background(replica, unit_of("one"))])


def test_a_prompt_that_crashes_the_engine_is_a_crash() -> None:
    """An engine may also crash when a request is added."""
    crashes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    replica = fake_replica(FakeEngine(FakeSettings(crash_on="poison")), on_crash=crashes.put)
    future = answer_in_background(replica, unit_of("fine", "some poison"))
    with pytest.raises(RuntimeError, match="poison"):
        future.result(TIMEOUT_S)
    assert "poison" in str(crashes.get(timeout=TIMEOUT_S))


def test_the_load_is_reported_when_the_work_is_done() -> None:
    """After its last unit, an idle replica has reported all its tokens."""
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
    """A job's fake engine has the job's settings, and the job's max_tokens or none."""
    changes = {"model.engine": {"max_num_seqs": 5}, "sampling.max_tokens": max_tokens}
    engine = load_engine(job(changes), RESOURCES)
    tasks = row_tasks(job(changes).steps)
    answered = Replica(lambda: engine, tasks, ignore, ignore).answer(unit_of(*map(str, range(50))))
    longest = max(answered.rows.column("num_generated_tokens").to_pylist())
    assert engine.info.max_num_seqs == 5
    assert longest == 3 if max_tokens else longest > 8


def test_a_wrong_setting_is_found_before_the_engine_is_loaded() -> None:
    """Loading checks the job's engine arguments."""
    with pytest.raises(UserError, match=r"model\.engine\.max_seqs"):
        load_engine(job({"model.engine": {"max_seqs": 5}}), RESOURCES)
