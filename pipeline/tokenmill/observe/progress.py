"""The progress of a run, counted from its commits and the reports of its replicas. Pure data."""

from dataclasses import dataclass, field, replace

from tokenmill.output.commit import Commit
from tokenmill.output.counts import NO_COUNTS, Counts
from tokenmill.scheduling.load import PoolState

# A shorter time gives no rate: the first report may already count many tokens.
_MIN_RATE_S = 1.0


@dataclass(slots=True)
class Progress:
    """Counts of one run. `units_before` and `rows_before` were committed by other runs.

    Rows are input rows: a row that `input.where` leaves out is done when its unit is.
    `start_stage` says what the executor does before it knows of replicas.
    `first_rejects` maps each reject class to the key of the first unit that has it. `pool` is the
    last state of the replicas, taken at `observed_at`; times are in seconds of the monotonic clock.
    """

    units_total: int
    rows_total: int
    units_before: int
    rows_before: int
    started_at: float
    start_stage: str = "starting"
    counts: Counts = NO_COUNTS
    first_rejects: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    lost_races: int = 0
    first_load_at: float | None = None
    observed_at: float = 0.0
    pool: PoolState = field(default_factory=PoolState)

    def add(self, commit: Commit) -> None:
        """Count a commit; if another driver made it, the unit counts but its tokens do not.

        A unit that was skipped is none of this run's.
        """
        record, counts = commit.record, commit.counts
        if commit.was_skipped:
            self.units_before += 1
            self.rows_before += counts.input_rows
            return
        for name in counts.rejects:
            self.first_rejects.setdefault(name, record.unit)
        if commit.is_ours:
            self.counts += counts
            # The record of a repaired object counts the requests of the run that made it.
            self.reused += record.num_reused if commit.repaired is None else 0
        else:
            self.counts += replace(counts, input_tokens=0, generated_tokens=0)
            self.lost_races += 1

    def observe(self, pool: PoolState, now: float) -> None:
        """Keep the replicas' last reports. Rates are measured until the last call of this."""
        self.pool = pool
        self.observed_at = now
        if pool.loads and self.first_load_at is None:
            self.first_load_at = now - pool.ready_s

    @property
    def stage(self) -> str | None:
        """What the run is doing before a replica is ready; None while one is."""
        if self.pool.loads:
            return None
        if not self.observed_at:
            return self.start_stage
        return "loading the model" if self.pool.num_loading else "starting replicas"

    @property
    def rows(self) -> int:
        """The input rows of this run's units."""
        return self.counts.input_rows

    @property
    def rejected(self) -> int:
        """The rejected rows in this run's units."""
        return self.counts.rejected

    @property
    def engine_crashes(self) -> int:
        return self.pool.crashes

    @property
    def units_done(self) -> int:
        return self.units_before + self.counts.units

    @property
    def rows_done(self) -> int:
        return self.rows_before + self.rows

    @property
    def rows_answered(self) -> int:
        """Rows that are committed, or answered and soon to be."""
        answered = sum(load.answered_rows for load in self.pool.loads.values())
        return min(self.rows_before + max(self.rows, answered), self.rows_total)

    def engine_seconds(self, now: float) -> float:
        """Seconds since the first replica was ready."""
        return 0.0 if self.first_load_at is None else now - self.first_load_at

    def rates(self, now: float) -> tuple[float, float]:
        """Input and output tokens a second since the first replica was ready."""
        seconds = self.engine_seconds(now)
        if seconds < _MIN_RATE_S:
            return 0.0, 0.0
        # A replica that was restarted counts from zero; its commits are still counted here.
        loads = self.pool.loads.values()
        input_tokens = max(sum(load.input_tokens for load in loads), self.counts.input_tokens)
        output_tokens = max(
            sum(load.generated_tokens for load in loads), self.counts.generated_tokens
        )
        return input_tokens / seconds, output_tokens / seconds

    def remaining_s(self, now: float) -> float | None:
        """Seconds until the end at the present rate; None until the rate is known.

        It is known when as many rows are answered as requests are running, or half of the rows: the
        first answers come late, because all rows of the first batch start together.
        """
        seconds = self.engine_seconds(now)
        rows = self.rows_answered - self.rows_before
        num_running = sum(load.num_running for load in self.pool.loads.values())
        enough = min(num_running, (self.rows_total - self.rows_before) / 2)
        if not rows or rows < enough or seconds < _MIN_RATE_S:
            return None
        return (self.rows_total - self.rows_answered) * seconds / rows
