"""Two outputs over the same rows, held against each other: what agrees, flips and drifts.

Rows are matched by `source_file` and `source_row` while both outputs stream by; memory is bounded
by the sizes of samples, histograms and confusion matrices.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chrf import chrf
from pipeline.columns import added_fields
from pipeline.errors import UserError
from pipeline.output import BATCH_ROWS, Opened, batches, committed_units
from pipeline.plan import Unit
from pipeline.report import as_text, cut, finite, is_words, shown_cells
from pipeline.section import unknown
from pipeline.tally import Histogram, Reservoir

_SAMPLES = 20
# Pairs of texts that differ, of which the likeness is the mean; and what of a text is looked at.
_MEASURED_PAIRS = 1000
_MOST_CHARACTERS = 4000
# Of the pairs of a column that may be labels.
_MOST_PAIRS = 2000
_MOST_LABELS = 30
_LONGEST_LABEL = 100
# Numbers within it agree: engines round differently from batch to batch.
_TOLERANCE = 1e-6
# Change without a change of the answer: why it ended, how often it was asked.
_BESIDES = ("finish_reason", "finish_reasons", "stop_reason", "attempts")


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[i][j]` rows have the i-th label in the first output and the j-th in the second."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """A numeric column: means, the mean and largest difference (second minus first), Pearson's r.

    None where there are no pairs, or no variance to correlate.
    """

    pairs: int
    mean_a: float | None
    mean_b: float | None
    mean_difference: float | None
    largest_difference: float | None
    correlation: float | None
    first: Histogram
    second: Histogram
    differences: Histogram


@dataclass(frozen=True, slots=True)
class ColumnComparison:
    """A column over the rows that both outputs answered.

    `is_gated` tells whether its changes count as changes of the row. `likeness` is the mean chrF
    of the texts, equal ones 1 (0 to 1); `gained` and `lost` count the elements of lists.
    """

    name: str
    is_gated: bool
    rows: int
    changed: int
    confusion: Confusion | None = None
    drift: Drift | None = None
    likeness: float | None = None
    gained: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def agreement(self) -> float:
        """The share of rows with the same cell."""
        return 1 - self.changed / self.rows if self.rows else 1.0


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
class Limits:
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
    refuse_other_input(first, second)
    fields = _shared(first, second)
    gated = _gated(fields, on)
    kept = [name for name in first.kept_schema.names if name in second.kept_schema.names]
    seen = _Seen([_column(each, each.name in gated) for each in fields], kept)
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


def refuse_other_input(first: Opened, second: Opened) -> None:
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
            raise UserError(f"--on {name}: {unknown(name, names, 'column')}")
    if on:
        return set(on)
    return {
        each.name
        for each in fields
        if not _has_fractions(each.type) and not each.name.endswith(_BESIDES)
    }


def _has_fractions(kind: pa.DataType) -> bool:
    """Whether a number of a column, or of its lists and maps, may change in its last digit."""
    if pa.types.is_map(kind):
        return _has_fractions(kind.item_type)
    if pa.types.is_list(kind):
        return _has_fractions(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_fractions(part.type) for part in kind)
    return bool(pa.types.is_floating(kind))


Cells = Mapping[str, Any]


def _pairs(
    first: Opened, second: Opened, names: Sequence[str]
) -> Iterator[tuple[Cells | None, Cells | None]]:
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


def _place(row: Cells | None) -> tuple[bool, str, int]:
    """What sorts rows; behind the last one stands the end."""
    return (True, "", 0) if row is None else (False, row["source_file"], row["source_row"])


def _rows(opened: Opened, names: Sequence[str]) -> Iterator[Cells]:
    """An output's rows by shard and position."""
    units = sorted(committed_units(opened.store, opened.plan), key=_order_of_units)
    wanted = list(dict.fromkeys([*names, "error", "source_file", "source_row"]))
    for unit in units:
        for batch in batches(opened.store, unit, wanted):
            yield from batch.to_pylist()


def _order_of_units(unit: Unit) -> tuple[str, int]:
    return unit.shard, unit.first_row


class _Column:
    """What a column's pairs of cells came to; those of kinds of columns know more."""

    def __init__(self, name: str, is_gated: bool) -> None:
        self.name = name
        self.is_gated = is_gated
        self.rows = 0
        self.changed = 0

    def add(self, one: Any, other: Any) -> bool:
        """Count a pair; whether it differs."""
        self.rows += 1
        differs = self.differs(one, other)
        self.changed += differs
        return differs

    def differs(self, one: Any, other: Any) -> bool:
        return bool(one != other)

    def result(self) -> ColumnComparison:
        return ColumnComparison(self.name, self.is_gated, self.rows, self.changed)


class _Words(_Column):
    """Strings and yes or no: labels while there are few of them, and texts."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._flips: Counter[tuple[str, str]] | None = Counter()
        self._texts: Reservoir[tuple[str, str]] = Reservoir(_MEASURED_PAIRS, seed=3)

    def differs(self, one: Any, other: Any) -> bool:
        mine, theirs = ("null" if cell is None else as_text(cell) for cell in (one, other))
        if self._flips is not None:
            self._flips[mine, theirs] += 1
            longest = max(len(mine), len(theirs))
            if len(self._flips) > _MOST_PAIRS or longest > _LONGEST_LABEL:
                self._flips = None
        if one != other:
            self._texts.offer((mine[:_MOST_CHARACTERS], theirs[:_MOST_CHARACTERS]))
        return bool(one != other)

    def result(self) -> ColumnComparison:
        confusion = _confusion(self._flips or Counter())
        return ColumnComparison(
            self.name,
            self.is_gated,
            self.rows,
            self.changed,
            confusion=confusion,
            likeness=self._likeness() if confusion is None else None,
        )

    def _likeness(self) -> float | None:
        if not self.rows:
            return None
        pairs = self._texts.items
        alike = sum(chrf(*pair) for pair in pairs) / len(pairs) if pairs else 1.0
        return (self.rows - self.changed + self.changed * alike) / self.rows


def _confusion(flips: Counter[tuple[str, str]]) -> Confusion | None:
    """The matrix of a column that has few labels, each of them there twice on an average."""
    totals: Counter[str] = Counter()
    for pair, count in flips.items():
        for each in pair:
            totals[each] += count
    if not 1 < len(totals) <= _MOST_LABELS or totals.total() < 4 * len(totals):
        return None
    labels = tuple(sorted(totals))
    counts = tuple(tuple(flips[mine, theirs] for theirs in labels) for mine in labels)
    return Confusion(labels, counts)


class _Lists(_Column):
    """Lists of words, in which order says nothing new."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._gained: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    def differs(self, one: Any, other: Any) -> bool:
        mine = Counter(as_text(cell) for cell in one or ())
        theirs = Counter(as_text(cell) for cell in other or ())
        for changed, counter in ((theirs - mine, self._gained), (mine - theirs, self._lost)):
            counter.update({cut(name): count for name, count in changed.items()})
            # Of free texts only the most frequent say anything.
            if len(counter) > _MOST_PAIRS:
                kept = counter.most_common(_MOST_LABELS)
                counter.clear()
                counter.update(dict(kept))
        return mine != theirs or (one is None) != (other is None)

    def result(self) -> ColumnComparison:
        return ColumnComparison(
            self.name,
            self.is_gated,
            self.rows,
            self.changed,
            gained=dict(self._gained.most_common(_MOST_LABELS)),
            lost=dict(self._lost.most_common(_MOST_LABELS)),
        )


class _Numbers(_Column):
    """Numbers, whose means, differences and correlation follow from running sums (Welford)."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._histograms = (Histogram(), Histogram(), Histogram())
        self._waiting: list[tuple[float, float, float]] = []
        self._pairs = 0
        self._means = [0.0, 0.0]
        self._squares = [0.0, 0.0]
        self._products = 0.0
        self._largest = 0.0

    def differs(self, one: Any, other: Any) -> bool:
        if one is None or other is None:
            return one is not other
        mine, theirs = float(one), float(other)
        if not (math.isfinite(mine) and math.isfinite(theirs)):
            return not (mine == theirs or (math.isnan(mine) and math.isnan(theirs)))
        self._count(mine, theirs)
        return not math.isclose(mine, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)

    def _count(self, mine: float, theirs: float) -> None:
        self._pairs += 1
        self._waiting.append((mine, theirs, theirs - mine))
        if len(self._waiting) == BATCH_ROWS:
            self._flush()
        self._largest = max(self._largest, abs(theirs - mine))
        steps = mine - self._means[0], theirs - self._means[1]
        self._means = [
            mean + step / self._pairs for mean, step in zip(self._means, steps, strict=True)
        ]
        left = mine - self._means[0], theirs - self._means[1]
        self._squares = [
            square + step * rest
            for square, step, rest in zip(self._squares, steps, left, strict=True)
        ]
        self._products += steps[0] * left[1]

    def _flush(self) -> None:
        columns = np.array(self._waiting).reshape(-1, 3).T
        for histogram, values in zip(self._histograms, columns, strict=True):
            histogram.add(values)
        self._waiting.clear()

    def result(self) -> ColumnComparison:
        self._flush()
        first, second, differences = self._histograms
        spread = math.sqrt(self._squares[0] * self._squares[1])
        drift = Drift(
            pairs=self._pairs,
            mean_a=first.mean,
            mean_b=second.mean,
            mean_difference=differences.mean,
            largest_difference=self._largest if self._pairs else None,
            correlation=self._products / spread if spread else None,
            first=first,
            second=second,
            differences=differences,
        )
        return ColumnComparison(self.name, self.is_gated, self.rows, self.changed, drift=drift)


class _Fractions(_Column):
    """Lists and maps with numbers in them, equal if the numbers are as near as other numbers."""

    def differs(self, one: Any, other: Any) -> bool:
        return not _is_near(one, other)


def _is_near(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_near(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_near, one, other))
    return bool(one == other)


def _column(each: pa.Field, is_gated: bool) -> _Column:
    kind = each.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _Numbers(each.name, is_gated)
    if pa.types.is_list(kind) and is_words(kind):
        return _Lists(each.name, is_gated)
    if is_words(kind):
        return _Words(each.name, is_gated)
    return _Fractions(each.name, is_gated) if _has_fractions(kind) else _Column(each.name, is_gated)


class _Seen:
    """What the pairs of rows that went by came to."""

    def __init__(self, columns: Sequence[_Column], kept: Sequence[str]) -> None:
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

    def add(self, one: Cells | None, other: Cells | None) -> None:
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

    def _differing(self, one: Cells, other: Cells) -> list[str]:
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

    def _difference(self, one: Cells, other: Cells, differing: Sequence[str]) -> Difference:
        names = [*self._kept, *(column.name for column in self.columns if column.is_gated)]
        return Difference(
            one["source_file"],
            one["source_row"],
            tuple(differing),
            _shown(one, names),
            _shown(other, names),
        )


def _shown(row: Cells, names: Sequence[str]) -> dict[str, str]:
    cells = shown_cells(row, names)
    if row["error"] is not None:
        cells["error"] = cut(f"{row['error']['class']}: {row['error']['message']}")
    return cells
