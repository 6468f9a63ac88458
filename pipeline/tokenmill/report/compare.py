"""Two outputs over the same rows, held against each other: what agrees, flips and drifts.

Rows are matched by `source_file` and `source_row` while both outputs stream by; memory is bounded
by the sizes of samples, histograms and confusion matrices.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.output.output import Opened, batches, committed_units
from tokenmill.output.schema import added_fields
from tokenmill.plan.plan import Unit
from tokenmill.report.cells import finite, shorten, shown_cells
from tokenmill.report.column_diff import ColumnComparison, ColumnPairs, column_for, has_fractions
from tokenmill.report.streaming_stats import Reservoir

_SAMPLES = 20
# Change without a change of the answer: why it ended, how often it was asked.
_BESIDES = ("finish_reason", "finish_reasons", "stop_reason", "attempts")


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that changed, and its cells in both outputs; `columns` names those that differ."""

    source_file: str
    source_row: int
    columns: tuple[str, ...]
    first: Mapping[str, str]
    second: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two outputs: `rows` are in both; `changed` of them differ in a gated column or in their fate.

    `only_a` and `only_b` count the rows that the other output lacks. Rejects are gained where only
    the second output has one, lost where only the first has.
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
        """Rows that changed, or that one output lacks, as a share of all."""
        rows = self.rows + self.only_a + self.only_b
        return (self.changed + self.only_a + self.only_b) / rows if rows else 0.0

    @property
    def largest_drift(self) -> float:
        """The largest mean difference of a numeric column, without its sign."""
        drifts = [column.drift for column in self.columns if column.drift is not None]
        return max((abs(drift.mean_difference or 0.0) for drift in drifts), default=0.0)

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        columns = [{**asdict(column), "agreement": column.agreement} for column in self.columns]
        more = {"changed_share": self.changed_share, "largest_drift": self.largest_drift}
        facts: dict[str, Any] = finite({**asdict(self), "columns": columns, **more})
        return facts


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """How much may change: a share of the rows, and the mean of a score (None: anything)."""

    max_changed: float
    max_drift: float | None = None

    def is_kept_by(self, comparison: Comparison) -> bool:
        """Whether a comparison is within the limits."""
        if comparison.changed_share > self.max_changed:
            return False
        return self.max_drift is None or comparison.largest_drift <= self.max_drift

    def verdict(self, comparison: Comparison) -> dict[str, Any]:
        """The limits, and whether they are kept, for programs."""
        return {**asdict(self), "within_limits": self.is_kept_by(comparison)}


def compare(first: Opened, second: Opened, on: Sequence[str] | None = None) -> Comparison:
    """Hold two outputs against each other. `on` names the columns whose changes count.

    By default those are all that both have but for fractional numbers, which drift, and for why
    and after how many tries an answer ended. Raises `UserError` if they are of different rows.
    """
    check_same_input(first, second)
    fields = _shared(first, second)
    gated = _gated(fields, on)
    kept = [name for name in first.kept_schema.names if name in second.kept_schema.names]
    seen = _Seen([column_for(each, each.name in gated) for each in fields], kept)
    for one, other in _pairs(first, second, [*kept, *(each.name for each in fields)]):
        seen.add(one, other)
    return Comparison(
        output_a=first.store.url,
        output_b=second.store.url,
        job_a=first.job.name,
        job_b=second.job.name,
        model_a=first.job.model.source,
        model_b=second.job.model.source,
        rows=seen.rows,
        only_a=seen.only[0],
        only_b=seen.only[1],
        changed=seen.changed,
        answered=seen.answered,
        rejects_gained=dict(seen.gained.most_common()),
        rejects_lost=dict(seen.lost.most_common()),
        rejected_in_both=seen.rejected_in_both,
        columns=tuple(column.result() for column in seen.columns),
        samples=tuple(seen.samples.items),
    )


def check_same_input(first: Opened, second: Opened) -> None:
    """Raise `UserError` with the first difference if two outputs are not of the same shards."""
    where = f"{first.store.url} and {second.store.url} are of different inputs"
    is_same_place = first.plan.input_url == second.plan.input_url
    ours, theirs = _shards(first), _shards(second)
    for shard in sorted(ours.keys() | theirs.keys()):
        for mine, other, lacking in ((ours, theirs, second), (theirs, ours, first)):
            if shard in mine and shard not in other:
                raise UserError(f"{where}: {shard} is not in {lacking.store.url}")
        rows, size, version = ours[shard]
        other_rows, other_size, other_version = theirs[shard]
        if rows != other_rows:
            raise UserError(f"{where}: {shard} has {rows:,} rows, and {other_rows:,}")
        if size != other_size:
            raise UserError(f"{where}: {shard} has {size:,} bytes, and {other_size:,}")
        # A copy of the corpus has other times or ETags than its original.
        if is_same_place and version != other_version:
            raise UserError(f"{where}: {shard} was written again between them")


def _shards(opened: Opened) -> dict[str, tuple[int, int, str]]:
    """Each planned shard's rows, bytes and version."""
    found: dict[str, tuple[int, int, str]] = {}
    for unit in opened.plan.units:
        rows = found.get(unit.shard, (0, 0, ""))[0]
        found[unit.shard] = (rows + unit.num_rows, unit.size, unit.version)
    return found


def _shared(first: Opened, second: Opened) -> list[pa.Field]:
    """The tasks' columns that both have, of the same type, bytes and vectors left out."""
    theirs = {each.name: each for each in added_fields(second.job)}
    return [
        each
        for each in added_fields(first.job)
        if each.name in theirs
        and theirs[each.name].type == each.type
        and not pa.types.is_fixed_size_list(each.type)
    ]


def _gated(fields: Sequence[pa.Field], on: Sequence[str] | None) -> set[str]:
    names = [each.name for each in fields]
    for name in on or ():
        if name not in names:
            raise UserError(f"--on {name}: {did_you_mean(name, names, 'column')}")
    if on:
        return set(on)
    return {
        each.name
        for each in fields
        if not has_fractions(each.type) and not each.name.endswith(_BESIDES)
    }


RowCells = Mapping[str, Any]


def _pairs(
    first: Opened, second: Opened, names: Sequence[str]
) -> Iterator[tuple[RowCells | None, RowCells | None]]:
    """The rows of both outputs, those of the same place beside each other."""
    ours, theirs = _rows(first, names), _rows(second, names)
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        at_one, at_other = _place(one), _place(other)
        if at_one == at_other:
            yield one, other
            one, other = next(ours, None), next(theirs, None)
        elif at_one < at_other:
            yield one, None
            one = next(ours, None)
        else:
            yield None, other
            other = next(theirs, None)


def _place(row: RowCells | None) -> tuple[bool, str, int]:
    """What sorts rows; behind the last one stands the end."""
    return (True, "", 0) if row is None else (False, row["source_file"], row["source_row"])


def _rows(opened: Opened, names: Sequence[str]) -> Iterator[RowCells]:
    """An output's rows by shard and position."""
    units = sorted(committed_units(opened.store, opened.plan), key=_order_of_units)
    wanted = list(dict.fromkeys([*names, "error", "source_file", "source_row"]))
    for unit in units:
        for batch in batches(opened.store, unit, wanted):
            yield from batch.to_pylist()


def _order_of_units(unit: Unit) -> tuple[str, int]:
    return unit.shard, unit.first_row


class _Seen:
    """What the pairs of rows that went by came to."""

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
        self.samples: Reservoir[Difference] = Reservoir(_SAMPLES, seed=4)

    def add(self, one: RowCells | None, other: RowCells | None) -> None:
        """Count a pair of rows, or a row that one output lacks."""
        if one is None or other is None:
            self.only[one is None] += 1
            return
        self.rows += 1
        differing = self._differing(one, other)
        if differing:
            self.changed += 1
            for _, mark in self.samples.chosen(1):
                self.samples.keep(mark, self._difference(one, other, differing))

    def _differing(self, one: RowCells, other: RowCells) -> list[str]:
        """The gated columns in which two rows differ, or `error` if only one has an answer."""
        if one["error"] is not None and other["error"] is not None:
            self.rejected_in_both += 1
            return []
        if one["error"] is not None:
            self.lost[one["error"]["class"]] += 1
            return ["error"]
        if other["error"] is not None:
            self.gained[other["error"]["class"]] += 1
            return ["error"]
        self.answered += 1
        return [
            column.name
            for column in self.columns
            if column.add(one[column.name], other[column.name]) and column.is_gated
        ]

    def _difference(self, one: RowCells, other: RowCells, differing: Sequence[str]) -> Difference:
        names = [*self._kept, *(column.name for column in self.columns if column.is_gated)]
        return Difference(
            one["source_file"],
            one["source_row"],
            tuple(differing),
            _shown(one, names),
            _shown(other, names),
        )


def _shown(row: RowCells, names: Sequence[str]) -> dict[str, str]:
    cells = shown_cells(row, names)
    if row["error"] is not None:
        cells["error"] = shorten(f"{row['error']['class']}: {row['error']['message']}")
    return cells
