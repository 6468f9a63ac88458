"""Compare two versions of a column: agreement, changed labels, numeric drift, text similarity."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tokenmill.output.output import BATCH_ROWS
from tokenmill.report.cells import as_text, is_textual, shorten
from tokenmill.report.streaming_stats import Histogram, Reservoir

_MAX_NGRAM = 6
# The similarity is the mean over a sample of the pairs that differ, and over their beginnings.
_SIMILARITY_PAIRS = 1000
_MAX_CHARACTERS = 4000
# Different pairs of values that are counted before a column no longer counts as labels.
_MAX_PAIRS = 2000
_MAX_LABELS = 30
_MAX_LABEL_LENGTH = 100
# Numbers within it are equal: engines round differently from batch to batch.
_TOLERANCE = 1e-6


def chrf(one: str, other: str) -> float:
    """The chrF score of two texts, from 0 (no common characters) to 1 (equal).

    The F-score (beta 1) of the precision and recall of character n-grams, each averaged over n = 1
    to 6, without whitespace: Popović, *chrF: character n-gram F-score for automatic MT evaluation*
    (2015). With beta 1 it is symmetric. Two empty texts are equal.
    """
    first, second = "".join(one.split()), "".join(other.split())
    if first == second:
        return 1.0
    precisions, recalls = [], []
    for length in range(1, _MAX_NGRAM + 1):
        ours, theirs = _ngrams(first, length), _ngrams(second, length)
        if not ours or not theirs:
            # A text is shorter than the n-gram, so this length is left out of the averages.
            continue
        common = (ours & theirs).total()
        precisions.append(common / ours.total())
        recalls.append(common / theirs.total())
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall)


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix.

    `counts[i][j]` rows have the i-th label in the first output and the j-th in the second.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """How a numeric column changed. Differences are the second output minus the first.

    `largest_difference` is absolute, and `correlation` is Pearson's r. Values are null if there are
    no pairs, or no variance to correlate.
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

    If `is_gated`, a row in which the column changed counts as changed. `likeness` is the mean chrF
    score of the texts (0 to 1), where equal texts count as 1. `gained` and `lost` count the added
    and removed elements of lists.
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
        """The share of rows with equal cells."""
        return 1 - self.changed / self.rows if self.rows else 1.0


def has_fractions(kind: pa.DataType) -> bool:
    """Whether cells of this type hold floats, which may differ in their last digits."""
    if pa.types.is_map(kind):
        return has_fractions(kind.item_type)
    if pa.types.is_list(kind):
        return has_fractions(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_fractions(part.type) for part in kind)
    return bool(pa.types.is_floating(kind))


class ColumnPairs:
    """Statistics of a column's pairs of cells. Subclasses add those of a kind of column."""

    def __init__(self, name: str, is_gated: bool) -> None:
        self.name = name
        self.is_gated = is_gated
        self.rows = 0
        self.changed = 0

    def add(self, one: Any, other: Any) -> bool:
        """Count a pair, and return whether its cells differ."""
        self.rows += 1
        differs = self.differs(one, other)
        self.changed += differs
        return differs

    def differs(self, one: Any, other: Any) -> bool:
        return bool(one != other)

    def result(self) -> ColumnComparison:
        return ColumnComparison(self.name, self.is_gated, self.rows, self.changed)


class _TextPairs(ColumnPairs):
    """Strings and booleans: labels as long as there are few values, texts otherwise."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._label_pairs: Counter[tuple[str, str]] | None = Counter()
        self._texts: Reservoir[tuple[str, str]] = Reservoir(_SIMILARITY_PAIRS, seed=3)

    def differs(self, one: Any, other: Any) -> bool:
        ours, theirs = ("null" if cell is None else as_text(cell) for cell in (one, other))
        if self._label_pairs is not None:
            self._label_pairs[ours, theirs] += 1
            length = max(len(ours), len(theirs))
            if len(self._label_pairs) > _MAX_PAIRS or length > _MAX_LABEL_LENGTH:
                self._label_pairs = None
        if one != other:
            self._texts.offer((ours[:_MAX_CHARACTERS], theirs[:_MAX_CHARACTERS]))
        return bool(one != other)

    def result(self) -> ColumnComparison:
        confusion = _confusion(self._label_pairs or Counter())
        return ColumnComparison(
            self.name,
            self.is_gated,
            self.rows,
            self.changed,
            confusion=confusion,
            likeness=self._similarity() if confusion is None else None,
        )

    def _similarity(self) -> float | None:
        if not self.rows:
            return None
        pairs = self._texts.items
        of_changed = sum(chrf(*pair) for pair in pairs) / len(pairs) if pairs else 1.0
        return (self.rows - self.changed + self.changed * of_changed) / self.rows


def _confusion(label_pairs: Counter[tuple[str, str]]) -> Confusion | None:
    """The matrix of a column of few labels, each of which occurs at least twice on average."""
    totals: Counter[str] = Counter()
    for pair, count in label_pairs.items():
        for label in pair:
            totals[label] += count
    # A row counts a label of each output, hence 4 and not 2.
    if not 1 < len(totals) <= _MAX_LABELS or totals.total() < 4 * len(totals):
        return None
    labels = tuple(sorted(totals))
    counts = tuple(tuple(label_pairs[one, other] for other in labels) for one in labels)
    return Confusion(labels, counts)


class _ListPairs(ColumnPairs):
    """Lists of strings, compared regardless of order."""

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._gained: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    def differs(self, one: Any, other: Any) -> bool:
        ours = Counter(as_text(cell) for cell in one or ())
        theirs = Counter(as_text(cell) for cell in other or ())
        for changed, counter in ((theirs - ours, self._gained), (ours - theirs, self._lost)):
            counter.update({shorten(name): count for name, count in changed.items()})
            # Bounds the memory: of many different texts only the most frequent are of interest.
            if len(counter) > _MAX_PAIRS:
                most_common = counter.most_common(_MAX_LABELS)
                counter.clear()
                counter.update(dict(most_common))
        return ours != theirs or (one is None) != (other is None)

    def result(self) -> ColumnComparison:
        return ColumnComparison(
            self.name,
            self.is_gated,
            self.rows,
            self.changed,
            gained=dict(self._gained.most_common(_MAX_LABELS)),
            lost=dict(self._lost.most_common(_MAX_LABELS)),
        )


class _NumberPairs(ColumnPairs):
    """Numbers: means, differences and Pearson's r, from sums that are updated with each pair.

    The updates are Welford's (1962), and for the covariance their extension by Bennett et al.,
    *Numerically stable, single-pass, parallel statistics algorithms* (2009).
    """

    def __init__(self, name: str, is_gated: bool) -> None:
        super().__init__(name, is_gated)
        self._histograms = (Histogram(), Histogram(), Histogram())
        self._buffer: list[tuple[float, float, float]] = []
        self._pairs = 0
        self._means = [0.0, 0.0]
        self._squares = [0.0, 0.0]
        self._products = 0.0
        self._largest = 0.0

    def differs(self, one: Any, other: Any) -> bool:
        if one is None or other is None:
            return one is not other
        first, second = float(one), float(other)
        if not (math.isfinite(first) and math.isfinite(second)):
            return not (first == second or (math.isnan(first) and math.isnan(second)))
        self._count(first, second)
        return not math.isclose(first, second, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)

    def _count(self, first: float, second: float) -> None:
        self._pairs += 1
        self._buffer.append((first, second, second - first))
        if len(self._buffer) == BATCH_ROWS:
            self._flush()
        self._largest = max(self._largest, abs(second - first))
        before = first - self._means[0], second - self._means[1]
        self._means = [
            mean + step / self._pairs for mean, step in zip(self._means, before, strict=True)
        ]
        after = first - self._means[0], second - self._means[1]
        self._squares = [
            square + step * rest
            for square, step, rest in zip(self._squares, before, after, strict=True)
        ]
        self._products += before[0] * after[1]

    def _flush(self) -> None:
        columns = np.array(self._buffer).reshape(-1, 3).T
        for histogram, values in zip(self._histograms, columns, strict=True):
            histogram.add(values)
        self._buffer.clear()

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


class _NestedNumberPairs(ColumnPairs):
    """Lists, maps and structs that hold floats; floats within the tolerance are equal."""

    def differs(self, one: Any, other: Any) -> bool:
        return not _is_close(one, other)


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_close, one, other))
    return bool(one == other)


def column_pairs(column: pa.Field, is_gated: bool) -> ColumnPairs:
    """The statistics that suit a column's type."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _NumberPairs(column.name, is_gated)
    if pa.types.is_list(kind) and is_textual(kind):
        return _ListPairs(column.name, is_gated)
    if is_textual(kind):
        return _TextPairs(column.name, is_gated)
    if has_fractions(kind):
        return _NestedNumberPairs(column.name, is_gated)
    return ColumnPairs(column.name, is_gated)
