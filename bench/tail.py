"""Measure the end of a run and its scaling: log-normal lengths, replicas on a virtual clock.

The real plan cuts the units, and they are assigned as in a run. The figure is the makespan, divided
by a lower bound for any schedule: the total work divided by the total speed, or the longest row.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from tokenmill.plan.plan import RowGroup, Shard, Unit
from tokenmill.plan.units import UnitSize, plan_units, units_in_flight
from tokenmill.request import Request

from bench.measure import Figure, at_least, at_most
from bench.virtual import VirtualEngine, simulate, unit_of

# In steps; with sigma 1 the longest of 20,000 rows is about 40 times as long.
_MEAN_LENGTH = 200
_SIGMA = 1.0
_SEED = 1
_MAX_NUM_SEQS = 32
# Sizes as the plan estimates them: a row's text and its longest answer, which is a quarter of a
# unit's tokens per sequence. This gives units of two batches, as on a GPU with 1,024 sequences.
_TEXT_BYTES, _OVERHEAD_TOKENS = 1_000, 250
_UNIT_TOKENS_PER_SEQUENCE = 1_000
_SHARD_ROWS = 4_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated run: its seconds, and the lower bound for any schedule."""

    seconds: float
    least_seconds: float

    @property
    def ratio(self) -> float:
        """The time relative to the lower bound; 1.0 is perfect."""
        return self.seconds / self.least_seconds


def run(
    speeds: Sequence[float], rows_per_replica: int, max_num_seqs: int = _MAX_NUM_SEQS
) -> Outcome:
    """Simulate rows of random lengths on replicas with these speeds, in steps per second."""
    num_rows = rows_per_replica * len(speeds)
    shards = [
        Shard(f"{first:09}.parquet", 1, "1", (RowGroup(rows, rows * _TEXT_BYTES),))
        for first in range(0, num_rows, _SHARD_ROWS)
        for rows in [min(_SHARD_ROWS, num_rows - first)]
    ]
    units = plan_units(
        shards, UnitSize(tokens=_UNIT_TOKENS_PER_SEQUENCE * max_num_seqs), _OVERHEAD_TOKENS
    )
    lengths = _lengths(num_rows)
    rows = iter(lengths)

    def render(unit: Unit) -> pa.Table:
        return unit_of([[next(rows)] for _ in range(unit.num_rows)])

    engines = [_engine(max_num_seqs, speed) for speed in speeds]
    seconds = simulate(units, render, engines, units_in_flight(units, max_num_seqs))
    shared = sum(lengths) / max_num_seqs / sum(speeds)
    return Outcome(seconds, max(shared, max(lengths) / max(speeds)))


def _engine(max_num_seqs: int, speed: float) -> VirtualEngine:
    def seconds(request: Request) -> float:
        return request.prompt_token_ids[0] / speed

    return VirtualEngine(max_num_seqs, seconds)


def _lengths(count: int) -> list[int]:
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    mu = -(_SIGMA**2) / 2
    return [max(1, round(_MEAN_LENGTH * draw.lognormvariate(mu, _SIGMA))) for _ in range(count)]


def figures(rows_per_replica: int = 40_000) -> Iterator[Figure]:
    """Run the part `tail`: about two minutes."""
    seconds = {}
    for replicas in (1, 2, 4, 8, 64):
        outcome = run([1.0] * replicas, rows_per_replica)
        seconds[replicas] = outcome.seconds
        yield at_most(1.05, f"makespan, {replicas} equal replicas", outcome.ratio, "of optimum")
    # Rows per replica are constant: eight replicas process eight times the rows.
    yield at_least(0.95, "scaling from 1 to 8", seconds[1] / seconds[8], "efficiency")
    for replicas in (2, 4, 8):
        outcome = run([1 / 3, *[1.0] * (replicas - 1)], rows_per_replica)
        name = f"makespan, one of {replicas} three times slower"
        yield at_most(1.10, name, outcome.ratio, "of optimum by speed")
