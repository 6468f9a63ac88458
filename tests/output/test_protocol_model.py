"""The commit protocol's model: no order of steps breaks a promise, and every mistake would."""

from functools import cache

import pytest
from helpers.protocol_model import Bug, Explored, explore, scenarios

#: One fault and one crash at any moment; `helpers/protocol_model.py` as a script tries two of each.
SCENARIOS = scenarios(faults=1, crashes=1)
#: What each mistake breaks first.
BROKEN = {
    Bug.OVERWRITE: "a committed unit is gone",
    Bug.COMMIT_BEFORE_WRITE: "a unit is torn",
    Bug.STALE_PLAN: "a row is doubled",
    Bug.SWALLOW_WRITE_ERROR: "a unit is told and not there",
    Bug.DROP_ERROR: "a unit is torn",
    Bug.FOREIGN_412_FAILS: "somebody fails for no reason",
    Bug.STREAM: "a unit is torn",
    Bug.SKIP_UNKNOWN: "a row is doubled",
    Bug.BLIND_EXCHANGE: "an answer is lost",
    Bug.FORGET_ANSWERS: "an answer is lost",
    Bug.FORGET_OWN: "a repair is made twice",
}


@cache
def explored(scenario: str) -> Explored:
    return explore(SCENARIOS[scenario])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_order_of_steps_breaks_a_promise(scenario: str) -> None:
    """Each unit stays one whole result, once committed never lost; no repair loses an answer.

    Whoever crashes, retries, comes late or races: all states that can be reached are tried.
    """
    found = explored(scenario)
    assert found.violation == "", found.steps


def test_the_model_is_large_enough_to_mean_something() -> None:
    """Thousands of states, in each of which every promise was held against what could follow."""
    assert sum(explored(scenario).num_states for scenario in SCENARIOS) >= 10_000


@pytest.mark.parametrize("bug", Bug)
def test_every_mistake_breaks_a_promise(bug: Bug) -> None:
    """A protocol with one of the mistakes is caught, by the promise that it breaks."""
    found = (explore(scenario, bug) for scenario in reversed(SCENARIOS.values()))
    caught = next(each for each in found if each.violation)
    assert caught.violation == BROKEN[bug], caught.steps
