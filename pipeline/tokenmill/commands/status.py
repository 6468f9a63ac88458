"""`status`: the progress of an output."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from tokenmill.commands.options import DebugOption, JsonOption, OutputArgument
from tokenmill.commands.terminal import facts_table, one_line_errors, table_console
from tokenmill.formatting import duration
from tokenmill.output.output import open_output
from tokenmill.output.status import Status, StatusReader
from tokenmill.storage.open import open_store

_REFRESH_S = 5.0


def status_command(
    output: OutputArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every few seconds until it is finished.")
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
        status = reader.read()
        if not watch:
            if as_json:
                typer.echo(json.dumps({**asdict(status), "state": status.state}, indent=2))
            else:
                console.print(_status_table(status))
            return
        with Live(_status_table(status), console=console, auto_refresh=False) as live:
            while not status.is_finished:
                time.sleep(_REFRESH_S)
                status = reader.read()
                live.update(_status_table(status), refresh=True)


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
