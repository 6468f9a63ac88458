"""Find the rows that crash an engine: run the unit alone, then bisect it.

A crash loses everything that was in the engine and does not show which row caused it. A unit that
was in an engine when it crashed runs alone the next time. If the engine crashes again, the rows
that were in it are halved until one row is left. A row counts as poison after two crashes with
nothing else in the engine, because engines are also killed from outside, and a row must not be
rejected for that. So one poison row among n rows is found after at most 3 + ceil(log2 n) crashes,
and all other rows are answered.

After a crash one row runs alone first, as a probe, and if possible it is none of the suspects. If
engines crash on one probe after another, the rows are not the cause (`CrashHistory`). This module
is pure bookkeeping; its state outlives the engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

# Its multiples, modulo 1, are spread evenly.
_GOLDEN_RATIO = 0.618


@dataclass(frozen=True, slots=True)
class RunAdvice:
    """How to run a unit: with other units, or alone; without the `poison` rows."""

    is_alone: bool
    poison: frozenset[int]


@dataclass(slots=True)
class _Record:
    """What is known about one unit; rows are positions in it.

    `suspects` contain a poison row. `testing` are the rows in the engine while the unit runs alone.
    `accused` are rows that were alone in the engine when it crashed once. `has_survived` is true
    once an engine has answered some of the rows while the unit ran alone.
    """

    is_running: bool = False
    is_alone: bool = False
    suspects: tuple[int, ...] = ()
    testing: tuple[int, ...] = ()
    accused: set[int] = field(default_factory=set)
    has_survived: bool = False
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
        if row in self.accused:
            self.poison.add(row)
            self.suspects = ()
        self.accused.add(row)

    def probe(self, unanswered: Sequence[int]) -> int:
        """The row to run alone after a crash: if possible none of the suspects.

        Probes are spread over the unit, because poison rows are often neighbours.
        """
        suspects = set(self.suspects)
        rows = [row for row in unanswered if row not in suspects] or list(unanswered)
        return rows[int(len(rows) * (len(self.accused) * _GOLDEN_RATIO % 1))]


class PoisonSearch:
    """The search for poison rows in all units of a run."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        # Whether an engine has answered anything since the last crash.
        self._is_working = True

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
            self._is_working = False
        record.is_running = True
        return RunAdvice(record.is_alone, frozenset(record.poison))

    def next_group(self, unit: int, unanswered: Sequence[int]) -> tuple[int, ...]:
        """Return the rows to run next, at least one, for a unit that runs alone."""
        record = self._record(unit)
        suspects = record.suspects
        if self._is_working:
            record.testing = suspects[: (len(suspects) + 1) // 2] or tuple(unanswered)
        else:
            record.testing = (record.probe(unanswered),)
        return record.testing

    def survived(self, unit: int) -> None:
        """Record that the last group was answered: a poison row must be among the rest."""
        record = self._record(unit)
        answered = set(record.testing)
        record.suspects = tuple(row for row in record.suspects if row not in answered)
        record.accused -= answered
        record.testing = ()
        record.has_survived = self._is_working = True

    def end(self, unit: int) -> bool:
        """Record that all rows of the unit are done. True if an engine has answered any of them."""
        record = self._record(unit)
        record.is_running = False
        is_answered = record.has_survived or not record.is_alone
        self._is_working = self._is_working or is_answered
        return is_answered

    def row_alone(self, unit: int) -> int | None:
        """The only row in the engine, if the unit runs alone and tests one row."""
        testing = self._record(unit).testing
        return testing[0] if len(testing) == 1 else None

    def _record(self, unit: int) -> _Record:
        # Units that began before a restart of the coordinator have no record yet.
        return self._records.setdefault(unit, _Record())
