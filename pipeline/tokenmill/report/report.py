"""The report on an output: counts, throughput, cost, rejects, labels, scores and sample rows.

Records and rows are read once, unit by unit. Memory is bounded by the number of units, not by the
number of rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill import __version__
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.output.counts import Counts, sum_counts
from tokenmill.output.output import OpenedOutput, committed_units
from tokenmill.output.plan_file import JOB_KEY
from tokenmill.output.record import UnitRecord, read_records
from tokenmill.output.runs import RunFacts, list_runs
from tokenmill.output.success import read_success
from tokenmill.report.cells import finite
from tokenmill.report.row_stats import RowStats, ShownRow
from tokenmill.report.streaming_stats import Histogram, Reservoir
from tokenmill.report.throughput import ReplicaThroughput, busy_seconds, replica_throughputs
from tokenmill.row_columns import NUM_GENERATED_TOKENS, NUM_INPUT_TOKENS

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Rejected:
    """The rejects of one class: their number, and a few as text."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedFigure:
    """A quantity of the plan and its actual value. Values are null if they are not known."""

    name: str
    planned: float | None
    low: float | None
    high: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class OutputReport:
    """The report on an output.

    `rows` = `answered` + `rejected`; `filtered` rows were left out by `input.where`. `seconds` is
    the time in which any replica had a unit, `replica_seconds` the sum over replicas. `labels` maps
    columns with few values to the number of each value, `scores` numeric columns to their
    histograms.
    """

    tokenmill: str
    output: str
    input: str
    job: str
    model: str
    revision: str | None
    fingerprint: str
    versions: tuple[str, ...]
    job_yaml: str
    is_finished: bool
    units: int
    units_planned: int
    rows: int
    answered: int
    rejected: int
    filtered: int
    input_tokens: int
    generated_tokens: int
    reused: int
    seconds: float
    replica_seconds: float
    gpu_hours: float | None
    cost: float | None
    replicas: tuple[ReplicaThroughput, ...]
    input_lengths: Histogram
    output_lengths: Histogram
    finish_reasons: Mapping[str, Mapping[str, int]]
    rejects: Mapping[str, Rejected]
    labels: Mapping[str, Mapping[str, int]]
    scores: Mapping[str, Histogram]
    plan: tuple[PlannedFigure, ...]
    samples: tuple[ShownRow, ...]
    runs: tuple[RunFacts, ...]

    @property
    def tokens_per_s(self) -> float | None:
        """Input and output tokens per second of engine time, of all replicas together.

        None for less than a second, from which no rate can be derived.
        """
        tokens = self.input_tokens + self.generated_tokens
        return tokens / self.seconds if self.seconds >= 1 else None

    def facts(self) -> dict[str, Any]:
        """All fields and derived values, as JSON can represent them."""
        return {**finite(asdict(self)), "tokens_per_s": self.tokens_per_s}


@dataclass(frozen=True, slots=True)
class _Usage:
    """Engine time and money. Values are None if they do not apply or are not known."""

    replicas: tuple[ReplicaThroughput, ...]
    seconds: float
    replica_seconds: float
    seconds_per_replica: float | None
    gpu_hours: float | None
    cost: float | None


def make_report(
    opened: OpenedOutput, plan: Mapping[str, Any] | None = None, price: float | None = None
) -> OutputReport:
    """Read an output and report on it.

    `plan` is what `tokenmill plan` wrote. `price` is the price of a GPU-hour; by default it is the
    job's. Raises `UserError` if the output holds foreign objects.
    """
    store, job = opened.store, opened.job
    units = committed_units(store, opened.plan)
    records = list(read_records(store, [unit.key for unit in units]))
    rows = RowStats.of_units(opened, units)
    counts = sum_counts(record.counts for record in records)
    usage = _usage(job, records, plan, job.model.price_per_gpu_hour if price is None else price)
    return OutputReport(
        tokenmill=__version__,
        output=store.url,
        input=opened.plan.input_url,
        job=job.name,
        model=job.model.source,
        revision=job.model.revision,
        fingerprint=opened.plan.fingerprint,
        versions=tuple(sorted({_versions(record) for record in records})),
        job_yaml=store.read(JOB_KEY).decode(errors="replace"),
        is_finished=read_success(store) is not None,
        units=counts.units,
        units_planned=len(opened.plan.units),
        rows=counts.rows,
        answered=counts.rows - counts.rejected,
        rejected=counts.rejected,
        filtered=counts.filtered,
        input_tokens=counts.input_tokens,
        generated_tokens=counts.generated_tokens,
        reused=sum(record.num_reused for record in records),
        seconds=usage.seconds,
        replica_seconds=usage.replica_seconds,
        gpu_hours=usage.gpu_hours,
        cost=usage.cost,
        replicas=usage.replicas,
        input_lengths=rows.lengths[NUM_INPUT_TOKENS],
        output_lengths=rows.lengths[NUM_GENERATED_TOKENS],
        finish_reasons=rows.finish_reasons,
        rejects=_rejects(counts.rejects, rows.examples),
        labels=rows.labels,
        scores=rows.scores,
        plan=() if plan is None else tuple(_planned_figures(plan, counts, usage)),
        samples=rows.samples,
        runs=list_runs(store),
    )


def _usage(
    job: Job,
    records: Sequence[UnitRecord],
    plan: Mapping[str, Any] | None,
    price: float | None,
) -> _Usage:
    replicas = replica_throughputs(records)
    replica_seconds = sum(replica.seconds for replica in replicas)
    gpu_hours = None
    # Only a price, or a plan with GPU-hours, shows that the engines ran on GPUs.
    if price is not None or (plan is not None and _number(plan.get("gpu_hours")) is not None):
        hours = replica_seconds / _SECONDS_PER_HOUR
        gpu_hours = round(hours * job.model.gpus_per_replica, 6)
    return _Usage(
        replicas=replicas,
        seconds=round(busy_seconds(record for record in records if record.written_at), 3),
        replica_seconds=round(replica_seconds, 3),
        seconds_per_replica=_seconds_per_replica(replicas),
        gpu_hours=gpu_hours,
        cost=None if price is None or gpu_hours is None else round(price * gpu_hours, 4),
    )


def _seconds_per_replica(replicas: Sequence[ReplicaThroughput]) -> float | None:
    """The mean over a run's replicas, summed over all runs."""
    runs: dict[str, list[float]] = defaultdict(list)
    for replica in replicas:
        runs[replica.run].append(replica.seconds)
    return sum(sum(seconds) / len(seconds) for seconds in runs.values()) if runs else None


def _versions(record: UnitRecord) -> str:
    revision = f" at {record.revision}" if record.revision else ""
    engine = f"{record.engine} {record.engine_version}".strip()
    return f"tokenmill {record.version}, {engine}, {record.model}{revision}"


def parse_estimate(text: str, where: str) -> Mapping[str, Any]:
    """The estimate that `tokenmill plan` wrote. Raises `UserError` for anything else."""
    advice = "name a file written by tokenmill plan --save"
    try:
        plan = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); {advice}") from error
    if not isinstance(plan, dict) or "input_tokens" not in plan:
        raise UserError(f"{where}: not an estimate; {advice}")
    return plan


def _planned_figures(
    plan: Mapping[str, Any], counts: Counts, usage: _Usage
) -> Iterator[PlannedFigure]:
    actual: dict[str, float | None] = {
        "rows": float(counts.rows),
        "input_tokens": float(counts.input_tokens),
        "output_tokens": float(counts.generated_tokens),
        "seconds_per_replica": usage.seconds_per_replica,
        "gpu_hours": usage.gpu_hours,
        "cost": usage.cost,
    }
    for name, value in actual.items():
        planned = plan.get(name)
        if name == "rows":
            planned = plan.get("passing_rows", planned)
        parts = planned if isinstance(planned, Mapping) else {"estimate": planned}
        low, high = _number(parts.get("low")), _number(parts.get("high"))
        yield PlannedFigure(name, _number(parts.get("estimate")), low, high, value)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _rejects(
    counts: Mapping[str, int], examples: Mapping[str, Reservoir[str]]
) -> dict[str, Rejected]:
    """The rejects by class, the most frequent first."""
    return {
        name: Rejected(count, tuple(examples[name].items) if name in examples else ())
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    }
