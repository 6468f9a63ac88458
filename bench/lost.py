"""Count the rows that a kill at a random moment loses: started, but not committed.

One replica on a virtual clock; the mean over all moments between a tenth and nine tenths of a run.
"""

import random
import statistics
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
from tokenmill.plan.plan import RowGroup, Shard, Unit
from tokenmill.plan.units import UnitSize, plan_units, units_in_flight
from tokenmill.scheduling.in_flight import UnitInFlight

from bench.measure import Figure, at_most
from bench.virtual import VirtualEngine, simulate, unit_of

SEQS = 32
_NUM_ROWS = 4_000
#: Output tokens per row, as in W2; for log-normal lengths also sigma and the longest.
TOKENS = 80
_SIGMA, _LONGEST = 1.0, 640
_SEED = 1


def equal_lengths(count: int) -> list[int]:
    """Return equal lengths, as in W2."""
    return [TOKENS] * count


def skewed_lengths(count: int) -> list[int]:
    """Return log-normal lengths with nearly the same mean."""
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    return [
        min(_LONGEST, max(1, round(TOKENS * draw.lognormvariate(-(_SIGMA**2) / 2, _SIGMA))))
        for _ in range(count)
    ]


def figures() -> Iterator[Figure]:
    """Measure equal and skewed lengths, with units of several sizes."""
    for name, lengths in (
        ("equal", equal_lengths(_NUM_ROWS)),
        ("log-normal", skewed_lengths(_NUM_ROWS)),
    ):
        for unit_rows in (8, 32, 96):
            aim = 2 * SEQS + unit_rows
            title = f"rows started and lost, {name} lengths, units of {unit_rows}"
            yield at_most(aim, title, begun_and_lost(lengths, unit_rows), "rows")


def begun_and_lost(lengths: Sequence[int], unit_rows: int) -> float:
    """Return the mean number of rows that a kill at a random moment loses."""
    shard = Shard("a.parquet", 1, "1", (RowGroup(len(lengths), len(lengths)),))
    units = plan_units([shard], UnitSize(rows=unit_rows), 1)
    engine = VirtualEngine(SEQS, lambda request: float(request.prompt_token_ids[0]))
    whole_s = sum(lengths) / SEQS
    found: list[int] = []

    def render(unit: Unit) -> pa.Table:
        return unit_of([[length] for length in lengths[unit.first_row : unit.end_row]])

    def look(now: float, in_flight: Collection[UnitInFlight]) -> None:
        if 0.1 * whole_s < now < 0.9 * whole_s:
            answered = sum(len(unit.answers) - unit.num_open for unit in in_flight)
            found.append(answered + engine.num_running)

    simulate(units, render, [engine], units_in_flight(units, SEQS), look)
    return statistics.mean(found)
