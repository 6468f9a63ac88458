"""A run's stages on Ray Data: read and render, answer, write. One unit is one block.

    range(units) → render (CPU tasks) → answer (pool of replicas) → write (CPU tasks) → driver

A unit travels as one row of a block (`stages.block`). Ray Data streams, schedules and retries;
`scheduling` decides which rows are in an engine at the same time, and `output.commit` what is
written. The driver iterates over the commits and gets each one as it happens.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from tokenmill.cluster.connect import CPUS_PER_REPLICA, cluster_has_gpus, connected
from tokenmill.cluster.coordinator import Coordinator
from tokenmill.cluster.ray_patches import StopCallback
from tokenmill.cluster.ray_stages import PickledSpec, commits_of, render_units, write_units
from tokenmill.cluster.replica_actor import ReplicaActor
from tokenmill.errors import TokenmillError
from tokenmill.job.job import Job
from tokenmill.job.sections import ReplicaRange
from tokenmill.observe.metrics import Kind, Metric, NoRecorder, Recorder
from tokenmill.output.commit import Commit
from tokenmill.plan.units import units_in_flight
from tokenmill.scheduling.load import PoolState
from tokenmill.stages.executor import RunSpec

# Arguments of `map_batches` for every stage: one batch is one block, which is one unit.
_BATCHES: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
_WRITE_CPUS = 0.5
# Sequences in an engine's batch if the job does not say: vLLM's default on a GPU, and on a CPU
# about as many as are of use.
_GPU_SEQUENCES = 1024
_CPU_SEQUENCES = 64


class _RayRecorder:
    """Passes metrics to Ray's agent on the driver's machine."""

    def __init__(self) -> None:
        self._instruments: dict[Metric, Any] = {}

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        self._instrument(metric).inc(amount, tags=labels)

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        self._instrument(metric).set(value, tags=labels)

    def _instrument(self, metric: Metric) -> Any:
        if metric not in self._instruments:
            kind = Counter if metric.kind is Kind.COUNTER else Gauge
            self._instruments[metric] = kind(metric.name, metric.help, metric.labels)
        return self._instruments[metric]


class RayExecution:
    """A Ray cluster, local or remote, while one run uses it.

    `recorder` takes the run's metrics; a local Ray without a metrics port exports none.
    """

    def __init__(self, address: str | None, job: Job, metrics_port: int | None = None) -> None:
        StopCallback.requested.clear()
        self._exports_metrics = metrics_port is not None or address is not None
        self.recorder: Recorder = _RayRecorder() if self._exports_metrics else NoRecorder()
        self._connection = ExitStack()
        self._connection.enter_context(connected(address, job.model.max_replicas, metrics_port))
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
        self._coordinator: Any = actor.remote()

    def state(self) -> PoolState:
        """The replicas' last reports."""
        state: PoolState = ray.get(self._coordinator.state.remote())
        return state

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        """Run the units; yield each commit as it happens, in no particular order.

        Raises the `TokenmillError` of the stage that failed first.
        """
        try:
            for batch in self._dataset(spec).iter_batches(**_BATCHES, prefetch_batches=0):
                yield from commits_of(batch)
        except RayError as error:
            # Ray's error has lost its cause on the way between processes.
            failure: TokenmillError | None = ray.get(self._coordinator.failure.remote())
            raise failure or error from error

    def _dataset(self, spec: RunSpec) -> Dataset:
        """The three stages over the units' positions; its rows are the commits."""
        num_gpus = spec.job.model.gpus_per_replica if cluster_has_gpus() else 0
        render_tasks = _num_render_tasks(spec.job)
        num_units = len(spec.units)
        arguments = {"spec": PickledSpec.of(spec), "coordinator": self._coordinator}
        # With the same concurrency Ray Data fuses it with rendering. As a separate stage it would
        # take the cores from the writes until the last unit is read.
        dataset = ray.data.range(num_units, concurrency=render_tasks, override_num_blocks=num_units)
        dataset = dataset.map_batches(
            render_units, **_BATCHES, fn_kwargs=arguments, compute=TaskPoolStrategy(render_tasks)
        )
        dataset = dataset.map_batches(
            ReplicaActor,
            **_BATCHES,
            fn_constructor_args=(
                arguments["spec"],
                num_gpus,
                self._coordinator,
                self._exports_metrics,
            ),
            num_cpus=CPUS_PER_REPLICA,
            num_gpus=num_gpus,
            **_pool_arguments(spec, num_gpus),
        )
        return dataset.map_batches(
            write_units, **_BATCHES, fn_kwargs=arguments, num_cpus=_WRITE_CPUS
        )

    def stop(self) -> None:
        """Make the iteration over `commits`, in another thread, end soon, with an error."""
        StopCallback.requested.set()

    def close(self) -> None:
        """Disconnect from the cluster; a local one ends with its processes."""
        self._connection.close()


def _num_render_tasks(job: Job) -> int:
    """Half of the cores that the replicas leave: each task takes seconds to load a tokenizer."""
    cores = int(ray.cluster_resources().get("CPU", 1)) - CPUS_PER_REPLICA * job.model.max_replicas
    return max(1, cores // 2)


def _pool_arguments(spec: RunSpec, num_gpus: int) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of replicas.

    The pool starts with all of its replicas, and each holds enough units to keep its engine full.
    """
    num_seqs = int(
        spec.job.model.engine.get("max_num_seqs", _GPU_SEQUENCES if num_gpus else _CPU_SEQUENCES)
    )
    in_flight = units_in_flight(spec.units, num_seqs)
    replicas = spec.job.model.replicas
    options: dict[str, Any] = (
        {"min_size": replicas.min, "max_size": replicas.max}
        if isinstance(replicas, ReplicaRange)
        else {"size": min(replicas, len(spec.units))}
    )
    options |= {"max_tasks_in_flight_per_actor": in_flight, "enable_true_multi_threading": True}
    if "max_concurrent_calls_per_actor" in inspect.signature(ActorPoolStrategy).parameters:
        options["max_concurrent_calls_per_actor"] = in_flight
        return {"compute": ActorPoolStrategy(**options)}
    # Ray before 2.59; later versions warn about this argument.
    return {"compute": ActorPoolStrategy(**options), "max_concurrency": in_flight}
