"""The pool on a virtual clock: no replica waits while another has work, and no batch is half empty.

The figures are exact: the same rows, the real scheduler, plan and rule of units in flight.
"""

import pytest

from bench import tail

MAX_NUM_SEQS = 16
ROWS = 10_000


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_log_normal_lengths_end_near_the_optimum(replicas: int) -> None:
    """Batches stay full behind units that wait for their longest rows, to the end of the run."""
    assert tail.run([1.0] * replicas, ROWS, MAX_NUM_SEQS).ratio <= 1.05


def test_64_replicas_end_together() -> None:
    """Sixty-four share the work as one does, with a batch of four each."""
    assert tail.run([1.0] * 64, 1_000, 4).ratio <= 1.05


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_slow_replica_gets_less(replicas: int) -> None:
    """One that is three times slower does not hold the others up at the end."""
    assert tail.run([1 / 3, *[1.0] * (replicas - 1)], ROWS, MAX_NUM_SEQS).ratio <= 1.10


def test_eight_replicas_do_eight_times_the_work() -> None:
    """Eight times the rows on eight replicas take at most 1/0.95 of one's time."""
    one, eight = (tail.run([1.0] * number, ROWS, MAX_NUM_SEQS).seconds for number in (1, 8))
    assert one / eight >= 0.95
