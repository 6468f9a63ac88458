"""Histograms, samples and values of a stream: exact counts in bounded memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.report.streaming_stats import Histogram, Reservoir, RunningValues

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


def histogram(values: list[float]) -> Histogram:
    made = Histogram()
    made.add(np.array(values))
    return made


@given(NUMBERS, st.integers(1, 50))
def test_a_histogram_is_the_same_in_whatever_pieces_it_comes(
    values: list[float], size: int
) -> None:
    """Each value is counted once, in one of at most 64 bins, in pieces and in any order."""
    whole, pieces = histogram(values), Histogram()
    for start in reversed(range(0, len(values), size)):
        pieces.add(np.array(values[start : start + size]))
    assert pieces.bins == whole.bins
    assert pieces.width == whole.width
    assert sum(whole.bins.values()) == whole.count == len(values)
    assert max(whole.bins) - min(whole.bins) < 64
    assert (whole.least, whole.most) == (min(values), max(values))


def test_a_bin_holds_the_values_within_its_width() -> None:
    """The bin of place p counts the values from p times the width on; what is no number, apart."""
    made = Histogram.of_integers()
    made.add(np.array([0.0, 1.0, 1.0, 200.0, np.nan, np.inf]))
    assert made.width == 4.0
    assert made.bins == {0: 3, 50: 1}
    assert (made.count, made.not_finite) == (4, 2)
    assert made.mean == pytest.approx(50.5)


def test_a_sample_has_each_item_as_often_as_another() -> None:
    """Over many seeds, early and late items are drawn alike, in the stream's order."""
    drawn = np.zeros(20)
    for seed in range(2000):
        sample: Reservoir[int] = Reservoir(5, seed)
        for start in (0, 10):
            for place, mark in sample.chosen(10):
                sample.keep(mark, start + place)
        assert len(sample.items) == 5
        assert sample.items == sorted(sample.items)
        drawn[sample.items] += 1
    # 2,000 draws of a quarter: 500, with a standard deviation of 19.
    assert drawn.min() > 400 and drawn.max() < 600


def test_a_short_stream_is_kept_whole() -> None:
    """A sample larger than its stream is the stream."""
    sample: Reservoir[str] = Reservoir(5, seed=0)
    for item in "abc":
        sample.offer(item)
    assert sample.items == ["a", "b", "c"]


def test_values_are_given_up_once_they_are_many_or_long() -> None:
    """A column of texts costs no memory."""
    few = RunningValues(most=2, longest=5)
    few.add([("a", 2), ("b", 1), ("a", 1)])
    assert (few.is_few, dict(few.counts)) == (True, {"a": 3, "b": 1})
    few.add([("c", 1)])
    assert (few.is_few, dict(few.counts)) == (False, {})
    long = RunningValues(most=2, longest=5)
    long.add([("abcdef", 1), ("a", 1)])
    assert (long.is_few, dict(long.counts)) == (False, {})
