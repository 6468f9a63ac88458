"""The coordinator of replicas that crash, and when a run gives up. Without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.factories import rendered, row_tasks
from helpers.stores import record
from helpers.stores import unit as unit_of
from tokenmill.cluster.coordinator import Coordinator
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.errors import RunFailed
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.run.limits import CrashLimit
from tokenmill.scheduling.crashes import KILLED, KILLED_WHILE_LOADING, crash_reason
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.replica import Replica

IDLE = ReplicaLoad(0, 0, 0, 0)


@dataclass(frozen=True)
class Journal:
    """A replica's view of the search in one unit."""

    coordinator: Coordinator
    unit: int

    def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
        return self.coordinator.next_group(self.unit, unanswered)

    def survived(self) -> None:
        self.coordinator.survived(self.unit)


class Pool:
    """One replica, which is replaced when its engine crashes, as Ray replaces an actor.

    All open units are begun by each replica; it answers one after the other.
    """

    def __init__(self, units: Sequence[Sequence[str]], crash_on: str) -> None:
        self._settings = FakeSettings(crash_on=crash_on)
        self._units = [rendered(FakeTokenizer().encode_texts(texts)) for texts in units]
        self.coordinator = Coordinator()
        self.num_crashes = 0
        self.errors: dict[int, list[str | None]] = {}

    def run(self) -> None:
        """Answer all units. Raises `RunFailed` as a run does."""
        limit = CrashLimit(max(unit.num_rows for unit in self._units), 1, Path("run.log"))
        while len(self.errors) < len(self._units):
            num_done = len(self.errors)
            try:
                self._life_of_an_engine()
            except RuntimeError:
                self.num_crashes += 1
            progress = Progress(len(self._units) + 1, 100, 0, 0, 0.0)
            progress.observe(self.coordinator.state(), 1.0)
            for unit in range(num_done, len(self.errors)):
                limit.committed(Commit(record(unit_of(unit)), is_ours=True), progress)
            limit.ticked(progress, 1.0)

    def _life_of_an_engine(self) -> None:
        name = f"replica-{self.num_crashes}"
        self.coordinator.loading("actor", name)
        replica = Replica(
            lambda: FakeEngine(self._settings),
            row_tasks(),
            lambda _: None,
            lambda error: self.coordinator.crashed(name, crash_reason(error)),
        )
        self.coordinator.report(name, IDLE)
        open_units = [unit for unit in range(len(self._units)) if unit not in self.errors]
        advice = {unit: self.coordinator.begin(unit, name) for unit in open_units}
        for unit in open_units:
            answered = (
                replica.answer_alone(
                    self._units[unit], advice[unit].poison, Journal(self.coordinator, unit)
                )
                if advice[unit].is_alone
                else replica.answer(self._units[unit])
            )
            self.coordinator.end(unit)
            errors = answered.rows.column("error").to_pylist()
            self.errors[unit] = [error and error["class"] for error in errors]


@pytest.mark.parametrize("num_units", [1, 2, 8])
@pytest.mark.parametrize("num_rows", [1, 2, 16, 300])
def test_an_engine_that_crashes_on_every_row_is_given_up_soon(
    num_units: int, num_rows: int
) -> None:
    """Whatever the size of the units: the error has the reason."""
    pool = Pool([["boom"] * num_rows] * num_units, crash_on="boom")
    if num_units * num_rows < 3:
        # Too few rows for a conclusion: they are rejected.
        pool.run()
        return
    with pytest.raises(RunFailed, match=r"RuntimeError: the fake engine crashes on 'boom'"):
        pool.run()
    assert pool.num_crashes <= 6


@pytest.mark.parametrize("rows", [[0], [99], [5, 70], [0, 1, 2, 3]])
def test_rows_that_crash_engines_are_rejected_and_the_run_goes_on(rows: list[int]) -> None:
    """Each other row is answered, in the same unit and in the others."""
    texts = [f"row {row}" for row in range(100)]
    poison = ["boom" if row in rows else text for row, text in enumerate(texts)]
    pool = Pool([texts, poison, texts], crash_on="boom")
    pool.run()
    expected = ["engine_crash" if row in rows else None for row in range(100)]
    assert pool.errors == {0: [None] * 100, 1: expected, 2: [None] * 100}


def test_a_long_run_survives_a_row_in_each_unit() -> None:
    """The reason is always the same, but rows are answered between the crashes."""
    pool = Pool([["fine", "boom", "well"]] * 20, crash_on="boom")
    pool.run()
    assert list(pool.errors.values()) == [[None, "engine_crash", None]] * 20


def test_a_process_killed_while_it_loads_is_counted_apart() -> None:
    """An actor starts again under the same id; a replica that becomes ready ends the count."""
    coordinator = Coordinator()
    for number in range(3):
        assert coordinator.state().load_crashes == max(0, number - 1)
        coordinator.loading("actor", f"replica-{number}")
        assert coordinator.state().num_loading == 1
    assert coordinator.state().crash_reason == KILLED_WHILE_LOADING
    coordinator.report("replica-2", IDLE)
    state = coordinator.state()
    assert (state.load_crashes, state.num_loading, list(state.loads)) == (0, 0, ["replica-2"])
    coordinator.loading("actor", "replica-3")
    state = coordinator.state()
    assert (state.crashes, state.crash_reason, state.load_crashes) == (3, KILLED, 0)
    assert not state.loads


def test_a_replica_that_reported_its_crash_is_not_counted_again() -> None:
    """Neither when its actor starts again nor when its units do."""
    coordinator = Coordinator()
    coordinator.loading("actor", "first")
    coordinator.report("first", IDLE)
    coordinator.begin(0, "first")
    coordinator.crashed("first", "RuntimeError: broken")
    coordinator.loading("actor", "second")
    coordinator.begin(0, "second")
    state = coordinator.state()
    assert (state.crashes, state.crash_reason) == (1, "RuntimeError: broken")
