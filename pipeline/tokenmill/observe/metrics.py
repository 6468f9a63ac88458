"""The metrics that a run exports for Prometheus, computed from its commits and its replicas.

The driver counts everything: commits as they happen, replicas' reports once a second. Ray's agent
puts `ray_` before the names here. A label names a job, a run, a replica, a reject class or a stage,
and never a row or a unit, so the number of series stays small. Knows nothing of Ray.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tokenmill.engine.base import EngineUsage
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit, Stage
from tokenmill.scheduling.load import ReplicaLoad

# Not `job`, which is Prometheus's own label for the scrape configuration.
_COMMON = ("job_name", "run")


class Kind(StrEnum):
    """A counter only grows during a run; a gauge goes up and down."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name without Ray's prefix, and its labels in addition to the common ones."""

    name: str
    kind: Kind
    help: str
    extra_labels: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all labels."""
        return (*_COMMON, *self.extra_labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"tokenmill_{name}_total", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"tokenmill_{name}", Kind.GAUGE, text, labels)


UNITS = _counter("units", "Units that the run committed.")
ROWS = _counter("rows", "Rows of committed units, including rejected rows, by replica.", "replica")
FILTERED_ROWS = _counter("filtered_rows", "Rows of committed units that input.where leaves out.")
REJECTS = _counter("rejects", "Rejected rows of committed units, by class.", "class")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of answered requests.", "replica")
GENERATION_TOKENS = _counter("generation_tokens", "Generated tokens.", "replica")
PREFIX_TOKENS = _counter(
    "prefix_cache_lookup_tokens", "Prompt tokens looked up in the prefix cache.", "replica"
)
PREFIX_HIT_TOKENS = _counter(
    "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.", "replica"
)
STAGE_SECONDS = _counter(
    "stage_seconds", "Seconds of work by stage, summed over all processes.", "stage"
)
ENGINE_CRASHES = _counter("engine_deaths", "Engines that crashed in the run.")
UNITS_LEFT = _gauge("units_left", "Units of the plan that are not committed yet.")
REQUESTS_RUNNING = _gauge("requests_running", "Requests in the running batch.", "replica")
REQUESTS_WAITING = _gauge(
    "requests_waiting", "Requests of started units that are not in a batch yet.", "replica"
)
KV_CACHE_USAGE = _gauge("kv_cache_usage_ratio", "Share of the KV cache in use, 0 to 1.", "replica")
#: All metrics.
METRICS = (
    *(UNITS, ROWS, FILTERED_ROWS, REJECTS, PROMPT_TOKENS, GENERATION_TOKENS),
    *(PREFIX_TOKENS, PREFIX_HIT_TOKENS, STAGE_SECONDS, ENGINE_CRASHES),
    *(UNITS_LEFT, REQUESTS_RUNNING, REQUESTS_WAITING, KV_CACHE_USAGE),
)

# The load of a replica before its first report, and the usage of one that is gone.
_NO_LOAD = ReplicaLoad(0, 0, 0, 0)
_NO_USAGE = EngineUsage(kv_cache_usage=0.0)


class Recorder(Protocol):
    """Where a run's metrics are sent."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Increase a counter by an amount above zero."""

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""


class NoRecorder:
    """A recorder for a run that exports no metrics."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Do nothing."""

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Do nothing."""


class RunMetrics(RunListener):
    """One run's metrics."""

    def __init__(self, recorder: Recorder, job_name: str, run: str) -> None:
        self._recorder = recorder
        self._common = dict(zip(_COMMON, (job_name, run), strict=True))
        # The last report of each replica. It is kept when the replica is missing: a coordinator
        # that was restarted knows no replica at first, and later reports the same totals again.
        self._loads: dict[str, ReplicaLoad] = {}
        self._crashes = 0

    def committed(self, commit: Commit, progress: Progress) -> None:
        """Count a unit, unless another driver has committed it."""
        del progress
        if not commit.is_ours:
            return
        counts = commit.counts
        self._add(UNITS, 1)
        self._add(ROWS, counts.rows, replica=commit.record.replica)
        self._add(FILTERED_ROWS, counts.filtered)
        for name, count in counts.rejects.items():
            self._add(REJECTS, count, **{"class": name})
        for stage, (began_at, ended_at) in commit.stage_times.items():
            # Units overlap in an engine, so its time comes from the replicas' reports.
            if stage != Stage.ENGINE:
                self._add(STAGE_SECONDS, ended_at - began_at, stage=stage)

    def ticked(self, progress: Progress, now: float) -> None:
        """Count what the replicas have done since the last call."""
        del now
        pool = progress.pool
        for replica, load in pool.loads.items():
            before = self._loads.get(replica, _NO_LOAD)
            for metric, amount in _increments(before, load):
                self._add(metric, amount, replica=replica)
            seconds = load.engine_seconds - before.engine_seconds
            self._add(STAGE_SECONDS, seconds, stage=Stage.ENGINE)
            self._set_gauges(replica, load.usage, load.num_held)
        for replica in self._loads.keys() - pool.loads.keys():
            self._set_gauges(replica, _NO_USAGE, 0)
        self._loads.update(pool.loads)
        self._add(ENGINE_CRASHES, pool.crashes - self._crashes)
        self._crashes = max(self._crashes, pool.crashes)
        self._set(UNITS_LEFT, progress.units_total - progress.units_done)

    def _set_gauges(self, replica: str, usage: EngineUsage, num_held: int) -> None:
        self._set(REQUESTS_RUNNING, usage.num_running, replica=replica)
        self._set(REQUESTS_WAITING, usage.num_waiting + num_held, replica=replica)
        if usage.kv_cache_usage is not None:
            self._set(KV_CACHE_USAGE, usage.kv_cache_usage, replica=replica)

    def _add(self, metric: Metric, amount: float, **labels: str) -> None:
        if amount > 0:
            self._recorder.add(metric, amount, {**self._common, **labels})

    def _set(self, metric: Metric, value: float, **labels: str) -> None:
        self._recorder.set(metric, value, {**self._common, **labels})


def _increments(before: ReplicaLoad, now: ReplicaLoad) -> Iterator[tuple[Metric, int]]:
    """What the counters grow by between two reports of a replica."""
    yield PROMPT_TOKENS, now.input_tokens - before.input_tokens
    yield GENERATION_TOKENS, now.generated_tokens - before.generated_tokens
    yield PREFIX_TOKENS, now.usage.prefix_tokens - before.usage.prefix_tokens
    yield PREFIX_HIT_TOKENS, now.usage.prefix_hit_tokens - before.usage.prefix_hit_tokens
