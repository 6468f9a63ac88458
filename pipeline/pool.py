"""The run's stages on Ray Data: read and render, answer, commit; one unit is one block.

    range(units) → render (CPU tasks) → answer (pool of replicas) → commit (CPU tasks) → driver

A unit travels as a parcel. Ray Data streams, places and retries; which rows are in an engine
together is decided in `scheduler`, and what is done in `commit`. The driver iterates over the
commits, so that it sees each as it happens.
"""

import gc
import json
import logging
import os
import pickle
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from pipeline import __version__
from pipeline.board import Board
from pipeline.columns import added_fields, output_rows, output_schema
from pipeline.commit import (
    Commit,
    Mending,
    Stage,
    UnitRecord,
    commit,
    count_rejects,
    repair,
    sum_of,
)
from pipeline.engine import EngineInfo, MachineShare
from pipeline.errors import RunFailed, TokenmillError, UserError, root_cause
from pipeline.garbage import collect_seldom
from pipeline.job import Job, ReplicaRange
from pipeline.ledger import Answered, News
from pipeline.local_ray import local_ray
from pipeline.meters import Kind, Metric, NoRecorder, Recorder
from pipeline.parcel import pack, unpack
from pipeline.persist import persist
from pipeline.plan import Unit, units_in_flight
from pipeline.pool_state import Load, PoolState
from pipeline.render import Renderer
from pipeline.replica import AnsweredUnit, Replica, load_engine
from pipeline.source import ROW_COLUMN, Source
from pipeline.store import Store, open_store
from pipeline.suspects import Advice
from pipeline.tasks.row import RowTasks
from pipeline.tools import load_tasks

# The engine and the thread that feeds it. Unlike the render tasks' one, or Ray Data would run
# rendering inside of the replicas.
_CPUS_PER_REPLICA = 2
_FACTS_KEY = b"tokenmill"
# Ray's head and the board answer within milliseconds; this is for a network that does not.
_ANSWER_S = 10


@dataclass(frozen=True, slots=True)
class Repair:
    """That only some rows of the units are run, and put into the objects that stand.

    `rows` maps a unit's key to the rows' positions in the shard; `changes` are the job's fields
    that differ from the job that the output is of, with their new values.
    """

    rows: Mapping[str, tuple[int, ...]]
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that the stages need, as plain data."""

    run: str
    job: Job
    source: Source
    output: Store
    kept_schema: pa.Schema
    units: tuple[Unit, ...]
    repair: Repair | None = None


@dataclass(frozen=True, slots=True)
class _Shipped:
    """A spec on its way to worker processes.

    Ray Data unpickles what a stage is given for each unit again: a plan of many units must not be
    part of that. Arrow's buffer stays in Ray's shared memory.
    """

    run: str
    pickled: pa.Buffer = field(compare=False, repr=False)

    @classmethod
    def of(cls, spec: RunSpec) -> "_Shipped":
        return cls(spec.run, pa.py_buffer(pickle.dumps(spec)))


@lru_cache(maxsize=1)
def _opened(shipped: _Shipped) -> RunSpec:
    """The spec; unpickled once in a worker process."""
    spec: RunSpec = pickle.loads(shipped.pickled)  # noqa: S301 - our driver's
    return spec


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
class _LedgerLine:
    """A replica's way to the ledger on the board."""

    board: Any
    replica: str

    def join(self, membership: str) -> bool:
        try:
            ray.get(self.board.join.remote(self.replica, membership), timeout=_ANSWER_S)
        except RayError:
            return False
        return True

    def exchange(
        self,
        membership: str,
        asked: Sequence[bytes],
        answered: Sequence[Answered],
        patience_s: float,
    ) -> News | None:
        # What it hands out is handed out once; so a call is not to be tried again unseen.
        call = self.board.exchange.options(max_task_retries=0)
        told = call.remote(self.replica, membership, asked, answered, patience_s)
        try:
            news: News | None = ray.get(told, timeout=patience_s + _ANSWER_S)
        except RayError:
            return None
        return news


class _Stop(ExecutionCallback):  # type: ignore[misc]
    """Ends Ray Data's loop on behalf of another thread: it is called at each turn of it.

    The event is the class's own, as Ray makes the instance.
    """

    asked: ClassVar = threading.Event()

    def before_execution_starts(self, _executor: Any) -> None:
        self._heed()

    def on_execution_step(self, _executor: Any) -> None:
        self._heed()

    def _heed(self) -> None:
        if self.asked.is_set():
            raise RunFailed("stopped")


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


class Pool:
    """A Ray cluster, ours or the user's, and one run's way through it.

    `recorder` takes the run's metrics; nobody scrapes a Ray of ours that was given no port.
    """

    def __init__(self, address: str | None, job: Job, metrics_port: int | None = None) -> None:
        _Stop.asked.clear()
        if metrics_port is not None and not _is_local(address):
            raise UserError(
                f"--metrics-port {metrics_port}: the cluster exports the metrics where its own "
                "nodes do (ray start --metrics-export-port); leave the option and "
                "TOKENMILL_METRICS_PORT out"
            )
        self._exports_metrics = metrics_port is not None or not _is_local(address)
        self.recorder: Recorder = _RayRecorder() if self._exports_metrics else NoRecorder()
        self._ray = ExitStack()
        self._ray.enter_context(_ray(address, job.model.most_replicas, metrics_port))
        board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
        self._board: Any = board.remote()

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
        num_gpus = spec.job.model.gpus_per_replica if _cluster_has_gpus() else 0
        render_tasks = _render_tasks(spec.job)
        num_units = len(spec.units)
        shipped = _Shipped.of(spec)
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
            _ReplicaStage,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=replica_arguments,
            compute=_strategy(spec, num_gpus),
            num_cpus=_CPUS_PER_REPLICA,
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
        _Stop.asked.set()

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


def _is_local(address: str | None) -> bool:
    return address is None and not os.environ.get("RAY_ADDRESS")


@contextmanager
def _ray(address: str | None, replicas: int, metrics_port: int | None) -> Iterator[None]:
    """The cluster at `address` or RAY_ADDRESS, or one on this machine; ended by who asked."""
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    is_ours = _is_local(address)
    with ExitStack() as stack:
        try:
            if is_ours:
                # The replicas' share comes on top of the cores: reading must not wait for them.
                num_cpus = (os.cpu_count() or 1) + _CPUS_PER_REPLICA * replicas
                stack.enter_context(local_ray(num_cpus, metrics_port, options))
            else:
                ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = address or os.environ.get("RAY_ADDRESS") or "a local cluster"
            reason = " ".join(str(error).split())
            raise RunFailed(f"Ray at {where} did not answer: {reason}") from error
        if not is_ours and os.environ.get("RAY_AUTH_MODE") != "disabled":
            refuse_open_cluster(ray.get_runtime_context().gcs_address)
        # Ray puts its own in its place, which ends the process on the spot.
        signal.signal(signal.SIGTERM, on_sigterm)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # A thread for each unit, which nobody asks for what it finds.
        context.memory_usage_poll_interval_s = None
        # An engine that cannot start will not start the next time.
        context.max_consecutive_actor_init_deaths = 0
        context.custom_execution_callback_classes = [_Stop]
        yield


def refuse_open_cluster(gcs_address: str) -> None:
    """Raise `UserError` if the cluster whose head is there answers who has no token."""
    # Half a second of import, for a cluster of the user's only.
    import grpc  # noqa: PLC0415

    with grpc.insecure_channel(gcs_address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=_ANSWER_S)
        except grpc.RpcError:
            # Refused, or not understood: it wants a token, or TLS with certificates.
            return
    raise UserError(
        f"Ray at {gcs_address} runs the code of anyone who reaches it: it asks for no token; start "
        "it with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled here to use it all the same"
    )


def _cluster_has_gpus() -> bool:
    return bool(ray.cluster_resources().get("GPU", 0))


def _render_tasks(job: Job) -> int:
    """Half of the cores that the replicas leave: a tokenizer takes seconds of each to load."""
    left = int(ray.cluster_resources().get("CPU", 1)) - _CPUS_PER_REPLICA * job.model.most_replicas
    return max(1, left // 2)


def _threads_per_replica(job: Job) -> int:
    """This machine's cores, shared by the replicas that stand on it."""
    cores = len(os.sched_getaffinity(0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    return max(1, int(cores * nodes // max(nodes, job.model.most_replicas)))


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


@contextmanager
def _failures_told(board: Any) -> Iterator[None]:
    """Tell the board why a stage fails, before Ray wraps it."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, TokenmillError):
            cause = RunFailed(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        ray.get(board.failed.remote(cause))
        raise


def _render(batch: pa.Table, shipped: _Shipped, board: Any) -> pa.Table:
    """Read units and render their rows: the first stage."""
    with _failures_told(board):
        spec = _opened(shipped)
        return pa.concat_tables(
            [_render_unit(spec, position) for position in batch.column("id").to_pylist()]
        )


def _render_unit(spec: RunSpec, position: int) -> pa.Table:
    job = spec.job
    renderer = Renderer(
        _tasks(job.model_dump_json(), spec.source.store.url), job.input.keep, job.clean
    )
    unit = spec.units[position]
    began_at = time.time()
    rows = spec.source.read(unit)
    if spec.repair is not None:
        wanted = pa.array(spec.repair.rows[unit.key], pa.int64())
        rows = rows.filter(pc.is_in(rows.column(ROW_COLUMN), wanted))
    read_at = time.time()
    rendered = renderer.render(rows)
    times = {Stage.READ: (began_at, read_at), Stage.RENDER: (read_at, time.time())}
    return pack(position, rendered.replace_schema_metadata({_FACTS_KEY: json.dumps(times)}))


@lru_cache(maxsize=1)
def _tasks(job_json: str, storage_url: str) -> RowTasks:
    """Loaded once in a worker process: a tokenizer takes seconds."""
    job = Job.model_validate_json(job_json)
    tasks = load_tasks(job, open_store(storage_url, job.input.endpoint_url))
    collect_seldom()
    return tasks


class _ReplicaStage:
    """One actor of the pool: several units at a time are inside of `__call__`."""

    def __init__(
        self, job: Job, storage_url: str, num_gpus: int, board: Any, exports_metrics: bool
    ) -> None:
        # A process number comes again, on another machine or later.
        self._name = name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._board = board

        has_others = job.model.deduplicate and job.model.most_replicas > 1

        def on_load(load: Load) -> None:
            board.report.remote(name, load)

        def on_death(error: BaseException) -> None:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            ray.get(board.died.remote(name, reason))
            # Only a new process is a sound engine; Ray starts one and sends the units again.
            os._exit(1)

        with _failures_told(board):
            num_threads = _threads_per_replica(job)
            share = MachineShare(num_gpus, num_threads, exports_metrics=exports_metrics)
            self._replica = Replica(
                load=lambda: load_engine(job, share),
                tasks=_tasks(job.model_dump_json(), storage_url),
                timeout_s=job.model.request_timeout_s,
                deduplicate=job.model.deduplicate,
                ledger=_LedgerLine(board, name) if has_others else None,
                on_load=on_load,
                on_death=on_death,
            )
        on_load(Load(0, 0, 0, 0))

    def __call__(self, batch: pa.Table) -> pa.Table:
        parcels = []
        for position, rendered in unpack(batch):
            answered = self._answer(position, rendered)
            whole = _with_facts(answered, rendered, self._replica.info, self._name)
            parcels.append(pack(position, whole))
        return pa.concat_tables(parcels)

    def _answer(self, position: int, rendered: pa.Table) -> AnsweredUnit:
        advice: Advice = ray.get(self._board.begin.remote(position, self._name))
        if advice.is_alone:
            journal = _UnitJournal(self._board, position)
            answered = self._replica.answer_alone(rendered, advice.condemned, journal)
        else:
            answered = self._replica.answer(rendered)
        self._board.end.remote(position)
        return answered


def _with_facts(
    answered: AnsweredUnit, rendered: pa.Table, info: EngineInfo, replica: str
) -> pa.Table:
    """A unit's answered rows; in their metadata, for the commit, how they were made."""
    now = time.time()
    facts = {
        "stage_times": {**_facts(rendered), Stage.ENGINE: (now - answered.seconds, now)},
        "engine": asdict(info),
        "seconds": answered.seconds,
        "num_reused": answered.num_reused,
        "replica": replica,
    }
    return answered.rows.replace_schema_metadata({_FACTS_KEY: json.dumps(facts)})


def _facts(rows: pa.Table) -> dict[str, Any]:
    """What the stage before noted of a unit."""
    facts: dict[str, Any] = json.loads((rows.schema.metadata or {})[_FACTS_KEY])
    return facts


def _commit(batch: pa.Table, shipped: _Shipped, board: Any) -> pa.Table:
    """Write units: the last stage, whose rows are what the driver sees."""
    with _failures_told(board):
        spec = _opened(shipped)
        commits = [_commit_unit(spec, position, rows) for position, rows in unpack(batch)]
    return pa.table({"commit": pa.array([json.dumps(asdict(c)) for c in commits], pa.string())})


def _commit_unit(spec: RunSpec, position: int, answered: pa.Table) -> Commit:
    unit = spec.units[position]
    facts = _facts(answered)
    began_at = time.time()
    made = _write_unit(spec, unit, answered, facts)
    return replace(made, stage_times={**facts["stage_times"], Stage.WRITE: (began_at, time.time())})


def _write_unit(spec: RunSpec, unit: Unit, answered: pa.Table, facts: Mapping[str, Any]) -> Commit:
    schema = output_schema(spec.kept_schema, added_fields(spec.job))
    rows = output_rows(answered, unit.shard, schema)
    if spec.repair is not None:
        mending = Mending(spec.run, uuid.uuid4().hex, spec.repair.changes)
        return persist(lambda: repair(spec.output, unit, rows, mending))
    record = _record(spec, unit, answered, facts)
    return persist(lambda: commit(spec.output, unit, rows, record))


def _record(spec: RunSpec, unit: Unit, answered: pa.Table, facts: Mapping[str, Any]) -> UnitRecord:
    engine = EngineInfo(**facts["engine"])
    return UnitRecord(
        version=__version__,
        run=spec.run,
        attempt=uuid.uuid4().hex,
        fingerprint=spec.job.fingerprint,
        model=spec.job.model.source,
        revision=spec.job.model.revision,
        engine=engine.name,
        engine_version=engine.version,
        unit=unit.key,
        shard_version=unit.version,
        num_rows=answered.num_rows,
        num_filtered=unit.num_rows - answered.num_rows,
        rejects=count_rejects(answered),
        input_tokens=sum_of(answered, "num_input_tokens"),
        generated_tokens=sum_of(answered, "num_generated_tokens"),
        seconds=round(facts["seconds"], 3),
        num_reused=facts["num_reused"],
        replica=facts["replica"],
        written_at=round(time.time(), 3),
    )
