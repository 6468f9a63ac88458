"""What a sample of rows tells of all: intervals that hold the true number as often as they say."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenmill.estimate.statistics import (
    CONFIDENCE,
    DrawnUnit,
    Interval,
    Population,
    draw_units,
    estimate_count,
    estimate_passing,
    estimate_sum,
    rows_of,
)
from tokenmill.plan.plan import Unit

#: Of intervals that hold the truth with 0.95, at least so many of 200: 5 standard deviations.
LEAST_HITS = 174
SEEDS = 200

Rows = dict[Unit, list[float]]


def unit(number: int, num_rows: int) -> Unit:
    return Unit(f"{number}.parquet", 1, "v", 0, num_rows, 1)


def corpus(num_units: int, mean_of: Callable[[random.Random], float]) -> Rows:
    """Units of 5 to 60 rows with numbers around a mean that differs from unit to unit."""
    draw = random.Random(1)
    rows: Rows = {}
    for number in range(num_units):
        mean = mean_of(draw)
        size = draw.randint(5, 60)
        rows[unit(number, size)] = [round(draw.gammavariate(2, mean / 2)) for _ in range(size)]
    return rows


def drawn(rows: Rows, count: int, seed: int) -> list[DrawnUnit]:
    """Some rows of some units, as a plan's are drawn; odd numbers do not pass the filter."""
    draw = random.Random(seed)
    units = draw_units(list(rows), count, draw)
    found = []
    for each in units:
        passed = [number for number in rows[each] if number % 2 == 0]
        share = min(len(passed), rows_of(each, units, count))
        found.append(DrawnUnit(each.num_rows, len(passed), draw.sample(passed, share)))
    return found


def population(rows: Rows) -> Population:
    return Population(len(rows), sum(map(len, rows.values())))


def even(rows: Rows) -> list[float]:
    return [number for each in rows.values() for number in each if number % 2 == 0]


def marked(units: Sequence[DrawnUnit], above: float) -> list[DrawnUnit]:
    return [
        DrawnUnit(each.num_rows, each.num_passing, [float(value > above) for value in each.values])
        for each in units
    ]


@pytest.mark.parametrize("num_units", [1, 20, 300])
def test_an_interval_holds_the_sum_as_often_as_it_says(num_units: int) -> None:
    """In about 95 % of seeds, whether all units are read or some, alike or not."""
    rows = corpus(num_units, lambda draw: draw.uniform(20, 200))
    truth = sum(even(rows))
    hits = 0
    for seed in range(SEEDS):
        found = estimate_sum(drawn(rows, min(200, 30 * num_units), seed), population(rows))
        assert found.low <= found.estimate <= found.high
        hits += found.low <= truth <= found.high
    assert CONFIDENCE == 0.95
    assert hits >= LEAST_HITS


def test_an_interval_holds_the_number_of_passing_rows_as_often_as_it_says() -> None:
    """A filter's share is known from the units that were read."""
    rows = corpus(300, lambda draw: draw.uniform(20, 200))
    truth = len(even(rows))
    found = [estimate_passing(drawn(rows, 200, seed), population(rows)) for seed in range(SEEDS)]
    assert sum(each.low <= truth <= each.high for each in found) >= LEAST_HITS


@pytest.mark.parametrize("above", [40, 150, 400])
def test_an_interval_holds_the_number_of_marked_rows_as_often_as_it_says(above: int) -> None:
    """Whether many rows bear the mark or hardly any, and units are unlike."""
    rows = corpus(300, lambda draw: draw.uniform(20, 200))
    truth = sum(number > above for number in even(rows))
    hits = 0
    for seed in range(SEEDS):
        units = drawn(rows, 200, seed)
        num_passing = estimate_passing(units, population(rows)).estimate
        found = estimate_count(marked(units, above), num_passing, population(rows))
        hits += found.low <= truth <= found.high
    assert hits >= LEAST_HITS


@pytest.mark.parametrize("num_units", [1, 20, 300])
def test_a_sample_of_all_rows_is_exact(num_units: int) -> None:
    """Sums and counts are the true ones, and their intervals have no width."""
    rows = corpus(num_units, lambda draw: draw.uniform(20, 200))
    units = drawn(rows, population(rows).num_rows, 0)
    total, above = round(sum(even(rows))), sum(number > 100 for number in even(rows))
    assert estimate_sum(units, population(rows)) == Interval(total, total, total)
    num_passing = estimate_passing(units, population(rows))
    assert num_passing == Interval(len(even(rows)), len(even(rows)), len(even(rows)))
    counted = estimate_count(marked(units, 100), num_passing.estimate, population(rows))
    assert counted == Interval(above, above, above)


def test_a_mark_that_no_drawn_row_bears_may_be_there_all_the_same() -> None:
    """Of 200 rows without it the interval ends near to three in 200 of all; with it likewise."""
    rows = {unit(number, 1000): [2.0] * 1000 for number in range(100)}
    units = drawn(rows, 200, 0)
    all_rows = population(rows).num_rows
    none = estimate_count(marked(units, 5), all_rows, population(rows))
    assert (none.estimate, none.low) == (0, 0)
    assert 0.01 < none.high / all_rows < 0.03
    every = estimate_count(marked(units, 1), all_rows, population(rows))
    assert (every.estimate, every.high) == (all_rows, all_rows)
    assert 0.97 < every.low / all_rows < 0.99


def test_more_rows_make_a_narrower_interval() -> None:
    """Four times as many rows of units that are alike: about half the width."""
    rows = corpus(400, lambda _: 100)
    few, many = (estimate_sum(drawn(rows, count, 0), population(rows)) for count in (150, 3000))
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_rows_are_drawn_from_few_units_and_as_many_as_it_takes() -> None:
    """At most 64 units, but for small ones, of which enough rows must come."""
    large, small = ([unit(number, size) for number in range(1000)] for size in (5000, 2))
    assert len(draw_units(large, 500, random.Random(0))) == 64
    assert len(draw_units(small, 500, random.Random(0))) == 250
    assert draw_units(small, 5000, random.Random(0)) == small
    chosen = draw_units(large, 500, random.Random(0))
    assert 500 <= sum(rows_of(each, chosen, 500) for each in chosen) <= 564


def test_an_interval_is_the_formulas() -> None:
    """Five of ten rows, 1 to 5: 30 ± t(4) · 5 = 30 ± 13.9, by the correction for few rows left."""
    half = DrawnUnit(10, 10, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate_sum([half], Population(1, 10)) == Interval(30, 16, 44)
