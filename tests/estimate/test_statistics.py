"""Estimates from a sample: confidence intervals contain the truth as often as they claim."""

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

#: Fewest of 200 intervals at 95 % that must contain the truth: 5 standard deviations below 190.
MIN_HITS = 174
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
    """Draw rows as from a plan; rows with odd numbers do not pass the filter."""
    draw = random.Random(seed)
    units = draw_units(list(rows), count, draw)
    sample = []
    for one in units:
        passing = [number for number in rows[one] if number % 2 == 0]
        size = min(len(passing), rows_of(one, units, count))
        sample.append(DrawnUnit(one.num_rows, len(passing), draw.sample(passing, size)))
    return sample


def population(rows: Rows) -> Population:
    return Population(len(rows), sum(map(len, rows.values())))


def even(rows: Rows) -> list[float]:
    return [number for numbers in rows.values() for number in numbers if number % 2 == 0]


def above_limit(units: Sequence[DrawnUnit], limit: float) -> list[DrawnUnit]:
    return [
        DrawnUnit(one.num_rows, one.num_passing, [float(value > limit) for value in one.values])
        for one in units
    ]


@pytest.mark.parametrize("num_units", [1, 20, 300])
def test_intervals_of_sums_contain_the_truth(num_units: int) -> None:
    """They do so for about 95 % of seeds, whether all units are drawn or some."""
    rows = corpus(num_units, lambda draw: draw.uniform(20, 200))
    truth = sum(even(rows))
    hits = 0
    for seed in range(SEEDS):
        interval = estimate_sum(drawn(rows, min(200, 30 * num_units), seed), population(rows))
        assert interval.low <= interval.estimate <= interval.high
        hits += interval.low <= truth <= interval.high
    assert CONFIDENCE == 0.95
    assert hits >= MIN_HITS


def test_intervals_of_passing_rows_contain_the_truth() -> None:
    """The share of rows that pass the filter follows from the drawn units."""
    rows = corpus(300, lambda draw: draw.uniform(20, 200))
    truth = len(even(rows))
    samples = [drawn(rows, 200, seed) for seed in range(SEEDS)]
    intervals = [estimate_passing(sample, population(rows)) for sample in samples]
    assert sum(interval.low <= truth <= interval.high for interval in intervals) >= MIN_HITS


@pytest.mark.parametrize("limit", [40, 150, 400])
def test_intervals_of_counts_contain_the_truth(limit: int) -> None:
    """They do so for frequent and for rare properties, in units that differ."""
    rows = corpus(300, lambda draw: draw.uniform(20, 200))
    truth = sum(number > limit for number in even(rows))
    hits = 0
    for seed in range(SEEDS):
        units = drawn(rows, 200, seed)
        num_passing = estimate_passing(units, population(rows)).estimate
        interval = estimate_count(above_limit(units, limit), num_passing, population(rows))
        hits += interval.low <= truth <= interval.high
    assert hits >= MIN_HITS


@pytest.mark.parametrize("num_units", [1, 20, 300])
def test_a_sample_of_all_rows_is_exact(num_units: int) -> None:
    """Sums and counts are the true ones, and their intervals have width 0."""
    rows = corpus(num_units, lambda draw: draw.uniform(20, 200))
    units = drawn(rows, population(rows).num_rows, 0)
    total, above = round(sum(even(rows))), sum(number > 100 for number in even(rows))
    assert estimate_sum(units, population(rows)) == Interval(total, total, total)
    num_passing = estimate_passing(units, population(rows))
    assert num_passing == Interval(len(even(rows)), len(even(rows)), len(even(rows)))
    counted = estimate_count(above_limit(units, 100), num_passing.estimate, population(rows))
    assert counted == Interval(above, above, above)


def test_a_property_of_no_drawn_row_has_an_upper_bound() -> None:
    """If 200 drawn rows lack it, the bound is about 3 in 200; if all have it, likewise."""
    rows = {unit(number, 1000): [2.0] * 1000 for number in range(100)}
    units = drawn(rows, 200, 0)
    all_rows = population(rows).num_rows
    none = estimate_count(above_limit(units, 5), all_rows, population(rows))
    assert (none.estimate, none.low) == (0, 0)
    assert 0.01 < none.high / all_rows < 0.03
    every = estimate_count(above_limit(units, 1), all_rows, population(rows))
    assert (every.estimate, every.high) == (all_rows, all_rows)
    assert 0.97 < every.low / all_rows < 0.99


def test_more_rows_make_a_narrower_interval() -> None:
    """With 20 times the rows, the interval has less than half the width."""
    rows = corpus(400, lambda _: 100)
    few, many = (estimate_sum(drawn(rows, count, 0), population(rows)) for count in (150, 3000))
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_few_units_are_drawn_unless_they_are_small() -> None:
    """At most 64 units are drawn, or more if these hold too few rows."""
    large, small = ([unit(number, size) for number in range(1000)] for size in (5000, 2))
    assert len(draw_units(large, 500, random.Random(0))) == 64
    assert len(draw_units(small, 500, random.Random(0))) == 250
    assert draw_units(small, 5000, random.Random(0)) == small
    chosen = draw_units(large, 500, random.Random(0))
    assert 500 <= sum(rows_of(one, chosen, 500) for one in chosen) <= 564


def test_an_interval_equals_the_formula() -> None:
    """Five of ten rows, 1 to 5: 30 ± t(4) · 5 = 30 ± 13.9, corrected for the finite population."""
    half = DrawnUnit(10, 10, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate_sum([half], Population(1, 10)) == Interval(30, 16, 44)
