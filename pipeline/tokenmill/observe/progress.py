"""How a run is going: counted from its commits, told in lines, kept as events.

`Progress` is pure; `Monitor` shows it. On a terminal `screen.LiveScreen` draws it, elsewhere a
plain line is printed every ten seconds.
"""

from dataclasses import dataclass, field, replace

from tokenmill.output.commit import Commit
from tokenmill.output.counts import NO_COUNTS, Counts
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
    counts: Counts = NO_COUNTS
    first_rejects: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    lost_races: int = 0
    first_load_at: float | None = None
    observed_at: float = 0.0
    pool: PoolState = field(default_factory=PoolState)

    def add(self, commit: Commit) -> None:
        """Count a commit; a unit that another driver made first is done, but not our work."""
        record = commit.record
        for name in record.rejects:
            self.first_rejects.setdefault(name, record.unit)
        if commit.is_ours:
            self.counts += record.counts
            self.reused += record.num_reused
        else:
            self.counts += replace(record.counts, input_tokens=0, generated_tokens=0)
            self.lost_races += 1

    def observe(self, pool: PoolState, now: float) -> None:
        """Take over what the replicas report; the last time is where the run's pace ends."""
        self.pool = pool
        self.observed_at = now
        if pool.loads and self.first_load_at is None:
            self.first_load_at = now - pool.ready_s

    @property
    def rows(self) -> int:
        """Input rows of this run's units."""
        return self.counts.input_rows

    @property
    def rejected(self) -> int:
        """Rows without an answer, of this run's units."""
        return self.counts.rejected

    @property
    def engine_deaths(self) -> int:
        return self.pool.crashes

    @property
    def units_done(self) -> int:
        return self.units_before + self.counts.units

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
        read = max(sum(load.input_tokens for load in loads), self.counts.input_tokens)
        written = max(sum(load.generated_tokens for load in loads), self.counts.generated_tokens)
        return read / seconds, written / seconds

    def remaining_s(self, now: float) -> float | None:
        """Seconds until the end at the present pace, None before there is one."""
        seconds = self.engine_seconds(now)
        rows = self.rows_answered - self.rows_before
        if not rows or seconds < _LEAST_PACE_S:
            return None
        return (self.rows_total - self.rows_answered) * seconds / rows
