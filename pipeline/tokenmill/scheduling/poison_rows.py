"""Find the rows that crash an engine: run the unit alone, then bisect it.

A crash loses everything that was in the engine and does not show which row caused it. A unit that
was in an engine when it crashed runs alone the next time. If the engine crashes again, the rows
that were in it are halved until one row is left. A row counts as poison after two crashes with
nothing else in the engine, because engines are also killed from outside, and a row must not be
rejected for that. So one poison row among n rows is found after at most 3 + ceil(log2 n) crashes,
and all other rows are answered. This module is pure bookkeeping; its state outlives the engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunAdvice:
    """How to run a unit: with other units, or alone; without the `poison` rows."""

    is_alone: bool
    poison: frozenset[int]


@dataclass(slots=True)
class _Record:
    """What is known about one unit; rows are positions in it.

    `suspects` contain a poison row. `testing` are the rows in the engine while the unit runs alone.
    `accused` is the row that was alone in the engine when it last crashed.
    """

    is_running: bool = False
    is_alone: bool = False
    suspects: tuple[int, ...] = ()
    testing: tuple[int, ...] = ()
    accused: int | None = None
    poison: set[int] = field(default_factory=set)

    def crashed(self) -> None:
        """Narrow the suspects down after a crash of the engine that had the unit."""
        self.is_alone = True
        if not self.testing:
            # The unit ran with others or was still waiting to run alone: nothing new is known.
            return
        self.suspects, self.testing = self.testing, ()
        if len(self.suspects) > 1:
            return
        (row,) = self.suspects
        if row == self.accused:
            self.poison.add(row)
            self.suspects = ()
        self.accused = row


class PoisonSearch:
    """The search for poison rows in all units of a run."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    @property
    def num_poison(self) -> int:
        """Number of poison rows found so far."""
        return sum(len(record.poison) for record in self._records.values())

    def begin(self, unit: int) -> RunAdvice:
        """Record that a replica starts the unit, and return how to run it.

        If the unit was begun before and did not end, the engine that had it has crashed.
        """
        record = self._record(unit)
        if record.is_running:
            record.crashed()
        record.is_running = True
        return RunAdvice(record.is_alone, frozenset(record.poison))

    def next_group(self, unit: int, unanswered: Sequence[int]) -> tuple[int, ...]:
        """Return the rows to run next, at least one, for a unit that runs alone."""
        record = self._record(unit)
        suspects = record.suspects
        record.testing = suspects[: (len(suspects) + 1) // 2] or tuple(unanswered)
        return record.testing

    def survived(self, unit: int) -> None:
        """Record that the last group was answered: a poison row must be among the rest."""
        record = self._record(unit)
        record.suspects = record.suspects[len(record.testing) :]
        record.testing = ()

    def end(self, unit: int) -> None:
        """Record that all rows of the unit are answered."""
        self._record(unit).is_running = False

    def _record(self, unit: int) -> _Record:
        # Units that began before a restart of the coordinator have no record yet.
        return self._records.setdefault(unit, _Record())
