"""How a run is going: counted from its commits, told in lines, kept as events.

`Progress` is pure; `Monitor` shows it. On a terminal `screen.LiveScreen` draws it, elsewhere a
plain line is printed every ten seconds.
"""

from collections import Counter
from dataclasses import dataclass, field

from tokenmill.output.commit import Commit
from tokenmill.scheduling.load import PoolState

# Of a shorter time no pace follows: the first report that is seen may hold many tokens.
_LEAST_PACE_S = 1.0


@dataclass(slots=True)
class Progress:
    """Counts of one run. `units_before` and `rows_before` were committed by earlier runs.

    `first_rejects` maps each class of rejects to the key of the unit in which it came first.
    Rows are input rows: those that `input.where` leaves out count as done with their unit.
    """

    units_total: int
    rows_total: int
    units_before: int
    rows_before: int
    started_at: float
    units: int = 0
    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: dict[str, str] = field(default_factory=dict)
    filtered: int = 0
    input_tokens: int = 0
    generated_tokens: int = 0
    reused: int = 0
    lost_races: int = 0
    first_load_at: float | None = None
    observed_at: float = 0.0
    pool: PoolState = field(default_factory=PoolState)

    def add(self, commit: Commit) -> None:
        """Count a commit; a unit that another driver made first is done, but not our work."""
        record = commit.record
        self.units += 1
        self.rows += record.num_rows + record.num_filtered
        self.rejects.update(record.rejects)
        for name in record.rejects:
            self.first_rejects.setdefault(name, record.unit)
        self.filtered += record.num_filtered
        if commit.is_ours:
            self.input_tokens += record.input_tokens
            self.generated_tokens += record.generated_tokens
            self.reused += record.num_reused
        else:
            self.lost_races += 1

    def observe(self, pool: PoolState, now: float) -> None:
        """Take over what the replicas report; the last time is where the run's pace ends."""
        self.pool = pool
        self.observed_at = now
        if pool.loads and self.first_load_at is None:
            self.first_load_at = now - pool.ready_s

    @property
    def rejected(self) -> int:
        """Rows without an answer, of this run's units."""
        return self.rejects.total()

    @property
    def engine_deaths(self) -> int:
        return self.pool.crashes

    @property
    def units_done(self) -> int:
        return self.units_before + self.units

    @property
    def rows_done(self) -> int:
        return self.rows_before + self.rows

    @property
    def rows_answered(self) -> int:
        """Rows that are committed, or answered and on their way to it."""
        answered = sum(load.answered_rows for load in self.pool.loads.values())
        return min(self.rows_before + max(self.rows, answered), self.rows_total)

    def engine_seconds(self, now: float) -> float:
        """Since the first replica was ready."""
        return 0.0 if self.first_load_at is None else now - self.first_load_at

    def rates(self, now: float) -> tuple[float, float]:
        """Input and output tokens a second, over the time that engines were there."""
        seconds = self.engine_seconds(now)
        if seconds < _LEAST_PACE_S:
            return 0.0, 0.0
        # A restarted replica counts from zero again, its former commits do not.
        loads = self.pool.loads.values()
        read = max(sum(load.input_tokens for load in loads), self.input_tokens)
        written = max(sum(load.generated_tokens for load in loads), self.generated_tokens)
        return read / seconds, written / seconds

    def remaining_s(self, now: float) -> float | None:
        """Seconds until the end at the present pace, None before there is one."""
        seconds = self.engine_seconds(now)
        rows = self.rows_answered - self.rows_before
        if not rows or seconds < _LEAST_PACE_S:
            return None
        return (self.rows_total - self.rows_answered) * seconds / rows
