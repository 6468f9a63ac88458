"""What a run counts for Prometheus: the metrics, and how they follow from commits and reports.

Everything is counted in the driver, as units are committed and once a second. The names here are
ours; Ray's agent writes `ray_` before them. A label is a job, a run, a replica, a class of rejects
or a stage, never a row or a unit. Knows nothing of Ray.
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

# Not `job`: that is what Prometheus calls the part of its configuration that found an endpoint.
_COMMON = ("job_name", "run")


class Kind(StrEnum):
    """A counter only grows, as long as its run lasts; a gauge goes up and down."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name without Ray's prefix, and the labels besides those that all have."""

    name: str
    kind: Kind
    help: str
    own_labels: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order in which a recorder is told their values."""
        return (*_COMMON, *self.own_labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"tokenmill_{name}_total", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"tokenmill_{name}", Kind.GAUGE, text, labels)


UNITS = _counter("units", "Units that the run committed.")
ROWS = _counter(
    "rows", "Rows of committed units, rejected ones among them, by who answered.", "replica"
)
FILTERED_ROWS = _counter("filtered_rows", "Rows of committed units that input.where left out.")
REJECTS = _counter("rejects", "Rows of committed units without an answer, by class.", "class")
PROMPT_TOKENS = _counter(
    "prompt_tokens", "Prompt tokens of the requests that an engine answered.", "replica"
)
GENERATION_TOKENS = _counter("generation_tokens", "Tokens that an engine generated.", "replica")
PREFIX_TOKENS = _counter(
    "prefix_cache_lookup_tokens", "Prompt tokens looked up in the prefix cache.", "replica"
)
PREFIX_HIT_TOKENS = _counter(
    "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache.", "replica"
)
STAGE_SECONDS = _counter(
    "stage_seconds", "Seconds of work by stage, of all processes together.", "stage"
)
ENGINE_DEATHS = _counter("engine_deaths", "Engines that died in the run.")
UNITS_LEFT = _gauge("units_left", "Units of the plan that are not committed.")
REQUESTS_RUNNING = _gauge("requests_running", "Requests in the batch of an engine.", "replica")
REQUESTS_WAITING = _gauge(
    "requests_waiting", "Requests of rows under way, without a place in a batch.", "replica"
)
KV_CACHE_USAGE = _gauge("kv_cache_usage_ratio", "Share of a KV cache in use, 0 to 1.", "replica")
#: Each of them.
METRICS = (
    *(UNITS, ROWS, FILTERED_ROWS, REJECTS, PROMPT_TOKENS, GENERATION_TOKENS),
    *(PREFIX_TOKENS, PREFIX_HIT_TOKENS, STAGE_SECONDS, ENGINE_DEATHS),
    *(UNITS_LEFT, REQUESTS_RUNNING, REQUESTS_WAITING, KV_CACHE_USAGE),
)


# Before a replica's first report, and after its death.
_NOTHING = ReplicaLoad(0, 0, 0, 0)
_EMPTY = EngineUsage(kv_cache_usage=0.0)


class Recorder(Protocol):
    """Where metrics go."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Raise a counter by an amount above zero."""

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge."""


class NoRecorder:
    """For a run that nobody scrapes."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Nothing."""

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Nothing."""


class RunMetrics(RunListener):
    """One run's metrics."""

    def __init__(self, recorder: Recorder, job_name: str, run: str) -> None:
        self._recorder = recorder
        self._common = dict(zip(_COMMON, (job_name, run), strict=True))
        # What each replica last reported, dead ones too: a board that begins anew knows none for a
        # moment, and then tells the same again.
        self._loads: dict[str, ReplicaLoad] = {}
        self._deaths = 0

    def committed(self, commit: Commit, progress: Progress) -> None:
        """Count a unit; one that another driver committed first is not ours."""
        del progress
        if not commit.is_ours:
            return
        record = commit.record
        self._raise(UNITS, 1)
        self._raise(ROWS, record.num_rows, replica=record.replica)
        self._raise(FILTERED_ROWS, record.num_filtered)
        for name, count in record.rejects.items():
            self._raise(REJECTS, count, **{"class": name})
        for stage, (began_at, ended_at) in commit.stage_times.items():
            # Units overlap in an engine; how long it works is in the replicas' reports.
            if stage != Stage.ENGINE:
                self._raise(STAGE_SECONDS, ended_at - began_at, stage=stage)

    def ticked(self, progress: Progress, now: float) -> None:
        """Take over the last reports of the replicas."""
        del now
        pool = progress.pool
        for replica, load in pool.loads.items():
            before = self._loads.get(replica, _NOTHING)
            for metric, amount in _growth(before, load):
                self._raise(metric, amount, replica=replica)
            seconds = load.engine_seconds - before.engine_seconds
            self._raise(STAGE_SECONDS, seconds, stage=Stage.ENGINE)
            self._fill(replica, load.usage, load.num_held)
        for replica in self._loads.keys() - pool.loads.keys():
            self._fill(replica, _EMPTY, 0)
        self._loads.update(pool.loads)
        self._raise(ENGINE_DEATHS, pool.crashes - self._deaths)
        self._deaths = max(self._deaths, pool.crashes)
        self._set(UNITS_LEFT, progress.units_total - progress.units_done)

    def _fill(self, replica: str, usage: EngineUsage, num_held: int) -> None:
        self._set(REQUESTS_RUNNING, usage.num_running, replica=replica)
        self._set(REQUESTS_WAITING, usage.num_waiting + num_held, replica=replica)
        if usage.kv_cache_usage is not None:
            self._set(KV_CACHE_USAGE, usage.kv_cache_usage, replica=replica)

    def _raise(self, metric: Metric, amount: float, **labels: str) -> None:
        if amount > 0:
            self._recorder.add(metric, amount, {**self._common, **labels})

    def _set(self, metric: Metric, value: float, **labels: str) -> None:
        self._recorder.set(metric, value, {**self._common, **labels})


def _growth(before: ReplicaLoad, now: ReplicaLoad) -> Iterator[tuple[Metric, int]]:
    """What a replica has done between two of its reports."""
    yield PROMPT_TOKENS, now.input_tokens - before.input_tokens
    yield GENERATION_TOKENS, now.generated_tokens - before.generated_tokens
    yield PREFIX_TOKENS, now.usage.prefix_tokens - before.usage.prefix_tokens
    yield PREFIX_HIT_TOKENS, now.usage.prefix_hit_tokens - before.usage.prefix_hit_tokens
