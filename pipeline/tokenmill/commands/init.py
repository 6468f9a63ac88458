"""`init`: a job file to begin with, made for an input."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption
from tokenmill.commands.terminal import one_line_errors, visible
from tokenmill.errors import UserError
from tokenmill.formatting import plural
from tokenmill.scaffold.job_file import KINDS, column_for_task, job_for
from tokenmill.scaffold.survey import survey


def init_command(
    kind: Annotated[
        str, typer.Option("--task", metavar="KIND", help=f"One of {', '.join(KINDS)}.")
    ] = "generate",
    input_path: Annotated[
        str,
        typer.Option("--input", metavar="PATH", help="Parquet: a file, folder, glob or s3://."),
    ] = ".",
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE.yaml", help="The job file; never overwritten.")
    ] = Path("job.yaml"),
    debug: DebugOption = False,
) -> None:
    """Look at an input and write a commented job file for it.

    Example: tokenmill init --task classify --input corpus --output mood.yaml
    """
    with one_line_errors(debug):
        found = survey(input_path)
        _write(job_for(found, kind, str(output)), output)
        column = column_for_task(found, kind).name
        typer.echo(
            visible(
                f"{output}: {kind} over the column {column} of {plural(found.rows, 'row')} in "
                f"{plural(found.shards, 'shard')}"
            )
        )
        typer.echo(visible(f"next: tokenmill validate {output}"))


def _write(text: str, target: Path) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(
            f"{target}: it is there already and is left as it is; name another with --output"
        ) from None
    except OSError as error:
        raise UserError(f"--output {target}: {error.strerror or error}") from error
