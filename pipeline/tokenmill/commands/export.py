"""`export`: an output in another program's format."""

from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, OutputArgument
from tokenmill.commands.terminal import one_line_errors, print_remark
from tokenmill.exchange.export import STDOUT, ExportFormat, export, format_of
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.storage.open import open_store


def export_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="What to write: a path, an s3:// URL, or - for standard output."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=f"Format: {', '.join(ExportFormat)}. Default: by the target's suffix, or jsonl.",
        ),
    ] = None,
    without_rejects: Annotated[
        bool, typer.Option("--without-rejects", help="Leave out rejected rows.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Export the finished units of an unfinished output.")
    ] = False,
    errors: Annotated[
        str | None,
        typer.Option(
            "--errors", metavar="FILE", help="openai-batch only: write rejected rows to this file."
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Export an output's rows, in input order, to a file or table for other programs.

    Example: tokenmill export out/summaries summaries.jsonl --to jsonl --without-rejects

    Exit codes: 0 written, 2 no output, an unfinished output, or a target that already exists.
    """
    with one_line_errors(debug):
        num_rows = export(
            open_output(open_store(output)),
            target,
            format_of(to, target),
            rejects=not without_rejects,
            partial=partial,
            errors=errors,
        )
        if target == STDOUT:
            print_remark(plural(num_rows, "row"))
        else:
            typer.echo(f"{target}: {plural(num_rows, 'row')}")
