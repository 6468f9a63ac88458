"""When tokens were made: from units' records alone, without losing one."""

from typing import Any

import pytest
from helpers.stores import record, unit
from tokenmill.output.record import UnitRecord
from tokenmill.report.throughput import busy_seconds, replica_throughputs


def made(end: float, seconds: float, tokens: int, **changes: Any) -> UnitRecord:
    """The record of a unit of so many tokens that was in an engine until then."""
    facts = {"written_at": end, "seconds": seconds, "input_tokens": tokens, "generated_tokens": 0}
    return record(unit(), **facts, **changes)


def test_a_unit_counts_evenly_over_its_time() -> None:
    """Two units, one of 10 s and one of its second half, have their tokens where their time is."""
    (pace,) = replica_throughputs([made(110.0, 10.0, 1000), made(110.0, 5.0, 1000)])
    assert pace.at == (100.5, *(101.5 + step for step in range(9)))
    assert pace.tokens_per_s == pytest.approx([100.0] * 5 + [300.0] * 5)
    assert (pace.units, pace.tokens, pace.seconds) == (2, 2000, 10.0)


def test_each_replica_of_each_run_has_a_curve() -> None:
    """Those of one run share its times, and no token is lost between steps."""
    paces = replica_throughputs(
        [
            made(107.3, 7.3, 501, run="b", replica="x"),
            made(120.0, 4.1, 77, run="b", replica="y"),
            made(50.0, 0.2, 9, run="a", replica="x"),
        ]
    )
    assert [(pace.run, pace.replica) for pace in paces] == [("a", "x"), ("b", "x"), ("b", "y")]
    assert paces[1].at == paces[2].at
    for pace in paces[1:]:
        step = pace.at[1] - pace.at[0]
        assert sum(pace.tokens_per_s) * step == pytest.approx(pace.tokens, rel=1e-3)


def test_time_is_busy_once_however_many_units_are_at_work() -> None:
    """Units beside each other count their common time once, and gaps do not count."""
    units = [made(110.0, 10.0, 1), made(105.0, 1.0, 1), made(112.0, 4.0, 1), made(200.0, 3.0, 1)]
    assert busy_seconds(units) == pytest.approx(15.0)


def test_records_that_do_not_tell_their_time_have_no_curve() -> None:
    """Objects of early versions have no `written_at`."""
    assert replica_throughputs([made(0.0, 3.0, 5)]) == ()
