"""The run's stages on Ray Data: read and render, answer, commit; one unit is one block.

    range(units) → render (CPU tasks) → answer (pool of replicas) → commit (CPU tasks) → driver

A unit travels as one row of a block (`stages.block`). Ray Data streams, places and retries;
`scheduling` decides which rows are in an engine at the same time, and `output.commit` what is
written. The driver iterates over the commits and sees each as it happens.
"""

import gc
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from tokenmill.cluster.connect import CPUS_PER_REPLICA, cluster_has_gpus, connected
from tokenmill.cluster.coordinator import Coordinator
from tokenmill.cluster.ray_patches import StopCallback
from tokenmill.cluster.replica_actor import ReplicaActor, failures_reported, loaded_tasks
from tokenmill.errors import TokenmillError
from tokenmill.job.job import Job
from tokenmill.job.sections import ReplicaRange
from tokenmill.observe.metrics import Kind, Metric, NoRecorder, Recorder
from tokenmill.output.commit import Commit
from tokenmill.output.record import UnitRecord
from tokenmill.plan.units import units_in_flight
from tokenmill.scheduling.load import PoolState
from tokenmill.stages.block import from_block, to_block
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.unit import commit_unit, render_unit


@dataclass(frozen=True, slots=True)
class ShippedSpec:
    """A spec on its way to worker processes.

    Ray Data unpickles what a stage is given for each unit again: a plan of many units must not be
    part of that. Arrow's buffer stays in Ray's shared memory.
    """

    run: str
    pickled: pa.Buffer = field(compare=False, repr=False)

    @classmethod
    def of(cls, spec: RunSpec) -> "ShippedSpec":
        return cls(spec.run, pa.py_buffer(pickle.dumps(spec)))


@lru_cache(maxsize=1)
def received(shipped: ShippedSpec) -> RunSpec:
    """The spec; unpickled once in a worker process."""
    spec: RunSpec = pickle.loads(shipped.pickled)  # noqa: S301 - our driver's
    return spec


class _RayRecorder:
    """Hands metrics to Ray's agent of the driver's machine."""

    def __init__(self) -> None:
        self._made: dict[Metric, Any] = {}

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        self._known(metric).inc(amount, tags=labels)

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        self._known(metric).set(value, tags=labels)

    def _known(self, metric: Metric) -> Any:
        if metric not in self._made:
            made = Counter if metric.kind is Kind.COUNTER else Gauge
            self._made[metric] = made(metric.name, metric.help, metric.labels)
        return self._made[metric]


class RayExecution:
    """A Ray cluster, local or remote, while one run uses it.

    `recorder` takes the run's metrics; a local Ray without a metrics port exports none.
    """

    def __init__(self, address: str | None, job: Job, metrics_port: int | None = None) -> None:
        StopCallback.asked.clear()
        self._exports_metrics = metrics_port is not None or address is not None
        self.recorder: Recorder = _RayRecorder() if self._exports_metrics else NoRecorder()
        self._ray = ExitStack()
        self._ray.enter_context(connected(address, job.model.max_replicas, metrics_port))
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
        self._board: Any = actor.remote()

    def state(self) -> PoolState:
        """The replicas' last reports."""
        state: PoolState = ray.get(self._board.state.remote())
        return state

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        """Run the units; each one's commit as it happens, in no order.

        Raises the `TokenmillError` of the stage that failed first.
        """
        try:
            yield from self._stream(spec)
        except RayError as error:
            # What Ray raises has lost its cause on the way between processes.
            failure: TokenmillError | None = ray.get(self._board.failure.remote())
            raise failure or error from error

    def _stream(self, spec: RunSpec) -> Iterator[Commit]:
        num_gpus = spec.job.model.gpus_per_replica if cluster_has_gpus() else 0
        render_tasks = _render_tasks(spec.job)
        num_units = len(spec.units)
        shipped = ShippedSpec.of(spec)
        # With the same concurrency it is fused with rendering; as a stage of its own it would take
        # the cores from the commits until its last unit.
        dataset = ray.data.range(num_units, concurrency=render_tasks, override_num_blocks=num_units)
        dataset = dataset.map_batches(
            _render,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"shipped": shipped, "board": self._board},
            compute=TaskPoolStrategy(render_tasks),
        )
        replica_arguments = (
            spec.job,
            spec.source.store.url,
            num_gpus,
            self._board,
            self._exports_metrics,
        )
        dataset = dataset.map_batches(
            ReplicaActor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=replica_arguments,
            compute=_strategy(spec, num_gpus),
            num_cpus=CPUS_PER_REPLICA,
            num_gpus=num_gpus,
        )
        dataset = dataset.map_batches(
            _commit,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"shipped": shipped, "board": self._board},
            num_cpus=0.5,
        )
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for text in batch.column("commit").to_pylist():
                facts = json.loads(text)
                yield Commit(**{**facts, "record": UnitRecord.from_facts(facts["record"])})

    def stop(self) -> None:
        """Have the iteration over `commits`, in another thread, end soon, with an error."""
        StopCallback.asked.set()

    def close(self) -> None:
        """Leave the cluster; a local one ends, and its processes with it."""
        # Ray ends the process, without a word and with 1, if another thread frees an object of its
        # while it shuts down; so its garbage goes before, and no thread collects meanwhile.
        gc.collect()
        gc.disable()
        try:
            ray.shutdown()
        finally:
            gc.enable()
            self._ray.close()


def _render_tasks(job: Job) -> int:
    """Half of the cores that the replicas leave: a tokenizer takes seconds of each to load."""
    left = int(ray.cluster_resources().get("CPU", 1)) - CPUS_PER_REPLICA * job.model.max_replicas
    return max(1, left // 2)


def _strategy(spec: RunSpec, num_gpus: int) -> ActorPoolStrategy:
    """A pool that starts whole, with enough units in each replica to keep its engine full."""
    default = 1024 if num_gpus else 64
    num_seqs = int(spec.job.model.engine.get("max_num_seqs", default))
    in_flight = units_in_flight(spec.units, num_seqs)
    replicas = spec.job.model.replicas
    pool = (
        {"min_size": replicas.min, "max_size": replicas.max}
        if isinstance(replicas, ReplicaRange)
        else {"size": min(replicas, len(spec.units))}
    )
    return ActorPoolStrategy(
        **pool,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=in_flight,
        enable_true_multi_threading=True,
    )


def _render(batch: pa.Table, shipped: ShippedSpec, board: Any) -> pa.Table:
    """Read units and render their rows: the first stage."""
    with failures_reported(board):
        spec = received(shipped)
        tasks = loaded_tasks(spec.job.model_dump_json(), spec.source.store.url)
        return pa.concat_tables(
            [
                to_block(position, render_unit(spec, position, tasks))
                for position in batch.column("id").to_pylist()
            ]
        )


def _commit(batch: pa.Table, shipped: ShippedSpec, board: Any) -> pa.Table:
    """Write units: the last stage, whose rows are what the driver sees."""
    with failures_reported(board):
        spec = received(shipped)
        commits = [commit_unit(spec, position, rows) for position, rows in from_block(batch)]
    return pa.table({"commit": pa.array([json.dumps(asdict(c)) for c in commits], pa.string())})
