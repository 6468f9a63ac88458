"""Histograms, random samples and value counts of a stream, in bounded memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.report.streaming_stats import Histogram, Reservoir, ValueCounts

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


def histogram(values: list[float]) -> Histogram:
    whole = Histogram()
    whole.add(np.array(values))
    return whole


@given(NUMBERS, st.integers(1, 50))
def test_a_histogram_does_not_depend_on_order_or_pieces(values: list[float], size: int) -> None:
    """Each value is counted once, in one of at most 64 bins."""
    whole, pieces = histogram(values), Histogram()
    for start in reversed(range(0, len(values), size)):
        pieces.add(np.array(values[start : start + size]))
    assert pieces.bins == whole.bins
    assert pieces.width == whole.width
    assert sum(whole.bins.values()) == whole.count == len(values)
    assert max(whole.bins) - min(whole.bins) < 64
    assert (whole.least, whole.most) == (min(values), max(values))


def test_a_bin_counts_the_values_in_its_interval() -> None:
    """Bin i begins at i times the width; values that are not finite are counted separately."""
    integers = Histogram.of_integers()
    integers.add(np.array([0.0, 1.0, 1.0, 200.0, np.nan, np.inf]))
    assert integers.width == 4.0
    assert integers.bins == {0: 3, 50: 1}
    assert (integers.count, integers.not_finite) == (4, 2)
    assert integers.mean == pytest.approx(50.5)


def test_a_sample_is_uniform() -> None:
    """Over many seeds, early and late items are drawn equally often, in the stream's order."""
    drawn = np.zeros(20)
    for seed in range(2000):
        sample: Reservoir[int] = Reservoir(5, seed)
        for start in (0, 10):
            for position, key in sample.choose(10):
                sample.keep(key, start + position)
        assert len(sample.items) == 5
        assert sample.items == sorted(sample.items)
        drawn[sample.items] += 1
    # Expected are 2,000 / 4 = 500 draws, with a standard deviation of 19.
    assert drawn.min() > 400 and drawn.max() < 600


def test_a_short_stream_is_kept_whole() -> None:
    """A sample larger than its stream holds all items."""
    sample: Reservoir[str] = Reservoir(5, seed=0)
    for item in "abc":
        sample.offer(item)
    assert sample.items == ["a", "b", "c"]


def test_counting_stops_at_too_many_or_too_long_values() -> None:
    """The counts are dropped, so that a column of texts needs no memory."""
    few = ValueCounts(max_values=2, max_length=5)
    few.add([("a", 2), ("b", 1), ("a", 1)])
    assert (few.is_few, dict(few.counts)) == (True, {"a": 3, "b": 1})
    few.add([("c", 1)])
    assert (few.is_few, dict(few.counts)) == (False, {})
    long = ValueCounts(max_values=2, max_length=5)
    long.add([("abcdef", 1), ("a", 1)])
    assert (long.is_few, dict(long.counts)) == (False, {})
