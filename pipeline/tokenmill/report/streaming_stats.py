"""Counts of a stream of values in bounded memory: histograms, samples, the values of a column."""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

# Of a histogram: some pixels each, and some values in each.
_MOST_BINS = 64
# Below it a float's bins would say more than anybody reads.
_LEAST_WIDTH = 2.0**-20
_T = TypeVar("_T")


@dataclass(slots=True)
class Histogram:
    """How often values fall into bins of one width, a power of two, the first of them at 0.

    The width is the least at which all values lie within 64 bins, whatever their order. Values
    that are no finite numbers are counted apart.
    """

    width: float = _LEAST_WIDTH
    bins: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    not_finite: int = 0

    @classmethod
    def of_integers(cls) -> "Histogram":
        """One whose bins are not finer than whole numbers."""
        return cls(width=1.0)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count values; NaN stands for no number."""
        finite = values[np.isfinite(values)]
        self.not_finite += len(values) - len(finite)
        if not len(finite):
            return
        self.count += len(finite)
        self.total += float(finite.sum())
        self.least = min(self.least, float(finite.min()))
        self.most = max(self.most, float(finite.max()))
        while self._place(self.most) - self._place(self.least) >= _MOST_BINS:
            self._double()
        places, counts = np.unique(np.floor(finite / self.width), return_counts=True)
        for place, count in zip(places.tolist(), counts.tolist(), strict=True):
            self.bins[int(place)] = self.bins.get(int(place), 0) + count

    def quantile(self, share: float) -> float | None:
        """The middle of the bin in which that share of the values is reached."""
        reached = 0
        for place, count in sorted(self.bins.items()):
            reached += count
            if reached >= share * self.count:
                return min(max((place + 0.5) * self.width, self.least), self.most)
        return None

    def _place(self, value: float) -> int:
        return math.floor(value / self.width)

    def _double(self) -> None:
        self.width *= 2
        bins: Counter[int] = Counter()
        for place, count in self.bins.items():
            bins[place // 2] += count
        self.bins = dict(bins)


class Reservoir(Generic[_T]):
    """A sample of a stream, each item as likely as another: those with the least random marks."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._kept: list[tuple[float, int, _T]] = []
        self._seen = 0

    def chosen(self, count: int) -> Iterator[tuple[int, float]]:
        """Which of the next `count` items are to be handed to `keep`, each with its mark."""
        marks = self._random.random(count)
        for place in np.flatnonzero(marks < self._limit):
            # The limit falls with each that is kept.
            if marks[place] < self._limit:
                yield int(place), float(marks[place])

    def keep(self, mark: float, item: _T) -> None:
        """Take an item that was chosen, in the place of another if there are enough."""
        self._seen += 1
        entry = (-mark, self._seen, item)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def offer(self, item: _T) -> None:
        """The next item of the stream."""
        for _, mark in self.chosen(1):
            self.keep(mark, item)

    @property
    def items(self) -> list[_T]:
        """The sample, in the stream's order."""
        return [item for _, _, item in sorted(self._kept, key=lambda entry: entry[1])]

    @property
    def _limit(self) -> float:
        return -self._kept[0][0] if len(self._kept) >= self._size else 1.0


class RunningValues:
    """How often each value occurs, of a column that has few; `is_few` is False once it has many."""

    def __init__(self, most: int, longest: int) -> None:
        self._most = most
        self._longest = longest
        self.counts: Counter[str] = Counter()
        self.is_few = True

    def add(self, values: Iterable[tuple[str, int]]) -> None:
        """Count values, each so many times."""
        for value, count in values:
            if not self.is_few:
                return
            self.counts[value] += count
            if len(self.counts) > self._most or len(value) > self._longest:
                self.is_few = False
                self.counts.clear()
