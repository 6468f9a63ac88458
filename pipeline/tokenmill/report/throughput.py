"""Tokens per second of each replica over time, from the units' records alone.

A unit's tokens are spread evenly over its seconds in the engine, which are taken to end when the
unit was written: the time of the write counts as engine time, and variation within a unit is not
visible.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenmill.output.counts import sum_counts
from tokenmill.output.record import UnitRecord

# Points of all curves together, and of one run's.
_MAX_POINTS = 400
_MAX_POINTS_OF_A_RUN = 60


@dataclass(frozen=True, slots=True)
class ReplicaThroughput:
    """What one replica did in one run.

    `seconds` is the time in which it had a unit. `at` and `tokens_per_s` are its curve: the run is
    divided into equal steps, and each has its midpoint in Unix time and the input and output tokens
    per second.
    """

    run: str
    replica: str
    units: int
    rows: int
    tokens: int
    seconds: float
    at: tuple[float, ...]
    tokens_per_s: tuple[float, ...]


def replica_throughputs(records: Collection[UnitRecord]) -> tuple[ReplicaThroughput, ...]:
    """The replicas of all runs, in the order of the runs.

    Records without a replica's name count as one replica of their run. Those without a time are
    skipped.
    """
    runs: dict[str, list[UnitRecord]] = defaultdict(list)
    for record in records:
        if record.written_at:
            runs[record.run].append(record)
    if not runs:
        return ()
    max_points = min(_MAX_POINTS_OF_A_RUN, max(4, _MAX_POINTS // len(runs)))
    return tuple(
        throughput
        for run in sorted(runs)
        for throughput in _run_throughputs(run, runs[run], max_points)
    )


def _run_throughputs(
    run: str, records: Sequence[UnitRecord], max_points: int
) -> Iterator[ReplicaThroughput]:
    began = min(_interval(record)[0] for record in records)
    ended = max(_interval(record)[1] for record in records)
    num_steps = max(1, min(max_points, int(ended - began)))
    step_s = max((ended - began) / num_steps, 1e-3)
    replicas: dict[str, list[UnitRecord]] = defaultdict(list)
    for record in records:
        replicas[record.replica].append(record)
    for name, units in sorted(replicas.items()):
        counts = sum_counts(record.counts for record in units)
        tokens = _tokens_per_step(units, began, step_s, num_steps)
        yield ReplicaThroughput(
            run=run,
            replica=name,
            units=counts.units,
            rows=counts.rows,
            tokens=counts.tokens,
            seconds=round(busy_seconds(units), 3),
            at=tuple(round(began + (step + 0.5) * step_s, 3) for step in range(num_steps)),
            tokens_per_s=tuple(round(count / step_s, 3) for count in tokens),
        )


def busy_seconds(records: Iterable[UnitRecord]) -> float:
    """The time in which at least one of the units was in an engine: the length of the union."""
    total, reached = 0.0, 0.0
    for began, ended in sorted(_interval(record) for record in records):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def _tokens_per_step(
    records: Sequence[UnitRecord], began: float, step_s: float, num_steps: int
) -> list[float]:
    """The tokens of each step, with each unit's spread evenly over its time."""
    tokens = [0.0] * num_steps
    for record in records:
        start, end = _interval(record)
        first = min(int((start - began) / step_s), num_steps - 1)
        last = min(int((end - began) / step_s), num_steps - 1)
        if first == last:
            tokens[first] += record.counts.tokens
            continue
        for step in range(first, last + 1):
            low, high = began + step * step_s, began + (step + 1) * step_s
            share = (min(end, high) - max(start, low)) / (end - start)
            tokens[step] += share * record.counts.tokens
    return tokens


def _interval(record: UnitRecord) -> tuple[float, float]:
    """When the unit's time in the engine began and ended."""
    return record.written_at - record.seconds, record.written_at
