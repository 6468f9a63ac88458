"""Runs units without Ray: one replica in this process, one unit after another.

An alternative to `cluster.ray_executor`. Units pass through the same stages and are committed in
the same way, so tests and notebooks see what a run would do. `preview` uses its replica.
"""

import os
import threading
from collections.abc import Iterator, Sequence

from tokenmill.engine.base import EngineResources
from tokenmill.hardware import has_local_gpus
from tokenmill.job.job import Job
from tokenmill.observe.metrics import NoRecorder, Recorder
from tokenmill.output.commit import Commit
from tokenmill.scheduling.load import PoolState, ReplicaLoad
from tokenmill.scheduling.replica import Replica
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.load import load_engine, load_tasks
from tokenmill.stages.notes import is_skipped
from tokenmill.stages.unit import commit_unit, render_unit, with_notes
from tokenmill.tasks.row_tasks import RowTasks

#: The replica's name in the units' records.
REPLICA_NAME = "in-process"


class InProcessExecutor:
    """Runs units in this process, on all of its cores and the GPUs that the job asks for."""

    is_local = True
    start_stage = "starting"

    @property
    def has_gpus(self) -> bool:
        return has_local_gpus()

    def warnings(self) -> Sequence[str]:
        return ()

    def start(self, job: Job) -> "InProcessExecution":
        """An execution; its engine is loaded when the first unit needs it."""
        return InProcessExecution(job)


class InProcessExecution:
    """Runs the units of one run. An engine that crashes ends the run with its error."""

    def __init__(self, job: Job) -> None:
        self.recorder: Recorder = NoRecorder()
        self._job = job
        self._loads: dict[str, ReplicaLoad] = {}
        self._is_stopped = False
        # Held while a unit is running, so that `close` can wait for it.
        self._working = threading.Lock()

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        tasks = load_tasks(self._job, spec.source.store)
        replica = local_replica(self._job, tasks, self._loads)
        for position in range(len(spec.units)):
            with self._working:
                if self._is_stopped:
                    return
                rows = render_unit(spec, position, tasks)
                if not is_skipped(rows):
                    answered = replica.answer(rows)
                    rows = with_notes(answered, rows, replica.info, REPLICA_NAME)
                commit = commit_unit(spec, position, rows)
            yield commit

    def state(self) -> PoolState:
        return PoolState(loads=dict(self._loads), num_loading=int(not self._loads))

    def stop(self) -> None:
        self._is_stopped = True

    def close(self) -> None:
        self.stop()
        with self._working:
            return


def local_replica(
    job: Job, tasks: RowTasks, loads: dict[str, ReplicaLoad] | None = None
) -> Replica:
    """A replica of the job's engine in this process; its reports go into `loads`."""
    num_gpus = job.model.gpus_per_replica if has_local_gpus() else 0
    resources = EngineResources(num_gpus, len(os.sched_getaffinity(0)))
    reports = {} if loads is None else loads

    def on_load(load: ReplicaLoad) -> None:
        reports[REPLICA_NAME] = load

    return Replica(
        load=lambda: load_engine(job, resources),
        tasks=tasks,
        on_load=on_load,
        on_crash=lambda _: None,
        timeout_s=job.model.request_timeout_s,
        deduplicate=job.model.deduplicate,
    )
