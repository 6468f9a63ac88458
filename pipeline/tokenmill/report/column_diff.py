"""Two versions of a column: agreement, flips, drift and similarity of texts."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tokenmill.output.output import BATCH_ROWS
from tokenmill.report.cells import as_text, is_words, shorten
from tokenmill.report.streaming_stats import Histogram, Reservoir

_LONGEST = 6
# Pairs of texts that differ, of which the likeness is the mean; and what of a text is looked at.
_MEASURED_PAIRS = 1000
_MOST_CHARACTERS = 4000
# Of the pairs of a column that may be labels.
_MOST_PAIRS = 2000
_MOST_LABELS = 30
_LONGEST_LABEL = 100
# Numbers within it agree: engines round differently from batch to batch.
_TOLERANCE = 1e-6


def chrf(one: str, other: str) -> float:
    """0 (nothing in common) to 1; the same for both orders, 1 for two empty texts."""
    first, second = "".join(one.split()), "".join(other.split())
    if first == second:
        return 1.0
    precisions, recalls = [], []
    for length in range(1, _LONGEST + 1):
        mine, theirs = _ngrams(first, length), _ngrams(second, length)
        if not mine or not theirs:
            # A text is shorter than the n-gram: those of this length say nothing.
            continue
        common = (mine & theirs).total()
        precisions.append(common / mine.total())
        recalls.append(common / theirs.total())
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall)


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))


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


def has_fractions(kind: pa.DataType) -> bool:
    """Whether a number of a column, or of its lists and maps, may change in its last digit."""
    if pa.types.is_map(kind):
        return has_fractions(kind.item_type)
    if pa.types.is_list(kind):
        return has_fractions(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_fractions(part.type) for part in kind)
    return bool(pa.types.is_floating(kind))


class ColumnPairs:
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


class _Words(ColumnPairs):
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


class _Lists(ColumnPairs):
    """Lists of words, in which order says nothing new."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._gained: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    def differs(self, one: Any, other: Any) -> bool:
        mine = Counter(as_text(cell) for cell in one or ())
        theirs = Counter(as_text(cell) for cell in other or ())
        for changed, counter in ((theirs - mine, self._gained), (mine - theirs, self._lost)):
            counter.update({shorten(name): count for name, count in changed.items()})
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


class _Numbers(ColumnPairs):
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


class _Fractions(ColumnPairs):
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


def column_for(each: pa.Field, is_gated: bool) -> ColumnPairs:
    """The comparison that suits the type of a column."""
    kind = each.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _Numbers(each.name, is_gated)
    if pa.types.is_list(kind) and is_words(kind):
        return _Lists(each.name, is_gated)
    if is_words(kind):
        return _Words(each.name, is_gated)
    return (
        _Fractions(each.name, is_gated) if has_fractions(kind) else ColumnPairs(each.name, is_gated)
    )
