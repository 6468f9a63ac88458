"""Rows drawn from a plan, and what they tell of all: pure functions.

The sample has two stages: some of the plan's units, of each some rows. Formulas are those of
Cochran, *Sampling Techniques*, 3rd edition (1977), chapter 11: the ratio estimate over units of
unequal size, with the finite population correction in both stages.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, variance

from tokenmill.plan.plan import Unit

#: Of the intervals: how often they hold the true number.
CONFIDENCE = 0.95
# A unit is read whole, some megabytes each; more of them only where they hold too few rows.
_MOST_UNITS = 64
# From fewer rows of a unit nothing follows about their spread.
_LEAST_ROWS = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """A number of all rows: its estimate, and between what it lies with `CONFIDENCE`."""

    estimate: int
    low: int
    high: int

    @classmethod
    def around(cls, estimate: float, half_width: float, least: float = 0.0) -> "Interval":
        """In whole numbers; `least` is what is known to be there."""
        low = max(least, estimate - half_width)
        # A sum that is exact must not leave its number by a rounding error.
        return cls(
            round(estimate), math.floor(round(low, 6)), math.ceil(round(estimate + half_width, 6))
        )


@dataclass(frozen=True, slots=True)
class DrawnUnit:
    """What was seen of a unit: its rows, those of them that pass the filter, a number a drawn row.

    The drawn rows are some, or all, of those that pass.
    """

    num_rows: int
    num_passing: int
    values: Sequence[float]

    @property
    def total(self) -> float:
        """The estimate for all of the unit's rows."""
        return self.num_passing * mean(self.values) if self.values else 0.0

    @property
    def variance(self) -> float:
        """Of `total`: 0 where all rows were drawn."""
        drawn = len(self.values)
        if drawn < _LEAST_ROWS or drawn == self.num_passing:
            return 0.0
        return self.num_passing**2 * (1 - drawn / self.num_passing) * variance(self.values) / drawn


@dataclass(frozen=True, slots=True)
class Population:
    """All that a sample is of."""

    num_units: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class _Ratio:
    """A sum by another, estimated."""

    value: float
    variance: float
    freedom: int


def draw_units(units: Sequence[Unit], num_rows: int, draw: random.Random) -> list[Unit]:
    """Units in the plan's order from which so many rows can be drawn; all of few."""
    least = min(len(units), _MOST_UNITS, max(_LEAST_ROWS, num_rows // _LEAST_ROWS))
    chosen: list[int] = []
    rows = 0
    for position in draw.sample(range(len(units)), len(units)):
        if len(chosen) >= least and rows >= num_rows:
            break
        chosen.append(position)
        rows += units[position].num_rows
    return [units[position] for position in sorted(chosen)]


def rows_of(unit: Unit, units: Sequence[Unit], num_rows: int) -> int:
    """The unit's share of the rows to draw from all `units`."""
    share = math.ceil(num_rows * unit.num_rows / sum(each.num_rows for each in units))
    return max(_LEAST_ROWS, share)


def estimate_sum(units: Sequence[DrawnUnit], population: Population) -> Interval:
    """The sum of a number, at least 0, over all rows that pass."""
    return _sum(units, population, sum(sum(unit.values) for unit in units))


def _sum(units: Sequence[DrawnUnit], population: Population, least: float) -> Interval:
    ratio = _ratio(units, [unit.num_rows for unit in units], population)
    rows = population.num_rows
    half_width = rows * _t_quantile(ratio.freedom) * math.sqrt(ratio.variance)
    return Interval.around(rows * ratio.value, half_width, least)


def estimate_passing(units: Sequence[DrawnUnit], population: Population) -> Interval:
    """How many rows pass the filter; exact where all units were looked at."""
    looked_at = [DrawnUnit(unit.num_rows, unit.num_passing, [1.0]) for unit in units]
    return _sum(looked_at, population, sum(unit.num_passing for unit in units))


def estimate_count(
    units: Sequence[DrawnUnit], num_passing: int, population: Population
) -> Interval:
    """How many rows have a mark; values are 1 for rows with it and 0 for the others.

    Wilson's interval (1927), with the number of rows that a simple sample of the same variance
    would have: unlike the normal one it tells of marks that no drawn row has.
    """
    drawn = sum(len(unit.values) for unit in units)
    marked = sum(sum(unit.values) for unit in units)
    of_drawn_units = sum(unit.num_passing for unit in units)
    if not of_drawn_units:
        return Interval(0, 0, num_passing)
    ratio = _ratio(units, [unit.num_passing for unit in units], population)
    if drawn == of_drawn_units and len(units) == population.num_units:
        return Interval.around(marked, 0.0)
    share = ratio.value
    simple = share * (1 - share)
    # Where all rows are alike the variance says nothing.
    size = simple / ratio.variance if ratio.variance and simple else drawn
    quantile = _t_quantile(ratio.freedom)
    square = quantile**2 / size
    centre = (share + square / 2) / (1 + square)
    half_width = math.sqrt(square * simple + square**2 / 4) / (1 + square)
    low, high = (num_passing * each for each in (centre - half_width, centre + half_width))
    least, most = marked, num_passing - (drawn - marked)
    return Interval(
        round(num_passing * share),
        math.floor(min(max(low, least), num_passing * share)),
        math.ceil(max(min(high, most), num_passing * share)),
    )


def _ratio(units: Sequence[DrawnUnit], sizes: Sequence[int], population: Population) -> _Ratio:
    """Of the units' totals by their sizes."""
    size, drawn, all_units = sum(sizes), len(units), population.num_units
    ratio = sum(unit.total for unit in units) / size
    within = drawn / all_units * sum(unit.variance for unit in units)
    if drawn == all_units:
        freedom = sum(max(0, len(unit.values) - 1) for unit in units)
        return _Ratio(ratio, within / size**2, max(1, freedom))
    squares = sum((unit.total - ratio * own) ** 2 for unit, own in zip(units, sizes, strict=True))
    between = (1 - drawn / all_units) * drawn * squares / (drawn - 1)
    return _Ratio(ratio, (between + within) / size**2, drawn - 1)


def _t_quantile(freedom: int) -> float:
    """Student's, for an interval of `CONFIDENCE`.

    Abramowitz and Stegun, *Handbook of Mathematical Functions*, 26.7.5: right to 1 % from 4 degrees
    of freedom on.
    """
    z: float = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
