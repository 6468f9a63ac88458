"""One engine in one process, and the thread that drives it.

Callers hand in rendered units from any thread and wait; all their rows share the engine's batch.
Knows nothing of Ray.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, Protocol

import pyarrow as pa

from tokenmill.engine.base import Engine, EngineInfo
from tokenmill.reject import Reject, RejectClass
from tokenmill.scheduling.dedup.registry import RegistryUpdate
from tokenmill.scheduling.dedup.transport import RegistryConnection, Transport
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult, RowTasks
from tokenmill.tasks.unit_tables import answered_table

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

    news: RegistryUpdate | None


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
        on_load: Callable[[ReplicaLoad], None],
        on_death: Callable[[BaseException], None],
        timeout_s: float = math.inf,
        *,
        deduplicate: bool = True,
        ledger: RegistryConnection | None = None,
    ) -> None:
        self._tasks = tasks
        self._deduplicate = deduplicate
        self._timeout_s = timeout_s
        self._stepping_since: float | None = None
        self._gate = _Gate()
        self._on_load = on_load
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[_Unit | _Heard] = queue.SimpleQueue()
        self._courier = None if ledger is None else Transport(ledger, self._hear)
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

    def _hear(self, news: RegistryUpdate | None) -> None:
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
