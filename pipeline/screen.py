"""The terminal: a live progress display, and Ray's and vLLM's chatter kept away from it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.monitor import PlainScreen, Progress, Screen, duration, progress_line

_BAR_WIDTH = 40


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


class LiveScreen:
    """Units and rows as bars, rejects, tokens a second, replicas and the time left."""

    def __init__(self, console: Console) -> None:
        # Drawn by the caller: a thread that draws by itself also collects garbage, and Ray ends a
        # process in which an object of its is freed while it shuts down. Redirecting would bring
        # the chatter back from the log onto the screen.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def update(self, progress: Progress, now: float) -> None:
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
