"""How many deaths of engines a run bears: enough to find a row that kills, not for ever."""

import math

import pytest
from helpers.stores import record, unit
from tokenmill.errors import RunFailed
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.run.limits import CrashLimit
from tokenmill.scheduling.load import PoolState

ROWS = 1000
#: What a search for one row may cost (it is condemned by its second death alone), and three more.
ENOUGH = 3 + 3 + math.ceil(math.log2(ROWS))


def dead(deaths: int, condemned: int = 0) -> Progress:
    """A run with work left whose engines have crashed this often."""
    progress = Progress(
        units_total=2, rows_total=2 * ROWS, units_before=0, rows_before=0, started_at=0
    )
    progress.observe(PoolState({}, deaths, "CUDA error", condemned), 1.0)
    return progress


def commit() -> Commit:
    return Commit(record(unit(0, 10)), is_ours=True)


def test_the_deaths_of_a_search_are_borne() -> None:
    """A run is not given up while a row that kills may still be found."""
    CrashLimit(ROWS, replicas=1).ticked(dead(ENOUGH - 1), 1.0)


def test_deaths_without_a_unit_getting_through_end_the_run() -> None:
    """The reason tells how often, and of what the last engine died."""
    limit = CrashLimit(ROWS, replicas=1)
    with pytest.raises(RunFailed, match=r"died 100 times .* CUDA error"):
        limit.ticked(dead(100), 1.0)


def test_a_commit_renews_the_patience() -> None:
    """Engines that get units through may die as often again."""
    limit = CrashLimit(ROWS, replicas=1)
    limit.committed(commit(), dead(ENOUGH))
    limit.ticked(dead(2 * ENOUGH - 1), 1.0)


def test_a_row_that_was_found_renews_it_too_but_not_for_ever() -> None:
    """Each search that ends is a step forward; engines that die of everything are sick."""
    limit = CrashLimit(ROWS, replicas=1)
    for found in range(1, 9):
        limit.ticked(dead(found * (ENOUGH - 1), condemned=found), 1.0)
    with pytest.raises(RunFailed):
        limit.ticked(dead(9 * ENOUGH, condemned=9), 1.0)
