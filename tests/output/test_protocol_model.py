"""The model of the commit protocol: no order of steps breaks a guarantee; every bug does."""

from functools import cache

import pytest
from helpers.protocol_model import Bug, Explored, explore, scenarios

#: One fault and one crash at any moment; `helpers/protocol_model.py`, run as a script, tries two.
SCENARIOS = scenarios(faults=1, crashes=1)
#: The guarantee that each bug breaks first.
BROKEN = {
    Bug.OVERWRITE: "a committed unit is gone",
    Bug.COMMIT_BEFORE_WRITE: "a unit is torn",
    Bug.STALE_PLAN: "a row is doubled",
    Bug.SWALLOW_WRITE_ERROR: "a unit is reported and missing",
    Bug.DROP_ERROR: "a unit is torn",
    Bug.FOREIGN_412_FAILS: "an actor fails for no reason",
    Bug.STREAM: "a unit is torn",
    Bug.SKIP_UNKNOWN: "a row is doubled",
    Bug.BLIND_REPAIR: "an answer is lost",
    Bug.FORGET_ANSWERS: "an answer is lost",
    Bug.FORGET_OWN: "a repair is made twice",
}


@cache
def explored(scenario: str) -> Explored:
    return explore(SCENARIOS[scenario])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_order_of_steps_breaks_a_guarantee(scenario: str) -> None:
    """A committed unit stays whole and is never lost, and no repair loses an answer.

    All states that can be reached are tried, with crashes, retries, delayed writes and races.
    """
    result = explored(scenario)
    assert result.violation == "", result.steps


def test_the_model_has_thousands_of_states() -> None:
    """Every guarantee is checked in each of them and in what can follow."""
    assert sum(explored(scenario).num_states for scenario in SCENARIOS) >= 10_000


@pytest.mark.parametrize("bug", Bug)
def test_every_bug_breaks_a_guarantee(bug: Bug) -> None:
    """A protocol with one of the bugs is caught by the guarantee that it breaks."""
    results = (explore(scenario, bug) for scenario in reversed(SCENARIOS.values()))
    caught = next(result for result in results if result.violation)
    assert caught.violation == BROKEN[bug], caught.steps
