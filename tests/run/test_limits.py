"""How many engine crashes a run tolerates: enough to find a row that causes them, no more."""

import math

import pytest
from helpers.stores import record, unit
from tokenmill.errors import RunFailed
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.run.limits import CrashLimit
from tokenmill.scheduling.load import PoolState

ROWS = 1000
#: The crashes of a search for one row (which must crash an engine alone twice), and three more.
LIMIT = 3 + 3 + math.ceil(math.log2(ROWS))


def crashed(crashes: int, poison_rows: int = 0) -> Progress:
    """The progress of an unfinished run whose engines have crashed this often."""
    progress = Progress(
        units_total=2, rows_total=2 * ROWS, units_before=0, rows_before=0, started_at=0
    )
    progress.observe(PoolState({}, crashes, "CUDA error", poison_rows), 1.0)
    return progress


def commit() -> Commit:
    return Commit(record(unit(0, 10)), is_ours=True)


def test_the_crashes_of_a_search_are_tolerated() -> None:
    """A run goes on while the row that causes the crashes may still be found."""
    CrashLimit(ROWS, replicas=1).ticked(crashed(LIMIT - 1), 1.0)


def test_crashes_without_a_completed_unit_end_the_run() -> None:
    """The message says how often and why the last engine crashed."""
    limit = CrashLimit(ROWS, replicas=1)
    with pytest.raises(RunFailed, match=r"crashed 100 times .* CUDA error"):
        limit.ticked(crashed(100), 1.0)


def test_a_commit_restarts_the_count() -> None:
    """Engines that complete units may crash as often again."""
    limit = CrashLimit(ROWS, replicas=1)
    limit.committed(commit(), crashed(LIMIT))
    limit.ticked(crashed(2 * LIMIT - 1), 1.0)


def test_a_found_row_restarts_the_count_eight_times() -> None:
    """A finished search is progress; engines that crash on many rows are broken themselves."""
    limit = CrashLimit(ROWS, replicas=1)
    for num_found in range(1, 9):
        limit.ticked(crashed(num_found * (LIMIT - 1), poison_rows=num_found), 1.0)
    with pytest.raises(RunFailed):
        limit.ticked(crashed(9 * LIMIT, poison_rows=9), 1.0)
