"""The search for rows that kill engines keeps its promise, and no run is given up before it."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.stores import record
from helpers.stores import unit as unit_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.cluster.coordinator import Coordinator
from tokenmill.errors import RunFailed
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.run.limits import CrashLimit
from tokenmill.scheduling.load import PoolState
from tokenmill.scheduling.poison_rows import PoisonSearch


class Replicas:
    """Replicas with some units in each, whose engines die of some rows, until all are answered.

    Units that wait when a replica's engine crashes are sent again with the rest, in any order.
    """

    def __init__(self, units: Sequence[tuple[int, frozenset[int]]], replicas: int) -> None:
        self.units = list(units)
        self._replicas = replicas
        self.suspects = PoisonSearch()
        self.deaths = 0
        self.condemned: dict[int, frozenset[int]] = {}
        self.states: list[tuple[str, PoolState]] = []

    def run(self, draw: random.Random) -> None:
        queues = [list(range(at, len(self.units), self._replicas)) for at in range(self._replicas)]
        while any(queues):
            queue = draw.choice([queue for queue in queues if queue])
            draw.shuffle(queue)
            self._life_of_an_engine(queue)

    def _life_of_an_engine(self, queue: list[int]) -> None:
        advice = {unit: self.suspects.begin(unit) for unit in queue}
        together = [unit for unit in queue if not advice[unit].is_alone]
        if any(self.units[unit][1] for unit in together):
            self._note("death")
            return
        for unit in together:
            self._end(queue, unit, frozenset())
        for unit in [unit for unit in queue if advice[unit].is_alone]:
            if not self._alone(unit, advice[unit].poison):
                self._note("death")
                return
            self._end(queue, unit, advice[unit].poison)

    def _alone(self, unit: int, condemned: frozenset[int]) -> bool:
        num_rows, killers = self.units[unit]
        left = [row for row in range(num_rows) if row not in condemned]
        while left:
            group = self.suspects.next_group(unit, left)
            if not killers.isdisjoint(group):
                return False
            self.suspects.survived(unit)
            left = [row for row in left if row not in group]
        return True

    def _end(self, queue: list[int], unit: int, condemned: frozenset[int]) -> None:
        self.suspects.end(unit)
        self.condemned[unit] = condemned
        queue.remove(unit)
        self._note("commit")

    def _note(self, event: str) -> None:
        self.deaths += event == "death"
        state = PoolState({}, self.deaths, "a row", self.suspects.num_poison)
        self.states.append((event, state))


LOG = Path("run.log")
COMMIT = Commit(record(unit_of(0, 10)), is_ours=True)


def going(state: PoolState) -> Progress:
    """A run with work left, of whose replicas this is known."""
    progress = Progress(units_total=2, rows_total=20, units_before=0, rows_before=0, started_at=0)
    progress.observe(state, 1.0)
    return progress


def given_up(replicas: Replicas, rows: int, num_replicas: int) -> bool:
    """Whether the crash limit would have stopped the run."""
    limit = CrashLimit(rows, num_replicas, LOG)
    try:
        for event, state in replicas.states:
            progress = going(state)
            if event == "commit":
                limit.committed(COMMIT, progress)
            limit.ticked(progress, 1.0)
    except RunFailed:
        return True
    return False


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 1500), seed=st.integers(0, 10**6), replicas=st.integers(1, 4))
def test_a_killer_in_each_replica_is_found_and_nobody_gives_up(
    rows: int, seed: int, replicas: int
) -> None:
    """Each costs at most 2 log2(rows) + 3 crashes; all other units are answered whole."""
    draw = random.Random(seed)
    guilty = [(rows, frozenset({draw.randrange(rows)})) for _ in range(replicas)]
    world = Replicas([*guilty, *[(rows, frozenset[int]())] * 6], replicas)
    world.run(draw)
    assert world.condemned == {unit: killers for unit, (_, killers) in enumerate(world.units)}
    assert world.deaths <= replicas * (2 * max(rows - 1, 0).bit_length() + 3)
    assert not given_up(world, rows, replicas)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), seed=st.integers(0, 10**6), guilty=st.integers(2, 5))
def test_units_that_wait_for_their_turn_forget_nothing(rows: int, seed: int, guilty: int) -> None:
    """Several units with a killer each, in one replica and in any order: no search starts again."""
    draw = random.Random(seed)
    world = Replicas([(rows, frozenset({draw.randrange(rows)})) for _ in range(guilty)], 1)
    world.run(draw)
    assert world.condemned == {unit: killers for unit, (_, killers) in enumerate(world.units)}
    assert world.deaths <= guilty * (2 * max(rows - 1, 0).bit_length() + 3)


def test_a_row_does_not_pay_for_a_kill_from_outside() -> None:
    """A row in an engine that is killed from outside, even twice, is not rejected."""
    suspects = PoisonSearch()
    suspects.begin(1)
    suspects.begin(1)
    suspects.next_group(1, [0])
    advice = suspects.begin(1)
    assert not advice.poison
    assert suspects.next_group(1, [0]) == (0,)
    suspects.survived(1)
    suspects.end(1)
    assert suspects.num_poison == 0


def test_a_board_that_was_lost_is_begun_anew() -> None:
    """A replica in the middle of a unit of which nothing is known any more gets its answers."""
    suspects = PoisonSearch()
    suspects.survived(1)
    assert suspects.next_group(1, [3, 4]) == (3, 4)
    suspects.end(1)
    assert not suspects.begin(1).is_alone


def test_a_process_that_is_killed_counts_as_one_death() -> None:
    """Whatever was in it; an engine that reported its crash is not counted twice."""
    board = Coordinator()
    for unit in range(3):
        board.begin(unit, "first")
    for unit in range(3):
        assert board.begin(unit, "second").is_alone
    assert board.state().crashes == 1
    board.crashed("second", "of a row")
    assert board.begin(0, "third").is_alone
    state = board.state()
    assert (state.crashes, state.crash_reason) == (2, "of a row")


def test_engines_that_die_of_everything_are_given_up() -> None:
    """Crashes without a unit getting through end the run, whatever the search says."""
    limit = CrashLimit(8, 1, LOG)

    def die(times: int) -> None:
        for deaths in range(times):
            limit.ticked(going(PoolState({}, deaths, "everything", deaths // 3)), 1.0)

    with pytest.raises(RunFailed, match="everything"):
        die(60)
