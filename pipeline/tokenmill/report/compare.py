"""Compare two outputs over the same rows: what agrees, what changed, what drifted.

Rows are matched by `source_file` and `source_row` while both outputs are read once. Memory is
bounded by the sizes of samples, histograms and confusion matrices.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.input.values import readable_rows
from tokenmill.output.output import OpenedOutput, batches, committed_units
from tokenmill.output.schema import added_fields, task_columns, task_names
from tokenmill.plan.plan import Unit
from tokenmill.report.cells import finite, shorten, shown_cells
from tokenmill.report.column_diff import (
    ColumnComparison,
    ColumnPairs,
    column_pairs,
    has_fractions,
)
from tokenmill.report.streaming_stats import Reservoir
from tokenmill.row_columns import ERROR, SOURCE_FILE, SOURCE_ROW

_NUM_SAMPLES = 20
# Columns that may change although the answer does not.
_INCIDENTAL_COLUMNS = ("finish_reason", "finish_reasons", "stop_reason", "attempts")


@dataclass(frozen=True, slots=True)
class Difference:
    """A changed row and its cells in both outputs; `columns` names those that differ."""

    source_file: str
    source_row: int
    columns: tuple[str, ...]
    first: Mapping[str, str]
    second: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two outputs, A and B.

    `rows` are in both outputs. `changed` of them differ in a gated column, or are rejected in one
    output only. `only_a` and `only_b` count the rows that the other output lacks. `rejects_gained`
    are rejects only in B, `rejects_lost` only in A.
    """

    output_a: str
    output_b: str
    job_a: str
    job_b: str
    model_a: str
    model_b: str
    rows: int
    only_a: int
    only_b: int
    changed: int
    answered: int
    rejects_gained: Mapping[str, int]
    rejects_lost: Mapping[str, int]
    rejected_in_both: int
    columns: tuple[ColumnComparison, ...]
    samples: tuple[Difference, ...]

    @property
    def changed_share(self) -> float:
        """Rows that changed, or that one output lacks, as a share of all rows."""
        rows = self.rows + self.only_a + self.only_b
        return (self.changed + self.only_a + self.only_b) / rows if rows else 0.0

    @property
    def largest_drift(self) -> float:
        """The largest absolute mean difference of a numeric column."""
        drifts = [column.drift for column in self.columns if column.drift is not None]
        return max((abs(drift.mean_difference or 0.0) for drift in drifts), default=0.0)

    def facts(self) -> dict[str, Any]:
        """All fields and derived values, as JSON can represent them."""
        columns = [{**asdict(column), "agreement": column.agreement} for column in self.columns]
        derived = {"changed_share": self.changed_share, "largest_drift": self.largest_drift}
        facts: dict[str, Any] = finite({**asdict(self), "columns": columns, **derived})
        return facts


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """The largest share of rows that may change, and by how much a mean may move (None: any)."""

    max_changed: float
    max_drift: float | None = None

    def allows(self, comparison: Comparison) -> bool:
        """Whether a comparison is within the limits."""
        if comparison.changed_share > self.max_changed:
            return False
        return self.max_drift is None or comparison.largest_drift <= self.max_drift

    def check(self, comparison: Comparison) -> None:
        """Raise `UserError` if the outputs have nothing in common that the limits apply to."""
        if not comparison.answered and not comparison.changed:
            raise UserError(
                f"cannot compare {comparison.output_a} and {comparison.output_b}: no row that both "
                "contain has an answer in either of them"
            )
        is_drift_limited = self.max_drift is not None
        if not any(
            column.is_gated or (is_drift_limited and column.drift is not None)
            for column in comparison.columns
        ):
            names = ", ".join(column.name for column in comparison.columns)
            raise UserError(
                f"changes in {names} are not counted by default; name columns with --on, or limit "
                "the change of their means with --max-drift"
            )

    def verdict(self, comparison: Comparison) -> dict[str, Any]:
        """The limits and whether the comparison is within them, as JSON fields."""
        return {**asdict(self), "within_limits": self.allows(comparison)}


def compare(
    first: OpenedOutput, second: OpenedOutput, on: Sequence[str] | None = None
) -> Comparison:
    """Compare two outputs row by row. `on` names the gated columns, whose changes count.

    By default they are all columns that both outputs have, except fractional numbers, finish
    reasons, stop reasons and numbers of attempts.

    Raises `UserError` if the outputs were made from different rows, or have no answer column in
    common.
    """
    check_same_input(first, second)
    fields = _shared_fields(first, second)
    _require_shared_answers(first, second, fields)
    gated = _gated_names(fields, task_names(first.job), on)
    kept = [name for name in first.kept_schema.names if name in second.kept_schema.names]
    stats = _PairStats([column_pairs(field, field.name in gated) for field in fields], kept)
    for one, other in _matched_rows(first, second, [*kept, *(field.name for field in fields)]):
        stats.add(one, other)
    return Comparison(
        output_a=first.store.url,
        output_b=second.store.url,
        job_a=first.job.name,
        job_b=second.job.name,
        model_a=first.job.model.source,
        model_b=second.job.model.source,
        rows=stats.rows,
        only_a=stats.only[0],
        only_b=stats.only[1],
        changed=stats.changed,
        answered=stats.answered,
        rejects_gained=dict(stats.gained.most_common()),
        rejects_lost=dict(stats.lost.most_common()),
        rejected_in_both=stats.rejected_in_both,
        columns=tuple(column.result() for column in stats.columns),
        samples=tuple(stats.samples.items),
    )


def check_same_input(first: OpenedOutput, second: OpenedOutput) -> None:
    """Raise `UserError` with the first difference if the outputs are not of the same shards."""
    problem = f"cannot compare {first.store.url} and {second.store.url}: their inputs differ"
    is_same_folder = first.plan.input_url == second.plan.input_url
    shards, other_shards = _shards(first), _shards(second)
    for shard in sorted(shards.keys() | other_shards.keys()):
        if shard not in other_shards:
            raise UserError(f"{problem}: {shard} is not in the input of {second.store.url}")
        if shard not in shards:
            raise UserError(f"{problem}: {shard} is not in the input of {first.store.url}")
        rows, size, version = shards[shard]
        other_rows, other_size, other_version = other_shards[shard]
        if rows != other_rows:
            numbers = f"{rows:,} rows in the first and {other_rows:,} in the second"
            raise UserError(f"{problem}: {shard} has {numbers}")
        if size != other_size:
            numbers = f"{size:,} bytes in the first and {other_size:,} in the second"
            raise UserError(f"{problem}: {shard} has {numbers}")
        # A copy of a corpus has other modification times or ETags than the original.
        if is_same_folder and version != other_version:
            raise UserError(f"{problem}: {shard} was overwritten between the two runs")


def _shards(opened: OpenedOutput) -> dict[str, tuple[int, int, str]]:
    """The rows, bytes and version of each planned shard."""
    shards: dict[str, tuple[int, int, str]] = {}
    for unit in opened.plan.units:
        rows = shards.get(unit.shard, (0, 0, ""))[0]
        shards[unit.shard] = (rows + unit.num_rows, unit.size, unit.version)
    return shards


def _shared_fields(first: OpenedOutput, second: OpenedOutput) -> list[pa.Field]:
    """The answer columns that both outputs have with the same type, without vectors."""
    others = {field.name: field for field in added_fields(second.job)}
    return [
        field
        for field in added_fields(first.job)
        if field.name in others
        and others[field.name].type == field.type
        and not pa.types.is_fixed_size_list(field.type)
    ]


def _require_shared_answers(
    first: OpenedOutput, second: OpenedOutput, fields: Sequence[pa.Field]
) -> None:
    answers, other_answers = (
        [name for columns in task_columns(opened.job) for name in columns.values()]
        for opened in (first, second)
    )
    if not any(field.name in answers for field in fields):
        raise UserError(
            f"cannot compare {first.store.url} and {second.store.url}: they have no answer column "
            f"in common, other than vectors. A has {', '.join(answers)}; B has "
            f"{', '.join(other_answers)}. Give their tasks the same names and kinds"
        )


def _gated_names(
    fields: Sequence[pa.Field], task_names: Mapping[str, str], on: Sequence[str] | None
) -> set[str]:
    names = [field.name for field in fields]
    for name in on or ():
        if name not in names:
            raise UserError(f"--on {name}: {did_you_mean(name, names, 'column')}")
    if on:
        return set(on)
    return {
        field.name
        for field in fields
        if not has_fractions(field.type)
        and not task_names[field.name].endswith(_INCIDENTAL_COLUMNS)
    }


_Row = Mapping[str, Any]


def _matched_rows(
    first: OpenedOutput, second: OpenedOutput, names: Sequence[str]
) -> Iterator[tuple[_Row | None, _Row | None]]:
    """The rows of both outputs, merged by source; None for a row that an output lacks."""
    rows, other_rows = _sorted_rows(first, names), _sorted_rows(second, names)
    one, other = next(rows, None), next(other_rows, None)
    while one is not None or other is not None:
        key, other_key = _sort_key(one), _sort_key(other)
        if key == other_key:
            yield one, other
            one, other = next(rows, None), next(other_rows, None)
        elif key < other_key:
            yield one, None
            one = next(rows, None)
        else:
            yield None, other
            other = next(other_rows, None)


def _sort_key(row: _Row | None) -> tuple[bool, str, int]:
    """Orders rows by source; the end of an output (None) comes after all rows."""
    return (True, "", 0) if row is None else (False, row[SOURCE_FILE], row[SOURCE_ROW])


def _sorted_rows(opened: OpenedOutput, names: Sequence[str]) -> Iterator[_Row]:
    """An output's rows by shard and position."""
    units = sorted(committed_units(opened.store, opened.plan), key=_unit_sort_key)
    columns = list(dict.fromkeys([*names, ERROR, SOURCE_FILE, SOURCE_ROW]))
    for unit in units:
        for batch in batches(opened.store, unit, columns):
            yield from readable_rows(batch)


def _unit_sort_key(unit: Unit) -> tuple[str, int]:
    return unit.shard, unit.first_row


class _PairStats:
    """Statistics of the pairs of rows read so far."""

    def __init__(self, columns: Sequence[ColumnPairs], kept: Sequence[str]) -> None:
        self.columns = columns
        self._kept = kept
        self.rows = 0
        self.only = [0, 0]
        self.changed = 0
        self.answered = 0
        self.rejected_in_both = 0
        self.gained: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.samples: Reservoir[Difference] = Reservoir(_NUM_SAMPLES, seed=4)

    def add(self, one: _Row | None, other: _Row | None) -> None:
        """Count a pair of rows, or a row that one output lacks."""
        if one is None or other is None:
            self.only[one is None] += 1
            return
        self.rows += 1
        differing = self._differing(one, other)
        if differing:
            self.changed += 1
            for _, key in self.samples.choose(1):
                self.samples.keep(key, self._difference(one, other, differing))

    def _differing(self, one: _Row, other: _Row) -> list[str]:
        """The gated columns in which the rows differ, or `error` if only one has an answer."""
        if one[ERROR] is not None and other[ERROR] is not None:
            self.rejected_in_both += 1
            return []
        if one[ERROR] is not None:
            self.lost[one[ERROR]["class"]] += 1
            return [ERROR]
        if other[ERROR] is not None:
            self.gained[other[ERROR]["class"]] += 1
            return [ERROR]
        self.answered += 1
        return [
            column.name
            for column in self.columns
            if column.add(one[column.name], other[column.name]) and column.is_gated
        ]

    def _difference(self, one: _Row, other: _Row, differing: Sequence[str]) -> Difference:
        names = [*self._kept, *(column.name for column in self.columns if column.is_gated)]
        return Difference(
            one[SOURCE_FILE],
            one[SOURCE_ROW],
            tuple(differing),
            _shown(one, names),
            _shown(other, names),
        )


def _shown(row: _Row, names: Sequence[str]) -> dict[str, str]:
    cells = shown_cells(row, names)
    if row[ERROR] is not None:
        cells[ERROR] = shorten(f"{row[ERROR]['class']}: {row[ERROR]['message']}")
    return cells
