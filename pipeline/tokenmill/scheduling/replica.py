"""One engine in this process, and the thread that drives it.

Callers pass rendered units from any thread and wait for the answers; the rows of all units share
the engine's batch. Knows nothing about Ray.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NoReturn, Protocol

import pyarrow as pa

from tokenmill.engine.base import Engine, EngineInfo
from tokenmill.reject import Reject, RejectClass
from tokenmill.scheduling.dedup.registry import RegistryUpdate
from tokenmill.scheduling.dedup.transport import RegistryConnection, Transport
from tokenmill.scheduling.gate import Gate
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult, RowTasks
from tokenmill.tasks.unit_tables import answered_table

_REPORT_INTERVAL_S = 1.0
_POISON = AnsweredRow(
    RowResult({}, Reject(RejectClass.ENGINE_CRASH, "this row crashes the engine", attempts=1))
)


@dataclass(frozen=True, slots=True)
class AnsweredUnit:
    """A unit's rows with their answers, and the seconds from its submission to its last answer.

    `num_reused` counts its requests that reused the answer of an equal request.
    """

    rows: pa.Table
    seconds: float
    num_reused: int


class UnitSearch(Protocol):
    """The search for poison rows in one unit (`PoisonSearch`), which outlives the engine."""

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        """Return the rows to run next."""

    def survived(self) -> None:
        """Record that the rows are answered and the engine has not crashed."""


@dataclass(frozen=True, slots=True)
class _Submission:
    """A rendered unit, and the future that its caller waits for."""

    rendered: pa.Table
    future: Future[UnitInFlight]


@dataclass(frozen=True, slots=True)
class _Received:
    """An update from the registry; None if the registry cannot be reached."""

    update: RegistryUpdate | None


class Replica:
    """Owns an engine and the only thread that uses it.

    The engine is also loaded in that thread: OpenMP gives each thread its own team of workers, and
    only the team of the loading thread is bound to the cores. `on_load` is called about once a
    second while there is work. `on_crash` is called once, when the engine has crashed or a step has
    taken longer than `timeout_s`; after that every call raises the same error. Replicas with
    connections to the same `registry` compute equal requests once.
    """

    def __init__(  # noqa: PLR0913 - an engine, its work and its callbacks
        self,
        load: Callable[[], Engine],
        tasks: RowTasks,
        on_load: Callable[[ReplicaLoad], None],
        on_crash: Callable[[BaseException], None],
        timeout_s: float = math.inf,
        *,
        deduplicate: bool = True,
        registry: RegistryConnection | None = None,
    ) -> None:
        self._tasks = tasks
        self._deduplicate = deduplicate
        self._timeout_s = timeout_s
        self._gate = Gate()
        self._on_load = on_load
        self._on_crash = on_crash
        self._inbox: queue.SimpleQueue[_Submission | _Received] = queue.SimpleQueue()
        self._transport = None if registry is None else Transport(registry, self._receive)
        self._waiting: dict[int, Future[UnitInFlight]] = {}
        # Guards the two below: the engine's thread and the watchdog must not both report a crash.
        self._lock = threading.Lock()
        self._stepping_since: float | None = None
        self._has_crashed = False
        ready: Future[EngineInfo] = Future()
        threading.Thread(target=self._serve, args=(load, ready), name="engine", daemon=True).start()
        self.info = ready.result()

    @property
    def is_exclusive(self) -> bool:
        """Whether a unit runs alone, or waits to: units submitted now run after it."""
        return self._gate.is_closed

    def answer(self, rendered: pa.Table) -> AnsweredUnit:
        """Run a rendered unit through the engine, together with those of other callers."""
        with self._gate.shared():
            unit = self._run(rendered)
        return self._answered(rendered, unit.answers, unit.seconds, unit.num_reused)

    def answer_alone(
        self, rendered: pa.Table, poison: frozenset[int], search: UnitSearch
    ) -> AnsweredUnit:
        """Run a unit with nothing else in the engine, in the groups of rows that `search` returns.

        The `poison` rows are rejected without being run: they have crashed engines.
        """
        started_at = time.monotonic()
        answers: dict[int, AnsweredRow | None] = dict.fromkeys(poison, _POISON)
        num_reused = 0
        with self._gate.alone():
            while unanswered := [row for row in range(rendered.num_rows) if row not in answers]:
                group = search.next_group(unanswered)
                unit = self._run(rendered.take(pa.array(group, pa.int64())))
                search.survived()
                num_reused += unit.num_reused
                answers.update(zip(group, unit.answers, strict=True))
        in_order = [answers[row] for row in range(rendered.num_rows)]
        return self._answered(rendered, in_order, time.monotonic() - started_at, num_reused)

    def _run(self, rendered: pa.Table) -> UnitInFlight:
        future: Future[UnitInFlight] = Future()
        self._inbox.put(_Submission(rendered, future))
        return future.result()

    def _receive(self, update: RegistryUpdate | None) -> None:
        self._inbox.put(_Received(update))

    def _answered(
        self,
        rendered: pa.Table,
        answers: Sequence[AnsweredRow | None],
        seconds: float,
        num_reused: int,
    ) -> AnsweredUnit:
        complete = [answer for answer in answers if answer is not None]
        rows = answered_table(rendered, complete, self._tasks.fields)
        return AnsweredUnit(rows, seconds, num_reused)

    def _serve(self, load: Callable[[], Engine], ready: Future[EngineInfo]) -> None:
        try:
            engine = load()
        except BaseException as error:  # noqa: BLE001 - raised again by the constructor
            ready.set_exception(error)
            return
        scheduler = Scheduler(
            engine,
            self._tasks,
            self._timeout_s,
            deduplicate=self._deduplicate,
            send_claims=None if self._transport is None else self._transport.send,
        )
        if self._transport is not None:
            self._transport.start()
        ready.set_result(engine.info)
        if math.isfinite(self._timeout_s):
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        try:
            self._loop(scheduler)
        except BaseException as error:  # noqa: BLE001 - after any error the engine is unusable
            if self._crash():
                self._fail(error)

    def _loop(self, scheduler: Scheduler) -> None:
        reported_at = 0.0
        while True:
            self._take_inbox(scheduler)
            self._stepping_since = time.monotonic()
            finished = scheduler.step()
            with self._lock:
                self._stepping_since = None
                if self._has_crashed:
                    # The watchdog has given the engine up in the meantime.
                    return
            now = time.monotonic()
            load = scheduler.load
            # Before the last unit is handed back, so that the run's last report has all the work.
            if now - reported_at >= _REPORT_INTERVAL_S or not load.num_units:
                self._on_load(load)
                reported_at = now
            for unit in finished:
                self._waiting.pop(id(unit)).set_result(unit)

    def _take_inbox(self, scheduler: Scheduler) -> None:
        """Submit units and pass updates on; wait for them if there is nothing else to do."""
        while not (scheduler.has_work and self._inbox.empty()):
            match self._inbox.get():
                case _Received(update):
                    scheduler.receive(update)
                case _Submission(rendered, future):
                    self._waiting[id(scheduler.submit(rendered))] = future

    def _watch(self) -> None:
        """Give the engine up when a single step takes longer than any request may."""
        pause = threading.Event()
        while True:
            with self._lock:
                if self._has_crashed:
                    return
                since = self._stepping_since
                waited_s = 0.0 if since is None else time.monotonic() - since
                self._has_crashed = is_stuck = waited_s >= self._timeout_s
            if is_stuck:
                reason = f"a step takes longer than {waited_s:,.0f} s (model.request_timeout_s)"
                self._fail(TimeoutError(reason))
            # Nothing sets the event; it ends the pause when the current step's time is up.
            pause.wait(self._timeout_s - waited_s)

    def _crash(self) -> bool:
        """Record that the engine has crashed. False if this was known already."""
        with self._lock:
            is_first, self._has_crashed = not self._has_crashed, True
        return is_first

    def _fail(self, error: BaseException) -> NoReturn:
        """Report the crash, then fail all callers: those that wait and those still to come."""
        try:
            self._on_crash(error)
        finally:
            for future in self._waiting.values():
                future.set_exception(error)
            while True:
                item = self._inbox.get()
                if isinstance(item, _Submission):
                    item.future.set_exception(error)
