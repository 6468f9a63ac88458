"""`export`, `import-batch` and `schema`: what other programs read and write."""

import json
from typing import Annotated

import typer

from pipeline.batch_run import Batch, run_batch
from pipeline.commands.options import AddressOption, DebugOption, OutputArgument, SetOption
from pipeline.commands.run import print_summary
from pipeline.commands.terminal import Terminal, one_line_errors, stoppable
from pipeline.errors import ExitCode
from pipeline.export import Format, export, named_format
from pipeline.monitor import counted
from pipeline.output import open_output
from pipeline.printed import NAMES, schema_of


def export_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="What to write: a path or s3://….")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help=f"What it is: {', '.join(Format)}.")
    ] = Format.JSONL,
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
            open_output(output),
            target,
            named_format(to),
            rejects=not without_rejects,
            partial=partial,
            errors=errors,
        )
        typer.echo(f"{target}: {counted(num_rows, 'row')}")


def import_batch_command(  # noqa: PLR0913, PLR0917 - options of a command
    requests: Annotated[
        str, typer.Argument(metavar="REQUESTS.jsonl", help="A file of OpenAI's batches.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="SOURCE", help="What answers, as model.source.")
    ],
    output: Annotated[
        str, typer.Option("--output", metavar="FILE", help="The answers, a line each.")
    ],
    errors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Requests without an answer; by default with the rest."),
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="What is between; by default FILE.work of --output."),
    ] = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer a batch file of OpenAI's form, or go on with it: the same command resumes.

    Example: tokenmill import-batch requests.jsonl --model Qwen/Qwen3-8B --output answers.jsonl

    Exit codes: as of run; requests without an answer do not change them, unless --set
    max_reject_rate=… does.
    """
    with one_line_errors(debug), stoppable():
        batch = Batch(requests, output, errors, work or f"{output}.work")
        outcome = run_batch(batch, model, overrides or [], address, Terminal())
        if outcome is None:
            return
        if outcome.summary is not None:
            print_summary(outcome.summary)
            if outcome.summary.exit_code != ExitCode.FINISHED:
                raise typer.Exit(outcome.summary.exit_code)
        typer.echo(f"{output}: {outcome.answered:,} answers")
        typer.echo(f"{errors or output}: {outcome.failed:,} errors")


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
