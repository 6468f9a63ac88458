"""`init`: write a first job file for an input."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption
from tokenmill.commands.terminal import one_line_errors, print_line
from tokenmill.errors import UserError
from tokenmill.formatting import plural
from tokenmill.scaffold.job_file import KINDS, column_for_task, job_for
from tokenmill.scaffold.survey import survey


def init_command(
    kind: Annotated[
        str, typer.Option("--task", metavar="KIND", help=f"Kind of task: {', '.join(KINDS)}.")
    ] = "generate",
    input_path: Annotated[
        str,
        typer.Option(
            "--input", metavar="PATH", help="Parquet input: a file, folder, glob or s3:// prefix."
        ),
    ] = ".",
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="FILE.yaml",
            help="Job file to write. An existing file is never overwritten.",
        ),
    ] = Path("job.yaml"),
    debug: DebugOption = False,
) -> None:
    """Write a commented job file for an input.

    Chooses the column to process and the columns to keep from the input's schema and first rows.

    Example: tokenmill init --task classify --input corpus --output mood.yaml

    Exit codes: 0 written, 2 a mistake in the input, or the file already exists.
    """
    with one_line_errors(debug):
        surveyed = survey(input_path)
        _write(job_for(surveyed, kind, str(output)), output)
        column = column_for_task(surveyed, kind).name
        rows, shards = plural(surveyed.rows, "row"), plural(surveyed.shards, "shard")
        print_line(f"{output}: {kind} on column {column}, {rows} in {shards}")
        print_line(f"next: tokenmill validate {output}")


def _write(text: str, target: Path) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(
            f"{target} already exists and was not changed; choose another name with --output"
        ) from None
    except OSError as error:
        raise UserError(f"--output {target}: {error.strerror or error}") from error
