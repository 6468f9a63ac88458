"""Find the row that kills engines: by company, alone, and then by halves.

An engine's death takes all that is in it along, and says nothing of who did it. A unit that was in
a dying engine runs alone the next time; if the engine dies again, the rows that were in it are
halved until one is left. A row is condemned once an engine has died twice with nothing else in it:
engines are also killed from outside, and a row must not pay for that. So a killer among n rows is
found after at most 3 + ceil(log2 n) deaths, and its neighbours are answered. Pure bookkeeping: it
outlives the engines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunAdvice:
    """How a unit is to be run: in company, or alone and without the condemned rows."""

    is_alone: bool
    condemned: frozenset[int]


@dataclass(slots=True)
class _Record:
    """What is known of one unit; rows are positions in it.

    `testing` is in the engine by itself; `accused` was so when the engine died.
    """

    is_running: bool = False
    is_alone: bool = False
    suspects: tuple[int, ...] = ()
    testing: tuple[int, ...] = ()
    accused: int | None = None
    condemned: set[int] = field(default_factory=set)

    def died(self) -> None:
        """Conclude from the death of the engine in which the unit was."""
        self.is_alone = True
        if not self.testing:
            # It was in company, or waited for its turn: what is known of it stands.
            return
        self.suspects, self.testing = self.testing, ()
        if len(self.suspects) > 1:
            return
        (row,) = self.suspects
        if row == self.accused:
            self.condemned.add(row)
            self.suspects = ()
        self.accused = row


class PoisonSearch:
    """The units of a run that have been in dying engines."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    @property
    def num_condemned(self) -> int:
        """Rows that have killed an engine by themselves."""
        return sum(len(record.condemned) for record in self._records.values())

    def begin(self, unit: int) -> RunAdvice:
        """A replica takes the unit. If one had it already and did not end it, that one has died."""
        record = self._record(unit)
        if record.is_running:
            record.died()
        record.is_running = True
        return RunAdvice(record.is_alone, frozenset(record.condemned))

    def next_group(self, unit: int, unanswered: Sequence[int]) -> tuple[int, ...]:
        """The rows of a unit that runs alone to put into the engine now, at least one of them."""
        record = self._record(unit)
        suspects = record.suspects
        record.testing = suspects[: (len(suspects) + 1) // 2] or tuple(unanswered)
        return record.testing

    def survived(self, unit: int) -> None:
        """The group that was put into the engine last is answered: what kills is in the rest."""
        record = self._record(unit)
        record.suspects = record.suspects[len(record.testing) :]
        record.testing = ()

    def end(self, unit: int) -> None:
        """All rows of the unit have their answers."""
        self._record(unit).is_running = False

    def _record(self, unit: int) -> _Record:
        """Also of a unit that began before its board was lost."""
        return self._records.setdefault(unit, _Record())
