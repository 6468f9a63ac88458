"""An executor of the chaos runs: units in random order, three at a time, around one replica.

The replica's engine is replaced when it crashes, as Ray replaces an actor.
"""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.engine.base import EngineResources
from tokenmill.errors import RunFailed
from tokenmill.job.job import Job
from tokenmill.observe.metrics import NoRecorder
from tokenmill.output.commit import Commit
from tokenmill.scheduling.load import PoolState
from tokenmill.scheduling.poison_rows import PoisonSearch
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.load import load_engine, load_tasks
from tokenmill.stages.notes import is_skipped
from tokenmill.stages.unit import commit_unit, render_unit, with_notes

_THREADS = 3


@dataclass(frozen=True)
class ThreadedExecutor:
    """Starts `ThreadedExecution`s: answered units are noted in `folder`, `draw` shuffles."""

    folder: Path
    draw: random.Random
    is_local = True
    start_stage = "starting"
    has_gpus = False

    def warnings(self) -> Sequence[str]:
        return ()

    def start(self, job: Job) -> "ThreadedExecution":
        return ThreadedExecution(job, self.folder, self.draw)


class _Journal:
    def __init__(self, suspects: PoisonSearch, unit: int) -> None:
        self._suspects, self._unit = suspects, unit

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        return self._suspects.next_group(self._unit, unanswered)

    def survived(self) -> None:
        self._suspects.survived(self._unit)


class ThreadedExecution:
    """Three units at a time around one replica in this process."""

    def __init__(self, job: Job, folder: Path, draw: random.Random) -> None:
        self._folder, self._draw = folder, draw
        self.recorder = NoRecorder()
        self._job = job
        self._tasks = load_tasks(job)
        self._suspects = PoisonSearch()
        self._deaths: set[int] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._replica = self._new_replica()

    def _new_replica(self) -> Replica:
        return Replica(
            load=lambda: load_engine(self._job, EngineResources(0, 1)),
            tasks=self._tasks,
            on_load=lambda _: None,
            on_crash=lambda _: None,
        )

    def state(self) -> PoolState:
        condemned = self._suspects.num_poison
        return PoolState({}, len(self._deaths), "a fault of the test", condemned)

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        positions = list(range(len(spec.units)))
        self._draw.shuffle(positions)
        with ThreadPoolExecutor(_THREADS) as threads:
            futures = [threads.submit(self._unit, spec, at) for at in positions]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _unit(self, spec: RunSpec, position: int) -> Commit:
        if self._stopped.is_set():
            raise RunFailed("stopped")
        rendered = render_unit(spec, position, self._tasks)
        if is_skipped(rendered):
            return commit_unit(spec, position, rendered)
        answered = self._answer(position, rendered)
        with open(self._folder / "answered", "a") as file:
            file.write(f"{spec.units[position].key}\n")
        rows = with_notes(answered, rendered, self._replica.info, str(os.getpid()))
        return commit_unit(spec, position, rows)

    def _answer(self, position: int, rendered: Any) -> AnsweredUnit:
        while True:
            with self._lock:
                replica = self._replica
                advice = self._suspects.begin(position)
            try:
                if advice.is_alone:
                    journal = _Journal(self._suspects, position)
                    answered = replica.answer_alone(rendered, advice.poison, journal)
                else:
                    answered = replica.answer(rendered)
            except RuntimeError:
                with self._lock:
                    self._deaths.add(id(replica))
                    if self._replica is replica:
                        self._replica = self._new_replica()
                continue
            with self._lock:
                self._suspects.end(position)
            return answered

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        """Nothing to release: all runs in this process."""
