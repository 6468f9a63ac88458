"""Statistics of a stream in bounded memory: histograms, samples and counts of values."""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

# As many bins as a plot can show.
_MAX_BINS = 64
# Finer bins of floats would show more detail than anyone reads.
_MIN_WIDTH = 2.0**-20
_T = TypeVar("_T")


@dataclass(slots=True)
class Histogram:
    """Counts of values in bins of equal width; bin `i` covers `i * width` to `(i + 1) * width`.

    The width is the smallest power of two with which all values fit into 64 bins. It starts small
    and doubles when a value does not fit, which merges pairs of bins, so that the result does not
    depend on the order of the values. Values that are not finite are counted in `not_finite`.
    """

    width: float = _MIN_WIDTH
    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    not_finite: int = 0

    @classmethod
    def of_integers(cls) -> "Histogram":
        """An empty histogram whose bins are at least 1 wide."""
        return cls(width=1.0)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count values."""
        finite = values[np.isfinite(values)]
        self.not_finite += len(values) - len(finite)
        if not len(finite):
            return
        self.count += len(finite)
        self.total += float(finite.sum())
        self.least = min(self.least, float(finite.min()))
        self.most = max(self.most, float(finite.max()))
        while self._bin(self.most) - self._bin(self.least) >= _MAX_BINS:
            self._double_width()
        numbers, counts = np.unique(np.floor(finite / self.width), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.bins[int(number)] = self.bins.get(int(number), 0) + count

    def quantile(self, share: float) -> float | None:
        """An estimate of a quantile: the middle of the bin that contains it."""
        reached = 0
        for number, count in sorted(self.bins.items()):
            reached += count
            if reached >= share * self.count:
                return min(max((number + 0.5) * self.width, self.least), self.most)
        return None

    def _bin(self, value: float) -> int:
        return math.floor(value / self.width)

    def _double_width(self) -> None:
        self.width *= 2
        bins: Counter[int] = Counter()
        for number, count in self.bins.items():
            bins[number // 2] += count
        self.bins = dict(bins)


class Reservoir(Generic[_T]):
    """A uniform random sample of a stream of unknown length.

    Each item gets a random key, and the items with the smallest keys are kept: algorithm A-Res of
    Efraimidis and Spirakis, *Weighted random sampling with a reservoir* (2006), with equal weights.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._kept: list[tuple[float, int, _T]] = []
        self._num_kept = 0

    def choose(self, count: int) -> Iterator[tuple[int, float]]:
        """Positions among the next `count` items to pass to `keep`, each with its key."""
        keys = self._random.random(count)
        for position in np.flatnonzero(keys < self._limit):
            # Each item that is kept lowers the limit.
            if keys[position] < self._limit:
                yield int(position), float(keys[position])

    def keep(self, key: float, item: _T) -> None:
        """Add a chosen item; if the sample is full, it replaces the item with the largest key."""
        self._num_kept += 1
        entry = (-key, self._num_kept, item)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def offer(self, item: _T) -> None:
        """Consider the next item of the stream."""
        for _, key in self.choose(1):
            self.keep(key, item)

    @property
    def items(self) -> list[_T]:
        """The sample, in the order of the stream."""
        return [item for _, _, item in sorted(self._kept, key=lambda entry: entry[1])]

    @property
    def _limit(self) -> float:
        return -self._kept[0][0] if len(self._kept) >= self._size else 1.0


class ValueCounts:
    """Counts how often each value of a column occurs, as long as there are few short ones.

    `is_few` becomes False, and the counts are dropped, once there are too many values or one of
    them is too long.
    """

    def __init__(self, max_values: int, max_length: int) -> None:
        self._max_values = max_values
        self._max_length = max_length
        self.counts: Counter[str] = Counter()
        self.is_few = True

    def add(self, values: Iterable[tuple[str, int]]) -> None:
        """Add values, each with its number of occurrences."""
        for value, count in values:
            if not self.is_few:
                return
            self.counts[value] += count
            if len(self.counts) > self._max_values or len(value) > self._max_length:
                self.is_few = False
                self.counts.clear()
