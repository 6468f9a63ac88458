"""What came out of a job, in figures: an output's records and rows, read once, unit by unit.

Memory is bounded by the units and the sizes of histograms and samples, not by the rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import __version__
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.output.output import (
    Opened,
    RunFacts,
    batches,
    committed_units,
    read_records,
    runs_of,
)
from tokenmill.output.plan_file import JOB_KEY
from tokenmill.output.record import UnitRecord
from tokenmill.output.rejects import describe_reject
from tokenmill.output.schema import added_fields
from tokenmill.output.totals import read_success, totals_of
from tokenmill.report.cells import finite, is_heavy, is_words, shorten, shown_cells, words_of
from tokenmill.report.streaming_stats import Histogram, Reservoir, RunningValues
from tokenmill.report.throughput import ReplicaThroughput, busy_seconds, replica_throughputs

_SAMPLES = 20
# As many of the samples are rejects, where there are.
_REJECTED_SAMPLES = 5
_EXAMPLES = 3
# What a bar plot can show, and a label may have.
_MOST_LABELS = 50
_LONGEST_LABEL = 100
# Columns that are labels, however few rows there are.
_LABEL_NAMES = ("label", "tags", "language", "origin", "failed_checks", "stop_reason")
_FINISH = ("finish_reason", "finish_reasons")
_SECONDS_AN_HOUR = 3600


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row to look at. `rejected` is its error's class, None where it has an answer."""

    source_file: str
    source_row: int
    rejected: str | None
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The rejects of a class: how many, and some of them in words."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedFigure:
    """A figure of the plan beside what it came to; None where it is not known."""

    name: str
    planned: float | None
    low: float | None
    high: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class OutputReport:
    """An output's figures; JSON holds all of them.

    `rows` = `answered` + `rejected`; `filtered` rows are left out by `input.where`. `seconds` is
    the time in which some replica had a unit, `replica_seconds` the sum of the replicas' own.
    `labels` maps columns of few values to how often each occurs, `scores` numeric columns of the
    tasks to their histograms.
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
        """Input and output tokens a second of engine time, of all replicas together.

        Of what is over in a moment there is no rate worth the name.
        """
        tokens = self.input_tokens + self.generated_tokens
        return tokens / self.seconds if self.seconds >= 1 else None

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {**finite(asdict(self)), "tokens_per_s": self.tokens_per_s}


def make_report(
    opened: Opened, plan: Mapping[str, Any] | None = None, price: float | None = None
) -> OutputReport:
    """Read an output. `price` is that of a GPU-hour, else the job's. Raises `UserError`."""
    store, job = opened.store, opened.job
    price = job.model.price_per_gpu_hour if price is None else price
    units = committed_units(store, opened.plan)
    records = list(read_records(store, [unit.key for unit in units]))
    seen = _Seen(opened)
    for unit in units:
        for batch in batches(store, unit, seen.names):
            seen.add(batch)
    totals = totals_of(records)
    paces = replica_throughputs(records)
    replica_seconds = sum(pace.seconds for pace in paces)
    gpu_hours = _gpu_hours(job, replica_seconds, plan, price)
    cost = None if price is None or gpu_hours is None else round(price * gpu_hours, 4)
    seconds = round(busy_seconds(record for record in records if record.written_at), 3)
    actual = {
        "rows": float(totals.rows),
        "input_tokens": float(totals.input_tokens),
        "output_tokens": float(totals.generated_tokens),
        "seconds_per_replica": _seconds_per_replica(paces),
        "gpu_hours": gpu_hours,
        "cost": cost,
    }
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
        units=totals.units,
        units_planned=len(opened.plan.units),
        rows=totals.rows,
        answered=totals.rows - totals.rejected,
        rejected=totals.rejected,
        filtered=totals.filtered,
        input_tokens=totals.input_tokens,
        generated_tokens=totals.generated_tokens,
        reused=sum(record.num_reused for record in records),
        seconds=seconds,
        replica_seconds=round(replica_seconds, 3),
        gpu_hours=gpu_hours,
        cost=cost,
        replicas=paces,
        input_lengths=seen.lengths["num_input_tokens"],
        output_lengths=seen.lengths["num_generated_tokens"],
        finish_reasons=seen.counts(seen.finish),
        rejects=_rejects(totals.rejects, seen.examples),
        labels=seen.counts(seen.labels),
        scores={name: found for name, found in seen.scores.items() if found.count},
        plan=() if plan is None else tuple(_planned(plan, actual)),
        samples=tuple(seen.samples()),
        runs=runs_of(store),
    )


def _seconds_per_replica(paces: Sequence[ReplicaThroughput]) -> float | None:
    """The mean over a run's replicas, of all runs together."""
    runs: dict[str, list[float]] = defaultdict(list)
    for pace in paces:
        runs[pace.run].append(pace.seconds)
    return sum(sum(seconds) / len(seconds) for seconds in runs.values()) if runs else None


def _versions(record: UnitRecord) -> str:
    revision = f" at {record.revision}" if record.revision else ""
    engine = f"{record.engine} {record.engine_version}".strip()
    return f"tokenmill {record.version}, {engine}, {record.model}{revision}"


def _gpu_hours(
    job: Job, replica_seconds: float, plan: Mapping[str, Any] | None, price: float | None
) -> float | None:
    """GPU-hours, of an output that a GPU made: a price or the plan says so."""
    if price is None and (plan is None or _number(plan.get("gpu_hours")) is None):
        return None
    return round(replica_seconds / _SECONDS_AN_HOUR * job.model.gpus_per_replica, 6)


def read_plan_file(text: str, where: str) -> Mapping[str, Any]:
    """The figures that `tokenmill plan` wrote. Raises `UserError` if it is something else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: no JSON ({error}); name what tokenmill plan wrote") from error
    if not isinstance(found, dict) or "input_tokens" not in found:
        raise UserError(f"{where}: no figures of a plan; name what tokenmill plan wrote")
    return found


def _planned(
    plan: Mapping[str, Any], actual: Mapping[str, float | None]
) -> Iterator[PlannedFigure]:
    for name, came in actual.items():
        figure = plan.get(name)
        if name == "rows":
            figure = plan.get("passing_rows", figure)
        parts = figure if isinstance(figure, Mapping) else {"estimate": figure}
        low, high = _number(parts.get("low")), _number(parts.get("high"))
        yield PlannedFigure(name, _number(parts.get("estimate")), low, high, came)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _rejects(
    counts: Mapping[str, int], examples: Mapping[str, Reservoir[str]]
) -> dict[str, Rejected]:
    """By class, the most frequent first."""
    return {
        name: Rejected(count, tuple(examples[name].items) if name in examples else ())
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    }


class _Seen:
    """What the rows that went by came to."""

    def __init__(self, opened: Opened) -> None:
        answers = added_fields(opened.job)
        shown = [*opened.kept_schema, *answers]
        self._shown = [field.name for field in shown if not is_heavy(field.type)]
        self.names = list(
            dict.fromkeys(
                [
                    *self._shown,
                    "num_input_tokens",
                    "num_generated_tokens",
                    "error",
                    "source_file",
                    "source_row",
                ]
            )
        )
        self.lengths = {
            name: Histogram.of_integers() for name in ("num_input_tokens", "num_generated_tokens")
        }
        self.scores = {
            field.name: Histogram() for field in answers if pa.types.is_floating(field.type)
        }
        words = [field for field in answers if is_words(field.type)]
        self.finish = {
            field.name: RunningValues(_MOST_LABELS, _LONGEST_LABEL)
            for field in words
            if field.name.endswith(_FINISH)
        }
        self.labels = {
            field.name: RunningValues(_MOST_LABELS, _LONGEST_LABEL)
            for field in words
            if field.name not in self.finish
        }
        self.examples: dict[str, Reservoir[str]] = {}
        self._answered: Reservoir[ShownRow] = Reservoir(_SAMPLES, seed=0)
        self._rejected: Reservoir[ShownRow] = Reservoir(_SAMPLES, seed=1)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch's rows."""
        for histograms in (self.lengths, self.scores):
            for name, histogram in histograms.items():
                values = batch.column(name).drop_null().cast(pa.float64())
                histogram.add(values.to_numpy(zero_copy_only=False))
        for columns in (self.finish, self.labels):
            for name, values in columns.items():
                if values.is_few:
                    values.add(words_of(batch.column(name)))
        is_answered = batch.column("error").is_null()
        self._sample(self._answered, batch.filter(is_answered))
        rejected = batch.filter(pc.invert(is_answered))
        self._sample(self._rejected, rejected)
        for row in rejected.select(["error", "source_file", "source_row"]).to_pylist():
            name = row["error"]["class"]
            self.examples.setdefault(name, Reservoir(_EXAMPLES, seed=2)).offer(
                shorten(describe_reject(row))
            )

    def counts(self, columns: Mapping[str, RunningValues]) -> dict[str, dict[str, int]]:
        """The columns that have few values: those that are made to, and those that turned out so.

        Of the others each value must have been there twice on an average.
        """
        return {
            name: dict(values.counts.most_common())
            for name, values in columns.items()
            if values.counts
            and (
                name.endswith((*_LABEL_NAMES, *_FINISH))
                or values.counts.total() >= 2 * len(values.counts)
            )
        }

    def samples(self) -> list[ShownRow]:
        """Twenty rows, the rejects among them last."""
        answered, rejected = self._answered.items, self._rejected.items
        num_rejected = min(len(rejected), max(_REJECTED_SAMPLES, _SAMPLES - len(answered)))
        return [*answered[: _SAMPLES - num_rejected], *rejected[:num_rejected]]

    def _sample(self, reservoir: Reservoir[ShownRow], rows: pa.RecordBatch) -> None:
        for place, mark in reservoir.chosen(rows.num_rows):
            (row,) = rows.slice(place, 1).to_pylist()
            reservoir.keep(mark, shown_row(row, self._shown))


def shown_row(row: Mapping[str, Any], names: Sequence[str]) -> ShownRow:
    """A row's columns as text, without those that are null."""
    cells = shown_cells(row, names)
    error = row["error"]
    if error is not None:
        cells["error"] = shorten(error["message"])
    rejected = None if error is None else error["class"]
    return ShownRow(row["source_file"], row["source_row"], rejected, cells)
