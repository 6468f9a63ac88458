"""Throughput over time from the units' records: every token is counted once."""

from typing import Any

import pytest
from helpers.stores import record, unit
from tokenmill.output.record import UnitRecord
from tokenmill.report.throughput import busy_seconds, replica_throughputs


def written(end: float, seconds: float, tokens: int, **changes: Any) -> UnitRecord:
    """The record of a unit with `tokens` tokens that left the engine at `end`."""
    fields = {"written_at": end, "seconds": seconds, "input_tokens": tokens, "generated_tokens": 0}
    return record(unit(), **fields, **changes)


def test_tokens_are_spread_evenly_over_a_units_time() -> None:
    """One unit takes 10 s, and another one the second half of them."""
    (replica,) = replica_throughputs([written(110.0, 10.0, 1000), written(110.0, 5.0, 1000)])
    assert replica.at == (100.5, *(101.5 + step for step in range(9)))
    assert replica.tokens_per_s == pytest.approx([100.0] * 5 + [300.0] * 5)
    assert (replica.units, replica.tokens, replica.seconds) == (2, 2000, 10.0)


def test_each_replica_of_each_run_has_a_curve() -> None:
    """The curves of one run have the same times, and steps lose no token."""
    replicas = replica_throughputs(
        [
            written(107.3, 7.3, 501, run="b", replica="x"),
            written(120.0, 4.1, 77, run="b", replica="y"),
            written(50.0, 0.2, 9, run="a", replica="x"),
        ]
    )
    names = [(replica.run, replica.replica) for replica in replicas]
    assert names == [("a", "x"), ("b", "x"), ("b", "y")]
    assert replicas[1].at == replicas[2].at
    for replica in replicas[1:]:
        step = replica.at[1] - replica.at[0]
        assert sum(replica.tokens_per_s) * step == pytest.approx(replica.tokens, rel=1e-3)


def test_overlapping_units_count_their_time_once() -> None:
    """Busy seconds are the length of the union; gaps do not count."""
    units = [
        written(110.0, 10.0, 1),
        written(105.0, 1.0, 1),
        written(112.0, 4.0, 1),
        written(200.0, 3.0, 1),
    ]
    assert busy_seconds(units) == pytest.approx(15.0)


def test_records_without_a_time_have_no_curve() -> None:
    """Objects of early versions have no `written_at`."""
    assert replica_throughputs([written(0.0, 3.0, 5)]) == ()
