"""The user's terminal: errors in one line, tables of facts, a run's screen, signals."""

import json
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import IO, Any

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from tokenmill.errors import ExitCode, TokenmillError, root_cause
from tokenmill.observe.events import event_of, progress_event
from tokenmill.observe.screen import PlainScreen, Screen, chatter_into, make_screen

#: What a table may take of a wide terminal.
WIDTH = 100


@contextmanager
def one_line_errors(debug: bool, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Report an error in one line and end with its exit code; with `debug` let it through."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.STOPPED) from None
    except Exception as error:
        if debug or isinstance(error, typer.Exit):
            raise
        cause = root_cause(error)
        if isinstance(cause, TokenmillError):
            message, exit_code = str(cause), cause.exit_code
        else:
            message = (
                f"{type(cause).__name__}: {' '.join(str(cause).split())} (--debug shows where)"
            )
            exit_code = ExitCode.FAILED
        (say or say_error)(message)
        raise typer.Exit(exit_code) from None


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def screen() -> Console:
    """Where tables go: as wide as the terminal, but no wider than `WIDTH`; so wide in a pipe."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


class Terminal:
    """The user's terminal as a run's interface."""

    def say(self, line: str) -> None:
        errors_console().print(visible(line), markup=False)

    def event(self, event: Mapping[str, Any]) -> None:
        """What matters of it is said, or on the screen."""

    def fail(self, message: str) -> None:
        """Say why a command ends."""
        say_error(message)

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with chatter_into(log) as console:
            screen = make_screen(console)
            try:
                yield screen
            finally:
                # Also after a Ctrl-C before the first commit: a live display hides the cursor.
                screen.close()


class JsonTerminal:
    """The same for programs: all that happens as JSON lines on stderr, each with its run."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._run: str | None = None

    def say(self, line: str) -> None:
        self._write({**event_of("remark"), "message": line})

    def event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            self._run = event["run"]
        self._write(event)

    def fail(self, message: str) -> None:
        """Say why a command ends."""
        self._write({**event_of("error"), "message": message})

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with chatter_into(log) as console:
            self._file = console.file
            try:
                yield PlainScreen(lambda *seen: self._write(progress_event(*seen)))
            finally:
                self._file = None

    def _write(self, event: Mapping[str, Any]) -> None:
        line = json.dumps({"run": self._run, **event})
        print(line, file=self._file or sys.stderr, flush=True)


class LogFormat(StrEnum):
    """How a run tells what happens."""

    TEXT = "text"
    JSON = "json"


def interface_of(log_format: LogFormat) -> Terminal | JsonTerminal:
    """What a run speaks to its user with."""
    return JsonTerminal() if log_format is LogFormat.JSON else Terminal()


def plain_table(*headings: str, numbers: Collection[str] = ()) -> Table:
    """A table without lines, long words folded and never cut; numbers stand to the right."""
    shown = Table(box=None, pad_edge=False)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in numbers else "left"
        shown.add_column(heading, justify=justify, overflow="fold")
    return shown


def facts_table(facts: Mapping[str, str]) -> Table:
    """A name and its value a line, long ones folded and never cut; what is empty is left out."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            shown.add_row(name, Text(visible(value)))
    return shown


def errors_console() -> Console:
    """Where errors and remarks go: beside what a program may read."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say_error(message: str) -> None:
    """Print an error in one line."""
    errors_console().print(f"error: {visible(message)}", markup=False)


def visible(text: str) -> str:
    """The text with its control characters written out: a terminal obeys those of a row."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
