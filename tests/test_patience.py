"""How many deaths of engines a run bears: enough to find a row that kills, not for ever."""

import math

import pytest

from pipeline.errors import RunFailed
from pipeline.pool_state import PoolState
from pipeline.run import Patience

ROWS = 1000
#: What a search for one row may cost (it is condemned by its second death alone), and three more.
ENOUGH = 3 + 3 + math.ceil(math.log2(ROWS))


def dead(deaths: int, condemned: int = 0) -> PoolState:
    return PoolState({}, deaths, "CUDA error", condemned)


def test_the_deaths_of_a_search_are_borne() -> None:
    """A run is not given up while a row that kills may still be found."""
    Patience(ROWS, replicas=1).observe(dead(ENOUGH - 1))


def test_deaths_without_a_unit_getting_through_end_the_run() -> None:
    """The reason tells how often, and of what the last engine died."""
    patience = Patience(ROWS, replicas=1)
    with pytest.raises(RunFailed, match=r"died 100 times .* CUDA error"):
        patience.observe(dead(100))


def test_a_commit_renews_the_patience() -> None:
    """Engines that get units through may die as often again."""
    patience = Patience(ROWS, replicas=1)
    patience.renew(ENOUGH)
    patience.observe(dead(2 * ENOUGH - 1))


def test_a_row_that_was_found_renews_it_too_but_not_for_ever() -> None:
    """Each search that ends is a step forward; engines that die of everything are sick."""
    patience = Patience(ROWS, replicas=1)
    for found in range(1, 9):
        patience.observe(dead(found * (ENOUGH - 1), condemned=found))
    with pytest.raises(RunFailed):
        patience.observe(dead(9 * ENOUGH, condemned=9))
