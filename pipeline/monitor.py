"""How a run is going: counted from its commits, told in lines, kept as events.

`Progress` is pure; `Monitor` shows it. On a terminal `screen.LiveScreen` draws it, elsewhere a
plain line is printed every ten seconds.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pipeline.commit import Commit
from pipeline.pool_state import PoolState

_LINE_INTERVAL_S = 10.0
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
        return self.pool.deaths

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


class Screen(Protocol):
    """What shows a run to a person."""

    def update(self, progress: Progress, now: float) -> None:
        """Show the state of things; called about once a second."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainScreen:
    """One line every ten seconds, for logs and pipes; `tell` says what it is."""

    def __init__(self, tell: Callable[[Progress, float], None]) -> None:
        self._tell = tell
        self._next_line_at = 0.0

    def update(self, progress: Progress, now: float) -> None:
        if now >= self._next_line_at:
            self._next_line_at = now + _LINE_INTERVAL_S
            self._tell(progress, now)

    def close(self) -> None:
        """Nothing to undo."""


def progress_event(progress: Progress, now: float) -> dict[str, Any]:
    """What the live screen shows, as numbers; `remaining_s` is None before there is a pace."""
    read, written = progress.rates(now)
    loads = progress.pool.loads.values()
    return {
        **event_of("progress"),
        "units_done": progress.units_done,
        "units": progress.units_total,
        "rows_answered": progress.rows_answered,
        "rows": progress.rows_total,
        "rejects": dict(progress.rejects),
        "input_tokens_per_s": round(read, 1),
        "output_tokens_per_s": round(written, 1),
        "replicas": len(loads),
        "requests_running": sum(load.num_running for load in loads),
        "engine_deaths": progress.engine_deaths,
        "remaining_s": progress.remaining_s(now),
    }


def progress_line(progress: Progress, now: float) -> str:
    """One line with what the live screen shows."""
    read, written = progress.rates(now)
    return (
        f"units {progress.units_done:,}/{progress.units_total:,}  "
        f"rows {progress.rows_answered:,}/{progress.rows_total:,}  "
        f"rejects {progress.rejected:,}  "
        f"tokens/s in {read:,.0f} out {written:,.0f}  "
        f"replicas {len(progress.pool.loads)}  "
        f"ETA {duration(progress.remaining_s(now))}"
    )


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 20 s`, `4 s`; a dash where it is not known."""
    if seconds is None:
        return "-"
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {whole_s:02d} s"
    return f"{whole_s} s"


def counted(number: int, noun: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def event_of(name: str) -> dict[str, Any]:
    """What each event begins with: its time and its name."""
    return {"time": round(time.time(), 3), "event": name}


class EventLog:
    """A run's events as JSON lines; each has a time (Unix seconds), a name and the run.

    `tell` gets each as it happens.
    """

    def __init__(self, run: str, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._run = run
        self._tell = tell
        self._lines: list[str] = []

    def add(self, name: str, **facts: Any) -> None:
        event = {**event_of(name), "run": self._run, **facts}
        self._lines.append(json.dumps(event))
        self._tell(event)

    def add_commit(self, commit: Commit) -> None:
        self.add("commit", is_ours=commit.is_ours, **asdict(commit.record))

    def to_bytes(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()
