"""The terminal: live progress, with the output of Ray and vLLM redirected into a log."""

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
from tokenmill.observe.streams import outliving

_BAR_WIDTH = 40
_LINE_INTERVAL_S = 10.0


class Screen(RunListener):
    """Shows the progress of a run to a person."""

    def started(self, progress: Progress) -> None:
        self.ticked(progress, time.monotonic())

    def close(self) -> None:
        """Restore the terminal."""


class PlainScreen(Screen):
    """Calls `show` every ten seconds and for each new stage, to print a line into a log or a pipe.

    `show_crash` is called with the line about an engine that crashed.
    """

    def __init__(
        self,
        show: Callable[[Progress, float], None],
        show_crash: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._show = show
        self._show_crash = show_crash
        self._stage: str | None = None
        self._next_line_at = 0.0

    def crashed(self, replica: str, reason: str) -> None:
        self._show_crash(crash_line(replica, reason))

    def ticked(self, progress: Progress, now: float) -> None:
        if now >= self._next_line_at or progress.stage != self._stage:
            self._next_line_at = now + _LINE_INTERVAL_S
            self._stage = progress.stage
            self._show(progress, now)


def crash_line(replica: str, reason: str) -> str:
    """The line that a screen shows when an engine has crashed."""
    return f"The engine of replica {replica} crashed: {reason}. Its rows run again."


def progress_line(progress: Progress, now: float) -> str:
    """The content of the live screen in one line."""
    if progress.stage is not None:
        return (
            f"{progress.stage}  {duration(now - progress.started_at)}  "
            f"units {progress.units_done:,}/{progress.units_total:,}"
        )
    input_rate, output_rate = progress.rates(now)
    return (
        f"units {progress.units_done:,}/{progress.units_total:,}  "
        f"rows {progress.rows_answered:,}/{progress.rows_total:,}  "
        f"rejects {progress.rejected:,}  "
        f"tokens/s in {input_rate:,.0f} out {output_rate:,.0f}  "
        f"replicas {len(progress.pool.loads)}  "
        f"ETA {duration(progress.remaining_s(now))}"
    )


class Interface(Protocol):
    """Where a run reports to its user."""

    def say(self, line: str) -> None:
        """Print one line now."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Report an event, with the fields that it has in `events.jsonl`."""

    def watch(self, log: Path) -> AbstractContextManager[Screen]:
        """Show progress while the context is open; all other output goes into `log`."""


@contextmanager
def redirected_output(log: Path) -> Iterator[Console]:
    """Redirect stdout and stderr into `log`; yields a console that still writes to the terminal.

    File descriptors are redirected, because C++ code and child processes of Ray and vLLM write too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Progress is not worth a run: the terminal may be closed, or the reader of the pipe may end.
    screen = outliving(os.dup(saved[1]), like=sys.stderr)
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
    return PlainScreen(
        lambda progress, now: console.print(progress_line(progress, now), markup=False),
        lambda line: console.print(line, markup=False),
    )


class LiveScreen(Screen):
    """Bars for units and rows; rejects, tokens a second, replicas and the time left."""

    def __init__(self, console: Console) -> None:
        # Refreshed by `ticked`: a thread that refreshes also collects garbage, and Ray ends the
        # process if one of its objects is freed during its shutdown. Redirected output would appear
        # on the screen instead of in the log.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def crashed(self, replica: str, reason: str) -> None:
        # Appears above the live display and stays there.
        self._live.console.print(crash_line(replica, reason), markup=False, highlight=False)

    def ticked(self, progress: Progress, now: float) -> None:
        self._live.update(_facts(progress, now), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _facts(progress: Progress, now: float) -> Table:
    """One fact per line; every line fits into 80 columns."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("units", _bar(progress.units_done, progress.units_total))
    facts.add_row("rows", _bar(progress.rows_answered, progress.rows_total))
    facts.add_row("rejects", f"{progress.rejected:,}")
    input_rate, output_rate = progress.rates(now)
    facts.add_row("tokens/s", f"{input_rate:,.0f} in, {output_rate:,.0f} out")
    facts.add_row("replicas", _replicas(progress))
    elapsed = duration(now - progress.started_at)
    facts.add_row("ETA", f"{duration(progress.remaining_s(now))}, after {elapsed}")
    return facts


def _bar(done: int, total: int) -> Table:
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total, done, width=_BAR_WIDTH), f"{done:,} of {total:,}")
    return bar


def _replicas(progress: Progress) -> str:
    if progress.stage is not None:
        return progress.stage
    loads = progress.pool.loads.values()
    rows, units = sum(load.num_running for load in loads), sum(load.num_units for load in loads)
    return f"{len(loads):,}, with {rows:,} rows of {units:,} units"
