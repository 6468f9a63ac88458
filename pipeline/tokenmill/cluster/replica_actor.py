"""One replica as a Ray actor, and its connections to the coordinator."""

import os
import socket
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from tokenmill.cluster.coordinator import ANSWER_TIMEOUT_S
from tokenmill.cluster.ray_stages import PickledSpec, failures_reported, loaded_tasks, unpickled
from tokenmill.engine.base import Engine, EngineResources
from tokenmill.errors import RunFailed, TokenmillError
from tokenmill.job.job import Job
from tokenmill.scheduling.crashes import crash_reason, remedy
from tokenmill.scheduling.dedup.registry import PackedAnswer, RegistryUpdate
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.poison_rows import RunAdvice
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.stages.block import from_block, to_block
from tokenmill.stages.load import load_engine
from tokenmill.stages.notes import SKIPPED_UNIT, is_skipped
from tokenmill.stages.unit import is_done_elsewhere, with_notes


@dataclass(frozen=True, slots=True)
class _UnitJournal:
    """The coordinator's record of one unit, which outlives the replica."""

    coordinator: Any
    unit: int

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        group: Sequence[int] = ray.get(self.coordinator.next_group.remote(self.unit, unanswered))
        return group

    def survived(self) -> None:
        ray.get(self.coordinator.survived.remote(self.unit))


@dataclass(frozen=True, slots=True)
class RayRegistryConnection:
    """A replica's connection to the registry in the coordinator."""

    coordinator: Any
    replica: str

    def join(self, membership: str) -> bool:
        joined = self.coordinator.join.remote(self.replica, membership)
        try:
            ray.get(joined, timeout=ANSWER_TIMEOUT_S)
        except RayError:
            return False
        return True

    def exchange(
        self,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
        timeout_s: float,
    ) -> RegistryUpdate | None:
        # The registry hands out each update once, so Ray must not repeat a call by itself.
        call = self.coordinator.exchange.options(max_task_retries=0)
        result = call.remote(self.replica, membership, claims, answers, timeout_s)
        try:
            update: RegistryUpdate | None = ray.get(result, timeout=timeout_s + ANSWER_TIMEOUT_S)
        except RayError:
            return None
        return update


def _threads_per_replica(job: Job) -> int:
    """This machine's cores, shared by the replicas on it."""
    cores = len(os.sched_getaffinity(0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    return max(1, int(cores * nodes // max(nodes, job.model.max_replicas)))


def _loaded(job: Job, resources: EngineResources) -> Engine:
    """The job's engine. Raises `UserError`, and `RunFailed` if it crashes while it is loaded."""
    try:
        return load_engine(job, resources)
    except TokenmillError:
        raise
    except Exception as error:
        reason = crash_reason(error)
        raise RunFailed(
            f"the engine cannot be loaded: {reason}. {remedy(reason)}".strip()
        ) from error


class ReplicaActor:
    """One actor of the pool. Several units at a time are in `__call__`, each in its own thread."""

    def __init__(
        self, spec: PickledSpec, num_gpus: int, coordinator: Any, exports_metrics: bool
    ) -> None:
        self._spec = unpickled(spec)
        job = self._spec.job
        # A process id alone is not unique: another machine, or a later process, may have it too.
        self._name = name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._coordinator = coordinator
        shares_answers = job.model.deduplicate and job.model.max_replicas > 1

        def on_load(load: ReplicaLoad) -> None:
            coordinator.report.remote(name, load)

        def on_crash(error: BaseException) -> None:
            # Ray forwards it into the run's log.
            traceback.print_exception(error)
            ray.get(coordinator.crashed.remote(name, crash_reason(error)))
            # Only a new process has a sound engine; Ray starts one and sends the units again.
            os._exit(1)

        ray.get(coordinator.loading.remote(ray.get_runtime_context().get_actor_id(), name))
        with failures_reported(coordinator):
            num_threads = _threads_per_replica(job)
            resources = EngineResources(num_gpus, num_threads, exports_metrics=exports_metrics)
            self._replica = Replica(
                load=lambda: _loaded(job, resources),
                tasks=loaded_tasks(job.model_dump_json(), self._spec.source.store.url),
                timeout_s=job.model.request_timeout_s,
                deduplicate=job.model.deduplicate,
                registry=RayRegistryConnection(coordinator, name) if shares_answers else None,
                on_load=on_load,
                on_crash=on_crash,
            )
        on_load(ReplicaLoad(0, 0, 0, 0))

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables(
            [to_block(position, self._rows(position, unit)) for position, unit in from_block(batch)]
        )

    def _rows(self, position: int, rendered: pa.Table) -> pa.Table:
        """The unit's answered rows. It waited since it was rendered, so it may be done by now."""
        if is_skipped(rendered) or is_done_elsewhere(self._spec, position):
            return SKIPPED_UNIT
        answered = self._answer(position, rendered)
        return with_notes(answered, rendered, self._replica.info, self._name)

    def _answer(self, position: int, rendered: pa.Table) -> AnsweredUnit:
        advice: RunAdvice = ray.get(self._coordinator.begin.remote(position, self._name))
        if advice.is_alone:
            journal = _UnitJournal(self._coordinator, position)
            answered = self._replica.answer_alone(rendered, advice.poison, journal)
        else:
            answered = self._replica.answer(rendered)
        self._coordinator.end.remote(position)
        return answered
