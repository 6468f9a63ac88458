"""The user's terminal: lines and tables, one-line errors, a run's progress, signals."""

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
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tokenmill.errors import ExitCode, NoSpace, TokenmillError, root_cause
from tokenmill.observe.events import EventName, new_event, progress_event
from tokenmill.observe.screen import PlainScreen, Screen, make_screen, redirected_output

#: Tables are no wider than this, even on a wider terminal.
WIDTH = 100


# Longer prompts are cut on the screen; --json prints them whole.
_MAX_PROMPT_CHARACTERS = 1200


@contextmanager
def one_line_errors(
    debug: bool, report_error: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Report an error in one line and exit with its code; with `debug`, let it propagate."""
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
            reason = " ".join(str(cause).split())
            message = f"{type(cause).__name__}: {reason} (--debug shows the traceback)"
            exit_code = ExitCode.FAILED
        (report_error or print_error)(message)
        raise typer.Exit(exit_code) from None


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP stop a run as Ctrl-C does; under `nohup`, SIGHUP stays ignored."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def optional_output() -> Iterator[None]:
    """Print in this context what an exit code must not depend on, such as a run's summary."""
    try:
        yield
    except NoSpace as error:
        print_remark(str(error))


def print_line(line: str) -> None:
    """Print a line to stdout. It is never wrapped, so that paths and commands can be copied."""
    typer.echo(visible(line))


def print_remark(line: str) -> None:
    """Print a line to stderr, which keeps stdout clean for programs."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(visible(line), markup=False)


def print_error(message: str) -> None:
    """Print why a command failed, in one line."""
    print_remark(f"error: {message}")


def visible(text: str) -> str:
    """The text with control characters escaped: a terminal would obey those in a row's text."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def table_console() -> Console:
    """The console for tables: as wide as the terminal up to `WIDTH`, and `WIDTH` in a pipe."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def print_prompts(console: Console, prompts: Mapping[str, str], row: str) -> None:
    """Print a row's prompts by task, each in a box; tasks with the same prompt share one."""
    tasks: dict[str, list[str]] = {}
    for task, prompt in prompts.items():
        tasks.setdefault(prompt, []).append(task)
    for prompt, names in tasks.items():
        is_long = len(prompt) > _MAX_PROMPT_CHARACTERS
        text = f"{prompt[:_MAX_PROMPT_CHARACTERS]} …" if is_long else prompt
        lines = "\n".join(map(visible, text.split("\n")))
        title = Text(visible(f"{', '.join(names)}: {row}"))
        console.print(Panel(Text(lines), title=title, title_align="left"))


def plain_table(*headings: str, numbers: Collection[str] = ()) -> Table:
    """A table without rules. Long words are folded, never cut; `numbers` are right-aligned."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in numbers else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def facts_table(facts: Mapping[str, str]) -> Table:
    """One name and value per line. Long values are folded, empty ones are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(visible(value)))
    return table


class LogFormat(StrEnum):
    """How a run reports its progress."""

    TEXT = "text"
    JSON = "json"


def interface_of(log_format: LogFormat) -> "Terminal | JsonTerminal":
    """The interface that reports a run in this format."""
    return JsonTerminal() if log_format is LogFormat.JSON else Terminal()


class Terminal:
    """Reports a run to a person: remarks on stderr, progress on a screen."""

    def say(self, line: str) -> None:
        print_remark(line)

    def event(self, event: Mapping[str, Any]) -> None:
        """Ignored: the screen and the remarks show what matters."""

    def fail(self, message: str) -> None:
        """Report why the command failed."""
        print_error(message)

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with redirected_output(log) as console:
            screen = make_screen(console)
            try:
                yield screen
            finally:
                # Also after Ctrl-C before the first commit: a live display hides the cursor.
                screen.close()


class JsonTerminal:
    """Reports a run to programs: every event is a JSON line on stderr with the run's id."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._run: str | None = None

    def say(self, line: str) -> None:
        self._write({**new_event(EventName.REMARK), "message": line})

    def event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == EventName.START:
            self._run = event["run"]
        self._write(event)

    def fail(self, message: str) -> None:
        """Report why the command failed."""
        self._write({**new_event(EventName.ERROR), "message": message})

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with redirected_output(log) as console:
            self._file = console.file
            try:
                yield PlainScreen(lambda *state: self._write(progress_event(*state)))
            finally:
                self._file = None

    def _write(self, event: Mapping[str, Any]) -> None:
        line = json.dumps({"run": self._run, **event})
        print(line, file=self._file or sys.stderr, flush=True)
