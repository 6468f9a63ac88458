"""The terminal: a live progress display, and Ray's and vLLM's chatter kept away from it."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tokenmill.formatting import duration
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress

_BAR_WIDTH = 40
_LINE_INTERVAL_S = 10.0


class Screen(RunListener):
    """Shows a run to a person."""

    def started(self, progress: Progress) -> None:
        self.ticked(progress, time.monotonic())

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainScreen(Screen):
    """One line every ten seconds, for logs and pipes; `tell` says what it is."""

    def __init__(self, tell: Callable[[Progress, float], None]) -> None:
        self._tell = tell
        self._next_line_at = 0.0

    def ticked(self, progress: Progress, now: float) -> None:
        if now >= self._next_line_at:
            self._next_line_at = now + _LINE_INTERVAL_S
            self._tell(progress, now)


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


class Interface(Protocol):
    """What a run says to its user."""

    def say(self, line: str) -> None:
        """One line, now."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Something that happened in the run, as it stands in its `events.jsonl`."""

    def watch(self, log: Path) -> AbstractContextManager[Screen]:
        """Show progress while the context is open; all other output goes into `log`."""


@contextmanager
def chatter_into(log: Path) -> Iterator[Console]:
    """Send all that is written to stdout and stderr into `log`; yields the user's own screen.

    At the level of file descriptors: Ray's and vLLM's C++ and child processes write there too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    screen = os.fdopen(os.dup(saved[1]), "w", buffering=1)
    try:
        yield Console(file=screen, highlight=False, soft_wrap=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        screen.close()
        for saved_handle, handle in zip(saved, (1, 2), strict=True):
            os.dup2(saved_handle, handle)
            os.close(saved_handle)


def make_screen(console: Console) -> Screen:
    """A live display on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return LiveScreen(console)
    return PlainScreen(lambda *seen: console.print(progress_line(*seen), markup=False))


class LiveScreen(Screen):
    """Units and rows as bars, rejects, tokens a second, replicas and the time left."""

    def __init__(self, console: Console) -> None:
        # Drawn by the caller: a thread that draws by itself also collects garbage, and Ray ends a
        # process in which an object of its is freed while it shuts down. Redirecting would bring
        # the chatter back from the log onto the screen.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def ticked(self, progress: Progress, now: float) -> None:
        self._live.update(_facts(progress, now), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _facts(progress: Progress, now: float) -> Table:
    """A name and a value a line, within the 80 columns of a usual terminal."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("units", _bar(progress.units_done, progress.units_total))
    facts.add_row("rows", _bar(progress.rows_answered, progress.rows_total))
    facts.add_row("rejects", f"{progress.rejected:,}")
    read, written = progress.rates(now)
    facts.add_row("tokens/s", f"{read:,.0f} in, {written:,.0f} out")
    facts.add_row("replicas", _replicas(progress))
    elapsed = duration(now - progress.started_at)
    facts.add_row("ETA", f"{duration(progress.remaining_s(now))}, after {elapsed}")
    return facts


def _bar(done: int, total: int) -> Table:
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total, done, width=_BAR_WIDTH), f"{done:,} of {total:,}")
    return bar


def _replicas(progress: Progress) -> str:
    loads = progress.pool.loads.values()
    if not loads:
        return "starting"
    rows, units = sum(load.num_running for load in loads), sum(load.num_units for load in loads)
    return f"{len(loads):,}, with {rows:,} rows of {units:,} units"
