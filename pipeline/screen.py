"""The terminal: a live progress display, and Ray's and vLLM's chatter kept away from it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from pipeline.monitor import PlainScreen, Progress, Screen, duration


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
    return PlainScreen(lambda line: console.print(line, markup=False))


class LiveScreen:
    """Units and rows as bars, rejects, tokens a second, replicas and the time left."""

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:<6}"), BarColumn(bar_width=40), MofNCompleteColumn()
        )
        self._units = self._bars.add_task("units", total=None)
        self._rows = self._bars.add_task("rows", total=None)
        # Redirecting would bring the chatter back from the log onto the screen.
        self._live = Live(
            self._bars,
            console=console,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def update(self, progress: Progress, now: float) -> None:
        self._bars.update(self._units, completed=progress.units_done, total=progress.units_total)
        self._bars.update(self._rows, completed=progress.rows_done, total=progress.rows_total)
        layout = Table.grid()
        layout.add_row(self._bars)
        layout.add_row(_facts(progress, now))
        self._live.update(layout)

    def close(self) -> None:
        self._live.stop()


def _facts(progress: Progress, now: float) -> str:
    read, written = progress.rates(now)
    running = sum(load.num_running for load in progress.pool.loads.values())
    loaded = len(progress.pool.loads)
    replicas = f"{loaded} replica{'s'[: loaded > 1]}" if loaded else "engine loading"
    return (
        f"{progress.rejected:,} rejects   {read:,.0f} input and {written:,.0f} output tokens/s   "
        f"{replicas}, {running:,} running   ETA {duration(progress.remaining_s(now))}"
    )
