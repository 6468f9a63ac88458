"""Estimates for all rows of a plan from a two-stage sample of them: pure functions.

The first stage draws units of the plan, the second rows of each unit. The formulas are those of
Cochran, *Sampling Techniques*, 3rd edition (1977), chapter 11: the ratio estimate for units of
unequal size, with the finite population correction in both stages.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, variance

from tokenmill.plan.plan import Unit

#: The share of intervals that contain the true number.
CONFIDENCE = 0.95
# Units are read whole, a few megabytes each. More are drawn only if these hold too few rows.
_MAX_UNITS = 64
# The variance within a unit cannot be estimated from fewer rows.
_MIN_ROWS = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval, in whole numbers."""

    estimate: int
    low: int
    high: int

    @classmethod
    def around(cls, estimate: float, half_width: float, minimum: float = 0.0) -> "Interval":
        """The interval of a half-width around an estimate, but not below `minimum`."""
        low = max(minimum, estimate - half_width)
        # Rounded first, so that a rounding error does not move an exact number.
        return cls(
            round(estimate), math.floor(round(low, 6)), math.ceil(round(estimate + half_width, 6))
        )

    def shifted(self, number: int) -> "Interval":
        """The interval of a number that is larger by a known one."""
        return Interval(self.estimate + number, self.low + number, self.high + number)


@dataclass(frozen=True, slots=True)
class DrawnUnit:
    """A drawn unit: its rows, how many of them pass the filter, and one number per drawn row.

    The drawn rows are some or all of those that pass.
    """

    num_rows: int
    num_passing: int
    values: Sequence[float]

    @property
    def total(self) -> float:
        """The estimated sum over all of the unit's rows that pass."""
        return self.num_passing * mean(self.values) if self.values else 0.0

    @property
    def variance(self) -> float:
        """The variance of `total`, with the finite population correction; 0 if all rows are drawn.

        N² (1 - n/N) s²/n for n of N rows: Cochran (1977), chapter 2.
        """
        drawn = len(self.values)
        if drawn < _MIN_ROWS or drawn == self.num_passing:
            return 0.0
        return self.num_passing**2 * (1 - drawn / self.num_passing) * variance(self.values) / drawn


@dataclass(frozen=True, slots=True)
class Population:
    """The size of the plan that was sampled."""

    num_units: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class _Ratio:
    """An estimated ratio of two sums."""

    value: float
    variance: float
    degrees_of_freedom: int


def draw_units(units: Sequence[Unit], num_rows: int, draw: random.Random) -> list[Unit]:
    """Random units with at least `num_rows` rows together, or all units; in the plan's order."""
    min_units = min(len(units), _MAX_UNITS, max(_MIN_ROWS, num_rows // _MIN_ROWS))
    chosen: list[int] = []
    rows = 0
    for position in draw.sample(range(len(units)), len(units)):
        if len(chosen) >= min_units and rows >= num_rows:
            break
        chosen.append(position)
        rows += units[position].num_rows
    return [units[position] for position in sorted(chosen)]


def rows_of(unit: Unit, units: Sequence[Unit], num_rows: int) -> int:
    """The number of rows to draw from a unit, of `num_rows` rows to draw from all `units`."""
    all_rows = sum(other.num_rows for other in units)
    return max(_MIN_ROWS, math.ceil(num_rows * unit.num_rows / all_rows))


def estimate_sum(units: Sequence[DrawnUnit], population: Population) -> Interval:
    """The sum of a non-negative number over all rows that pass the filter."""
    return _sum(units, population, sum(sum(unit.values) for unit in units))


def _sum(units: Sequence[DrawnUnit], population: Population, minimum: float) -> Interval:
    ratio = _ratio(units, [unit.num_rows for unit in units], population)
    rows = population.num_rows
    half_width = rows * _t_quantile(ratio.degrees_of_freedom) * math.sqrt(ratio.variance)
    return Interval.around(rows * ratio.value, half_width, minimum)


def estimate_passing(units: Sequence[DrawnUnit], population: Population) -> Interval:
    """The number of rows that pass the filter; exact if all units are drawn."""
    ones = [DrawnUnit(unit.num_rows, unit.num_passing, [1.0]) for unit in units]
    return _sum(ones, population, sum(unit.num_passing for unit in units))


def estimate_count(
    units: Sequence[DrawnUnit], num_passing: int, population: Population
) -> Interval:
    """The number of rows with some property; values are 1 for rows that have it, otherwise 0.

    The interval is Wilson's (1927), for the effective sample size: the size of a simple random
    sample with the same variance (Kish, *Survey Sampling*, 1965). Unlike the normal interval, it
    has an upper bound above 0 for a property that no drawn row has.
    """
    drawn = sum(len(unit.values) for unit in units)
    counted = sum(sum(unit.values) for unit in units)
    passing_in_units = sum(unit.num_passing for unit in units)
    if not passing_in_units:
        return Interval(0, 0, num_passing)
    ratio = _ratio(units, [unit.num_passing for unit in units], population)
    if drawn == passing_in_units and len(units) == population.num_units:
        return Interval.around(counted, 0.0)
    share = ratio.value
    simple_variance = share * (1 - share)
    # If all drawn rows are alike, the variance is 0 and says nothing about the sample's size.
    size = simple_variance / ratio.variance if ratio.variance and simple_variance else drawn
    quantile = _t_quantile(ratio.degrees_of_freedom)
    square = quantile**2 / size
    centre = (share + square / 2) / (1 + square)
    half_width = math.sqrt(square * simple_variance + square**2 / 4) / (1 + square)
    low, high = num_passing * (centre - half_width), num_passing * (centre + half_width)
    # The drawn rows alone bound the number from both sides.
    minimum, maximum = counted, num_passing - (drawn - counted)
    estimate = num_passing * share
    return Interval(
        round(estimate),
        math.floor(min(max(low, minimum), estimate)),
        math.ceil(max(min(high, maximum), estimate)),
    )


def _ratio(units: Sequence[DrawnUnit], sizes: Sequence[int], population: Population) -> _Ratio:
    """The ratio of the units' totals to their sizes, and its variance between and within units.

    Cochran (1977), chapter 11; for m of M units with the sizes N_i and the totals y_i:
    (1 - m/M) m/(m - 1) Σ (y_i - R N_i)² + (m/M) Σ var(y_i), divided by (Σ N_i)².
    """
    size, drawn, all_units = sum(sizes), len(units), population.num_units
    ratio = sum(unit.total for unit in units) / size
    within = drawn / all_units * sum(unit.variance for unit in units)
    if drawn == all_units:
        freedom = sum(max(0, len(unit.values) - 1) for unit in units)
        return _Ratio(ratio, within / size**2, max(1, freedom))
    pairs = zip(units, sizes, strict=True)
    squares = sum((unit.total - ratio * unit_size) ** 2 for unit, unit_size in pairs)
    between = (1 - drawn / all_units) * drawn * squares / (drawn - 1)
    return _Ratio(ratio, (between + within) / size**2, drawn - 1)


def _t_quantile(degrees_of_freedom: int) -> float:
    """The two-sided quantile of Student's t distribution for `CONFIDENCE`.

    Abramowitz and Stegun, *Handbook of Mathematical Functions* (1964), 26.7.5. The error is below
    1 % from 4 degrees of freedom on.
    """
    z: float = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees_of_freedom**power for power, term in enumerate(terms))
