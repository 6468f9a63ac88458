"""One engine in one process, and the thread that drives it.

Callers hand in rendered units from any thread and wait; all their rows share the engine's batch.
Knows nothing of Ray.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

import pyarrow as pa

from pipeline.adapters import adapter_arguments, fetch_adapters
from pipeline.columns import answered_table
from pipeline.courier import Courier, Line
from pipeline.engine import Engine, EngineInfo, MachineShare, VllmEngine, load_vllm
from pipeline.fake import FakeEngine, fake_settings
from pipeline.job import Job
from pipeline.ledger import News
from pipeline.models import fetch, read_config
from pipeline.pool_state import Load
from pipeline.quantized import cpu_arguments
from pipeline.scheduler import AnsweredRow, Scheduler, UnitInFlight
from pipeline.schema import Reject, RejectClass
from pipeline.tasks.base import SideModel
from pipeline.tasks.row import RowResult, RowTasks
from pipeline.team import EngineTeam, memory_shares

_REPORT_INTERVAL_S = 1.0
_CRASHED = AnsweredRow(
    RowResult({}, Reject(RejectClass.ENGINE_CRASH, "the engine dies of this row", attempts=1)),
    num_input_tokens=None,
    num_generated_tokens=None,
)


@dataclass(frozen=True, slots=True)
class AnsweredUnit:
    """A unit's rows with their answers, and the seconds from its submission to its last answer.

    `num_reused` counts its requests whose answers were those of others that asked the same.
    """

    rows: pa.Table
    seconds: float
    num_reused: int


def load_engine(job: Job, share: MachineShare) -> Engine:
    """The engine that the job asks for, started. Raises `UserError`."""
    beside = job.side_models
    # Tasks that name the same model share its engine: the first place loads it.
    first = {
        place: next(at for at, other in beside.items() if other == side)
        for place, side in beside.items()
    }
    distinct = {at: side for at, side in beside.items() if first[at] == at}
    memory = memory_shares(
        job.model.engine, {at: side.source.engine for at, side in distinct.items()}
    )
    engine = _load_own(job, replace(share, gpu_memory=memory[None]))
    if not beside:
        return engine
    loaded = {
        at: _load_beside(job, side, at, replace(share, gpu_memory=memory[at]))
        for at, side in distinct.items()
    }
    return EngineTeam(engine, {place: loaded[at] for place, at in first.items()})


def _load_own(job: Job, share: MachineShare) -> Engine:
    model = job.model
    if model.is_fake:
        return FakeEngine(fake_settings(model.engine))
    adapters = fetch_adapters(model)
    arguments = adapter_arguments(adapters, model.engine, on_cpu=not share.num_gpus)
    engine = _load_real(job, SideModel(model, job.runner), "model", arguments, share)
    engine.load_adapters(adapters)
    return engine


def _load_beside(job: Job, side: SideModel, place: str, share: MachineShare) -> Engine:
    if side.source.is_fake:
        return FakeEngine(fake_settings(side.source.engine, place))
    return _load_real(job, side, place, side.source.engine, share)


def _load_real(
    job: Job, side: SideModel, place: str, arguments: Mapping[str, Any], share: MachineShare
) -> VllmEngine:
    folder = fetch(side.source)
    if not share.num_gpus:
        arguments = cpu_arguments(read_config(folder), arguments, place)
    return load_vllm(folder, arguments, side.runner, job.params, share)


class Journal(Protocol):
    """What outlives the engine of a unit that runs alone (`suspects`)."""

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        """The rows to run now."""

    def survived(self) -> None:
        """They are answered, and the engine lives."""


class _Gate:
    """Many are inside at a time, or one alone, before whom nobody who comes later goes in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_inside = 0
        self._is_closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._num_inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
            self._changed.wait_for(lambda: not self._num_inside)
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._num_inside -= 1
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Unit:
    """A rendered unit, and who waits for it."""

    rendered: pa.Table
    future: Future[UnitInFlight]


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came from the ledger."""

    news: News | None


class Replica:
    """Owns an engine and the one thread that may touch it.

    The engine is loaded in that thread too: OpenMP gives each thread a team of its own, and only
    the loading thread's is bound to the cores. `on_load` is called about once a second while there
    is work; `on_death` when the engine has died, and then every call raises what it died of. What
    repeats is computed once by all replicas whose `ledger` is the same.
    """

    def __init__(  # noqa: PLR0913 - an engine, its work, and whom to tell
        self,
        load: Callable[[], Engine],
        tasks: RowTasks,
        on_load: Callable[[Load], None],
        on_death: Callable[[BaseException], None],
        timeout_s: float = math.inf,
        *,
        deduplicate: bool = True,
        ledger: Line | None = None,
    ) -> None:
        self._tasks = tasks
        self._deduplicate = deduplicate
        self._timeout_s = timeout_s
        self._stepping_since: float | None = None
        self._gate = _Gate()
        self._on_load = on_load
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[_Unit | _Heard] = queue.SimpleQueue()
        self._courier = None if ledger is None else Courier(ledger, self._hear)
        self._waiting: dict[int, Future[UnitInFlight]] = {}
        ready: Future[EngineInfo] = Future()
        threading.Thread(target=self._serve, args=(load, ready), name="engine", daemon=True).start()
        self.info = ready.result()

    def answer(self, rendered: pa.Table) -> AnsweredUnit:
        """Run a rendered unit through the engine, beside those of other callers."""
        with self._gate.shared():
            unit = self._run(rendered)
        return self._answered(rendered, unit.answers, unit.seconds, unit.num_reused)

    def answer_alone(
        self, rendered: pa.Table, condemned: frozenset[int], journal: Journal
    ) -> AnsweredUnit:
        """Run a unit with nothing beside it, in the groups of rows that the journal names.

        The rows that are `condemned` are not run: they have killed engines.
        """
        started_at = time.monotonic()
        answers: dict[int, AnsweredRow | None] = dict.fromkeys(condemned, _CRASHED)
        num_reused = 0
        with self._gate.alone():
            while left := [row for row in range(rendered.num_rows) if row not in answers]:
                group = journal.next_group(left)
                unit = self._run(rendered.take(pa.array(group, pa.int64())))
                journal.survived()
                num_reused += unit.num_reused
                answers.update(zip(group, unit.answers, strict=True))
        in_order = [answers[row] for row in range(rendered.num_rows)]
        return self._answered(rendered, in_order, time.monotonic() - started_at, num_reused)

    def _run(self, rendered: pa.Table) -> UnitInFlight:
        future: Future[UnitInFlight] = Future()
        self._inbox.put(_Unit(rendered, future))
        return future.result()

    def _hear(self, news: News | None) -> None:
        self._inbox.put(_Heard(news))

    def _answered(
        self,
        rendered: pa.Table,
        answers: Sequence[AnsweredRow | None],
        seconds: float,
        num_reused: int,
    ) -> AnsweredUnit:
        whole = [answer for answer in answers if answer is not None]
        rows = answered_table(rendered, whole, self._tasks.fields)
        return AnsweredUnit(rows, seconds, num_reused)

    def _serve(self, load: Callable[[], Engine], ready: Future[EngineInfo]) -> None:
        try:
            engine = load()
        except BaseException as error:  # noqa: BLE001 - handed to the constructor's thread
            ready.set_exception(error)
            return
        scheduler = Scheduler(
            engine,
            self._tasks,
            self._timeout_s,
            deduplicate=self._deduplicate,
            tell=None if self._courier is None else self._courier.tell,
        )
        if self._courier is not None:
            self._courier.start()
        ready.set_result(engine.info)
        if math.isfinite(self._timeout_s):
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        try:
            self._loop(scheduler)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the engine is dead
            try:
                self._on_death(error)
            finally:
                self._fail_all(error)

    def _loop(self, scheduler: Scheduler) -> None:
        reported_at = 0.0
        while True:
            self._take_what_came(scheduler)
            self._stepping_since = time.monotonic()
            finished = scheduler.step()
            self._stepping_since = None
            now = time.monotonic()
            load = scheduler.load
            # Told before its last unit goes on: who sees a run's end knows all that was done.
            if now - reported_at >= _REPORT_INTERVAL_S or not load.num_units:
                self._on_load(load)
                reported_at = now
            for unit in finished:
                self._waiting.pop(id(unit)).set_result(unit)

    def _watch(self) -> None:
        """Give the engine up when a single step takes longer than any request may."""
        stuck = threading.Event()
        while True:
            since = self._stepping_since
            waited_s = 0.0 if since is None else time.monotonic() - since
            if waited_s >= self._timeout_s:
                reason = f"it has not moved for {waited_s:,.0f} s (model.request_timeout_s)"
                self._on_death(TimeoutError(reason))
                return
            # Never set: a sleep until the present step, if it is one, would be too long.
            stuck.wait(self._timeout_s - waited_s)

    def _take_what_came(self, scheduler: Scheduler) -> None:
        """Submit units and hear the ledger; with nothing else to do, wait for them."""
        while not (scheduler.has_work and self._inbox.empty()):
            match self._inbox.get():
                case _Heard(news):
                    scheduler.hear(news)
                case _Unit(rendered, future):
                    self._waiting[id(scheduler.submit(rendered))] = future

    def _fail_all(self, error: BaseException) -> NoReturn:
        """Nobody waits for a dead engine: not those in it, not those that come later."""
        for future in self._waiting.values():
            future.set_exception(error)
        while True:
            came = self._inbox.get()
            if isinstance(came, _Unit):
                came.future.set_exception(error)
