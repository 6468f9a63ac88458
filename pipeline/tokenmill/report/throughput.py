"""When an output's tokens were made, and by which replica: from its units' records alone.

A unit's tokens count evenly over the seconds that it was in the engine, which end when it was
written: what writing took is counted as engine time, and a unit's inner ups and downs are not seen.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tokenmill.output.record import UnitRecord

_MOST_POINTS = 400
_MOST_POINTS_OF_A_RUN = 60


@dataclass(frozen=True, slots=True)
class ReplicaThroughput:
    """What one replica of a run did.

    `seconds` is the time in which it had a unit. `at` and `tokens_per_s` are its curve: the Unix
    times in the middle of equal steps of the run, and input and output tokens a second in each.
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
    """The replicas of all runs, in the order of the runs. A record without a name is the run's."""
    runs: dict[str, list[UnitRecord]] = defaultdict(list)
    for record in records:
        if record.written_at:
            runs[record.run].append(record)
    if not runs:
        return ()
    most = min(_MOST_POINTS_OF_A_RUN, max(4, _MOST_POINTS // len(runs)))
    return tuple(pace for run in sorted(runs) for pace in _run_paces(run, runs[run], most))


def _run_paces(run: str, records: Sequence[UnitRecord], most: int) -> Iterable[ReplicaThroughput]:
    began = min(_span(record)[0] for record in records)
    ended = max(_span(record)[1] for record in records)
    num_steps = max(1, min(most, int(ended - began)))
    step = max((ended - began) / num_steps, 1e-3)
    replicas: dict[str, list[UnitRecord]] = defaultdict(list)
    for record in records:
        replicas[record.replica].append(record)
    for name, own in sorted(replicas.items()):
        tokens = _spread(own, began, step, num_steps)
        yield ReplicaThroughput(
            run=run,
            replica=name,
            units=len(own),
            rows=sum(record.num_rows for record in own),
            tokens=sum(_tokens(record) for record in own),
            seconds=round(busy_seconds(own), 3),
            at=tuple(round(began + (place + 0.5) * step, 3) for place in range(num_steps)),
            tokens_per_s=tuple(round(count / step, 3) for count in tokens),
        )


def busy_seconds(records: Iterable[UnitRecord]) -> float:
    """The time in which at least one of the units was in an engine."""
    total, reached = 0.0, 0.0
    for began, ended in sorted(_span(record) for record in records):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def _spread(
    records: Sequence[UnitRecord], began: float, step: float, num_steps: int
) -> list[float]:
    """The tokens of each step, a unit's evenly over its time."""
    tokens = [0.0] * num_steps
    for record in records:
        start, end = _span(record)
        first = min(int((start - began) / step), num_steps - 1)
        last = min(int((end - began) / step), num_steps - 1)
        if first == last:
            tokens[first] += _tokens(record)
            continue
        for place in range(first, last + 1):
            low, high = began + place * step, began + (place + 1) * step
            share = (min(end, high) - max(start, low)) / (end - start)
            tokens[place] += share * _tokens(record)
    return tokens


def _span(record: UnitRecord) -> tuple[float, float]:
    return record.written_at - record.seconds, record.written_at


def _tokens(record: UnitRecord) -> int:
    return record.input_tokens + record.generated_tokens
