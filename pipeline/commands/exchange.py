"""`export` and `schema`: what other programs read."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import DebugOption, OutputArgument
from pipeline.commands.terminal import one_line_errors
from pipeline.export import Format, export, named_format
from pipeline.monitor import counted
from pipeline.output import open_output
from pipeline.printed import NAMES, schema_of


def export_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The file to write.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help=f"What it is: {', '.join(Format)}.")
    ] = Format.JSONL,
    without_rejects: Annotated[
        bool, typer.Option("--without-rejects", help="Only rows that have their answer.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also of an output that is not finished.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Write an output's rows, in the input's order, to one file for other programs.

    Example: tokenmill export out/summaries summaries.jsonl --to jsonl --without-rejects

    Exit codes: 0 written, 2 no output, an unfinished one, or a file that is there already.
    """
    with one_line_errors(debug):
        num_rows = export(
            open_output(output),
            target,
            named_format(to),
            rejects=not without_rejects,
            partial=partial,
        )
        typer.echo(f"{target}: {counted(num_rows, 'row')}")


def schema_command(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help=f"Of what: {', '.join(NAMES)}.")
    ] = "job",
    debug: DebugOption = False,
) -> None:
    """Print the job file's JSON schema, or that of a command's --json or a run's summary.json.

    Example: tokenmill schema > tokenmill.schema.json
    """
    with one_line_errors(debug):
        typer.echo(json.dumps(schema_of(name), indent=2))
