"""`status`, `verify`, `rejects`: what is in an output."""

import json
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.commands.options import (
    ClassOption,
    DebugOption,
    JsonOption,
    OutputArgument,
    selected_classes,
    write_file,
)
from pipeline.commands.terminal import (
    facts_table,
    one_line_errors,
    plain_table,
    screen,
    visible,
)
from pipeline.errors import ExitCode, UserError
from pipeline.monitor import counted, duration
from pipeline.output import open_output, read_success
from pipeline.publish import publish
from pipeline.rejects import Selection, export_rows, in_words, rejected_rows
from pipeline.run import expected_of
from pipeline.status import Status, Watch
from pipeline.verify import Certificate, Level, require_whole, verify

# More would scroll the count away.
_MOST_FINDINGS = 20
_WATCH_S = 5.0


def status_command(
    output: OutputArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until it is finished.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what of an output is done and left, from its objects alone, on any machine.

    Example: tokenmill status s3://bucket/summaries --watch

    Exit codes: 0 whatever its state, 2 no output.
    """
    with one_line_errors(debug):
        watcher = Watch(open_output(output))
        console = screen()
        status = watcher.look()
        if not watch:
            if as_json:
                typer.echo(json.dumps({**asdict(status), "state": status.state}, indent=2))
            else:
                console.print(_status_table(status))
            return
        with Live(_status_table(status), console=console, auto_refresh=False) as live:
            while not status.is_finished:
                time.sleep(_WATCH_S)
                status = watcher.look()
                live.update(_status_table(status), refresh=True)


def verify_command(
    output: OutputArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row, and the input's rows beside them.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proof there, as JSON.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Prove from an output's objects that every input row is there once, in its place.

    Example: tokenmill verify out/summaries --deep

    Exit codes: 0 whole, 1 something is wrong, 2 no output.
    """
    with one_line_errors(debug):
        opened = open_output(output)
        proof = verify(opened.store, expected_of(opened), Level.INPUT if deep else Level.FOOTERS)
        if certificate is not None:
            write_file("--certificate", certificate, proof.to_json())
        _print_proof(proof)
        if not proof.is_whole:
            raise typer.Exit(ExitCode.FAILED)


def publish_command(
    output: OutputArgument,
    pointer: Annotated[str, typer.Argument(metavar="POINTER.json", help="A path or s3:// URL.")],
    debug: DebugOption = False,
) -> None:
    """Have a small object name an output for its readers: the next night's, or a former one's.

    Example: tokenmill publish s3://bucket/tags/dt=2026-01-30 s3://bucket/tags/current.json

    Exit codes: 0 done, 2 no finished output.
    """
    with one_line_errors(debug):
        opened = open_output(output)
        if read_success(opened.store) is None:
            raise UserError(f"{opened.store.url} is not finished; run its job to the end first")
        totals = require_whole(verify(opened.store, expected_of(opened), Level.FOOTERS))
        standing = publish(opened, totals, pointer, even_back=True)
        before = "" if standing.previous is None else f", {standing.previous} before"
        typer.echo(f"{pointer}: {standing.output}{before}")


def rejects_command(
    output: OutputArgument,
    classes: ClassOption = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples of each class.")] = 2,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All of them, to .parquet or .jsonl.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show the rows that got no answer, by class.

    Example: tokenmill rejects out/summaries --export rejects.jsonl
    """
    with one_line_errors(debug):
        opened = open_output(output)
        tables = [table for _, table in rejected_rows(opened, Selection(selected_classes(classes)))]
        if export is not None:
            export_rows(tables, export)
        _print_rejects(tables, examples)


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
        "pace": "" if status.rows_per_s is None else f"{status.rows_per_s:,.1f} rows/s",
        "next": "run the job again: it does what is left" if status.state == "stopped" else "",
        "ETA": "" if status.remaining_s is None else duration(status.remaining_s),
    }
    return facts_table(facts)


def _print_proof(proof: Certificate) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in proof.findings[:_MOST_FINDINGS]:
        line = f"{finding.damage}: {finding.key}: {finding.message}"
        console.print(visible(line), markup=False)
    if proof.findings[_MOST_FINDINGS:]:
        console.print(f"… and {len(proof.findings) - _MOST_FINDINGS:,} more")
    totals = proof.totals
    state = "whole" if proof.is_whole else f"NOT whole: {counted(len(proof.findings), 'finding')}"
    console.print(
        f"{proof.output}: {state}; {counted(totals.units, 'unit')}, {counted(totals.rows, 'row')}, "
        f"{totals.rejected:,} rejected, {totals.filtered:,} filtered out",
        markup=False,
    )


def _print_rejects(tables: list[pa.Table], examples: int) -> None:
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        columns = table.select(["error", "source_file", "source_row"])
        for row in columns.to_pylist():
            by_class[row["error"]["class"]].append(row)
    shown = plain_table("class", "rows", "where and why", numbers=("rows",))
    for name, rows in sorted(by_class.items(), key=lambda item: -len(item[1])):
        shown.add_row(name, f"{len(rows):,}", "")
        for row in rows[:examples]:
            shown.add_row("", "", Text(visible(in_words(row))))
    console = Console(highlight=False)
    console.print(shown if by_class else "no rejects")
