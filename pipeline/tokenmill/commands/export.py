"""`export`, `import-batch` and `schema`: what other programs read and write."""

from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, OutputArgument
from tokenmill.commands.terminal import one_line_errors
from tokenmill.exchange.export import ExportFormat, export, named_format
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.storage.open import open_store


def export_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="What to write: a path or s3://….")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help=f"What it is: {', '.join(ExportFormat)}.")
    ] = ExportFormat.JSONL,
    without_rejects: Annotated[
        bool, typer.Option("--without-rejects", help="Only rows that have their answer.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also of an output that is not finished.")
    ] = False,
    errors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of openai-batch: the rejected rows, in their own file."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write an output's rows, in the input's order, to a file or a table for other programs.

    Example: tokenmill export out/summaries summaries.jsonl --to jsonl --without-rejects

    Exit codes: 0 written, 2 no output, an unfinished one, or a target that is there already.
    """
    with one_line_errors(debug):
        num_rows = export(
            open_output(open_store(output)),
            target,
            named_format(to),
            rejects=not without_rejects,
            partial=partial,
            errors=errors,
        )
        typer.echo(f"{target}: {plural(num_rows, 'row')}")
