"""One engine in one process, and the thread that drives it.

Callers hand in rendered units from any thread and wait; all their rows share the engine's batch.
Knows nothing of Ray.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NoReturn

import pyarrow as pa

from pipeline.columns import answered_table
from pipeline.engine import Engine, EngineInfo, MachineShare, load_vllm
from pipeline.fake import FakeEngine, fake_settings
from pipeline.job import Job
from pipeline.models import fetch
from pipeline.scheduler import Load, Scheduler, UnitInFlight
from pipeline.section import ModelSource
from pipeline.tasks.base import Runner
from pipeline.tasks.row import RowTasks
from pipeline.team import EngineTeam, memory_shares

_REPORT_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class AnsweredUnit:
    """A unit's rows with their answers, and the seconds from its submission to its last answer."""

    rows: pa.Table
    seconds: float


def load_engine(job: Job, share: MachineShare) -> Engine:
    """The engine that the job asks for, started. Raises `UserError`."""
    beside = job.side_models
    memory = memory_shares(
        job.model.engine, {at: side.source.engine for at, side in beside.items()}
    )

    def load(model: ModelSource, runner: Runner, place: str | None) -> Engine:
        if model.is_fake:
            return FakeEngine(fake_settings(model.engine, place or "model"))
        own_share = replace(share, gpu_memory=memory[place])
        return load_vllm(fetch(model), model.engine, runner, job.params, own_share)

    engine = load(job.model, job.runner, None)
    if not beside:
        return engine
    return EngineTeam(
        engine, {at: load(side.source, side.runner, at) for at, side in beside.items()}
    )


class Replica:
    """Owns an engine and the one thread that may touch it.

    The engine is loaded in that thread too: OpenMP gives each thread a team of its own, and only
    the loading thread's is bound to the cores. `on_load` is called about once a second while there
    is work; `on_death` when the engine has died, and then every call raises what it died of.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        tasks: RowTasks,
        on_load: Callable[[Load], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._tasks = tasks
        self._on_load = on_load
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[tuple[pa.Table, Future[UnitInFlight]]] = queue.SimpleQueue()
        self._waiting: dict[int, Future[UnitInFlight]] = {}
        ready: Future[EngineInfo] = Future()
        threading.Thread(target=self._serve, args=(load, ready), name="engine", daemon=True).start()
        self.info = ready.result()

    def answer(self, rendered: pa.Table) -> AnsweredUnit:
        """Run a rendered unit through the engine, beside those of other callers."""
        future: Future[UnitInFlight] = Future()
        self._inbox.put((rendered, future))
        unit = future.result()
        answers = [answer for answer in unit.answers if answer is not None]
        table = answered_table(rendered, answers, self._tasks.fields)
        return AnsweredUnit(table, unit.seconds)

    def _serve(self, load: Callable[[], Engine], ready: Future[EngineInfo]) -> None:
        try:
            engine = load()
        except BaseException as error:  # noqa: BLE001 - handed to the constructor's thread
            ready.set_exception(error)
            return
        ready.set_result(engine.info)
        scheduler = Scheduler(engine, self._tasks)
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
            self._take_new_units(scheduler)
            for unit in scheduler.step():
                self._waiting.pop(id(unit)).set_result(unit)
            now = time.monotonic()
            if now - reported_at >= _REPORT_INTERVAL_S or not scheduler.has_work:
                self._on_load(scheduler.load)
                reported_at = now

    def _take_new_units(self, scheduler: Scheduler) -> None:
        """Submit what has come in; with nothing else to do, wait for it."""
        while not (scheduler.has_work and self._inbox.empty()):
            rendered, future = self._inbox.get()
            unit = scheduler.submit(rendered)
            self._waiting[id(unit)] = future

    def _fail_all(self, error: BaseException) -> NoReturn:
        """Nobody waits for a dead engine: not those in it, not those that come later."""
        for future in self._waiting.values():
            future.set_exception(error)
        while True:
            _, future = self._inbox.get()
            future.set_exception(error)
