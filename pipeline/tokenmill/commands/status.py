"""`status`: the progress of an output."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tokenmill.commands.options import DebugOption, JsonOption, OutputArgument
from tokenmill.commands.terminal import (
    facts_table,
    one_line_errors,
    print_line,
    table_console,
)
from tokenmill.formatting import duration
from tokenmill.output.output import open_output
from tokenmill.output.status import Status, StatusReader, changes
from tokenmill.storage.open import open_store

_REFRESH_S = 5.0


def status_command(
    output: OutputArgument,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Refresh every few seconds until it is finished; in a pipe or file, one line per "
            "change.",
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the progress of an output. Works from any machine that can read it.

    Example: tokenmill status s3://bucket/summaries --watch

    Exit codes: 0 shown, whatever the state; 2 no output.
    """
    with one_line_errors(debug):
        reader = StatusReader(open_output(open_store(output)))
        console = table_console()
        if watch:
            statuses = reader.until_finished(lambda: time.sleep(_REFRESH_S))
            if console.is_terminal and not as_json:
                _show_live(statuses, console)
            else:
                for status in changes(statuses):
                    print_line(json.dumps(_facts(status)) if as_json else _status_line(status))
        elif as_json:
            typer.echo(json.dumps(_facts(reader.read()), indent=2))
        else:
            console.print(_status_table(reader.read()))


def _show_live(statuses: Iterable[Status], console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for status in statuses:
            live.update(_status_table(status), refresh=True)


def _facts(status: Status) -> dict[str, Any]:
    return {**asdict(status), "state": status.state}


def _status_line(status: Status) -> str:
    """The status in one line, for a pipe or a file."""
    speed = "-" if status.rows_per_s is None else f"{status.rows_per_s:,.1f}"
    return (
        f"{status.state}  units {status.units_done:,}/{status.units:,}  "
        f"rows {status.rows_done:,}/{status.rows:,}  rejects {sum(status.rejects.values()):,}  "
        f"rows/s {speed}  ETA {duration(status.remaining_s)}"
    )


def _status_table(status: Status) -> Table:
    facts = {
        "job": status.job,
        "output": status.output,
        "state": " ".join([status.state, *status.running]),
        "units": f"{status.units_done:,} of {status.units:,}",
        "rows": f"{status.rows_done:,} of {status.rows:,}",
        "filtered out": f"{status.filtered:,}" if status.filtered else "",
        "rejects": ", ".join(f"{count:,} {name}" for name, count in status.rejects.items()) or "0",
        "tokens": f"{status.input_tokens:,} in, {status.generated_tokens:,} out",
        "throughput": "" if status.rows_per_s is None else f"{status.rows_per_s:,.1f} rows/s",
        "ETA": "" if status.remaining_s is None else duration(status.remaining_s),
        "next": "run the job again to finish it" if status.state == "stopped" else "",
    }
    return facts_table(facts)
