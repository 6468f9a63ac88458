"""One replica as a Ray actor, and its connections to the coordinator."""

import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from tokenmill.cluster.connect import ANSWER_TIMEOUT_S
from tokenmill.engine.base import EngineResources
from tokenmill.errors import RunFailed, TokenmillError, root_cause
from tokenmill.job.job import Job
from tokenmill.scheduling.dedup.registry import Answered, RegistryUpdate
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.poison_rows import RunAdvice
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.stages.block import from_block, to_block
from tokenmill.stages.load import collect_seldom, load_engine, load_tasks
from tokenmill.stages.unit import with_facts
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import RowTasks


@dataclass(frozen=True, slots=True)
class _UnitJournal:
    """One unit's part of the board, which stands after the replica has died."""

    board: Any
    unit: int

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        group: Sequence[int] = ray.get(self.board.next_group.remote(self.unit, unanswered))
        return group

    def survived(self) -> None:
        ray.get(self.board.survived.remote(self.unit))


@dataclass(frozen=True, slots=True)
class RayRegistryConnection:
    """A replica's way to the ledger on the board."""

    board: Any
    replica: str

    def join(self, membership: str) -> bool:
        try:
            ray.get(self.board.join.remote(self.replica, membership), timeout=ANSWER_TIMEOUT_S)
        except RayError:
            return False
        return True

    def exchange(
        self,
        membership: str,
        asked: Sequence[bytes],
        answered: Sequence[Answered],
        patience_s: float,
    ) -> RegistryUpdate | None:
        # What it hands out is handed out once; so a call is not to be tried again unseen.
        call = self.board.exchange.options(max_task_retries=0)
        told = call.remote(self.replica, membership, asked, answered, patience_s)
        try:
            news: RegistryUpdate | None = ray.get(told, timeout=patience_s + ANSWER_TIMEOUT_S)
        except RayError:
            return None
        return news


def _threads_per_replica(job: Job) -> int:
    """This machine's cores, shared by the replicas that stand on it."""
    cores = len(os.sched_getaffinity(0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    return max(1, int(cores * nodes // max(nodes, job.model.max_replicas)))


@lru_cache(maxsize=1)
def loaded_tasks(job_json: str, storage_url: str) -> RowTasks:
    """The job's tasks, loaded once in a worker process: a tokenizer takes seconds."""
    job = Job.model_validate_json(job_json)
    tasks = load_tasks(job, open_store(storage_url, job.input.endpoint_url))
    collect_seldom()
    return tasks


@contextmanager
def failures_reported(board: Any) -> Iterator[None]:
    """Tell the board why a stage fails, before Ray wraps it."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, TokenmillError):
            cause = RunFailed(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        ray.get(board.failed.remote(cause))
        raise


class ReplicaActor:
    """One actor of the pool: several units at a time are inside of `__call__`."""

    def __init__(
        self, job: Job, storage_url: str, num_gpus: int, board: Any, exports_metrics: bool
    ) -> None:
        # A process number comes again, on another machine or later.
        self._name = name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._board = board

        has_others = job.model.deduplicate and job.model.max_replicas > 1

        def on_load(load: ReplicaLoad) -> None:
            board.report.remote(name, load)

        def on_death(error: BaseException) -> None:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            ray.get(board.died.remote(name, reason))
            # Only a new process is a sound engine; Ray starts one and sends the units again.
            os._exit(1)

        with failures_reported(board):
            num_threads = _threads_per_replica(job)
            share = EngineResources(num_gpus, num_threads, exports_metrics=exports_metrics)
            self._replica = Replica(
                load=lambda: load_engine(job, share),
                tasks=loaded_tasks(job.model_dump_json(), storage_url),
                timeout_s=job.model.request_timeout_s,
                deduplicate=job.model.deduplicate,
                ledger=RayRegistryConnection(board, name) if has_others else None,
                on_load=on_load,
                on_death=on_death,
            )
        on_load(ReplicaLoad(0, 0, 0, 0))

    def __call__(self, batch: pa.Table) -> pa.Table:
        parcels = []
        for position, rendered in from_block(batch):
            answered = self._answer(position, rendered)
            whole = with_facts(answered, rendered, self._replica.info, self._name)
            parcels.append(to_block(position, whole))
        return pa.concat_tables(parcels)

    def _answer(self, position: int, rendered: pa.Table) -> AnsweredUnit:
        advice: RunAdvice = ray.get(self._board.begin.remote(position, self._name))
        if advice.is_alone:
            journal = _UnitJournal(self._board, position)
            answered = self._replica.answer_alone(rendered, advice.condemned, journal)
        else:
            answered = self._replica.answer(rendered)
        self._board.end.remote(position)
        return answered
