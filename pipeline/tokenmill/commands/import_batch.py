"""`import-batch`: run a batch file in OpenAI's format."""

from typing import Annotated

import typer

from tokenmill.commands.options import AddressOption, DebugOption, SetOption, executor_of
from tokenmill.commands.run import print_outcome
from tokenmill.commands.terminal import (
    LogFormat,
    Terminal,
    one_line_errors,
    optional_output,
    stoppable,
)
from tokenmill.errors import ExitCode
from tokenmill.exchange.openai_batch import Batch, run_batch
from tokenmill.formatting import plural


def import_batch_command(  # noqa: PLR0913, PLR0917 - options of a command
    ctx: typer.Context,
    requests: Annotated[
        str, typer.Argument(metavar="REQUESTS.jsonl", help="The batch file, in OpenAI's format.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", metavar="SOURCE", help="The model to run, as in model.source."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", metavar="FILE", help="File for the answers, one line per request."
        ),
    ],
    errors: Annotated[
        str | None,
        typer.Option(
            "--errors", metavar="FILE", help="File for failed requests. Default: that of --output."
        ),
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(
            "--work", metavar="FOLDER", help="Folder for intermediate files. Default: OUTPUT.work."
        ),
    ] = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    debug: DebugOption = False,
) -> None:
    """Run an OpenAI-format batch file. Rerun the same command to resume.

    Example: tokenmill import-batch requests.jsonl --model Qwen/Qwen3-8B --output answers.jsonl

    Exit codes: those of run. Failed requests do not change them, unless --set max_reject_rate=…
    limits them.
    """
    with one_line_errors(debug), stoppable():
        batch = Batch(requests, output, errors, work or f"{output}.work")
        outcome = run_batch(batch, model, overrides or [], executor_of(ctx, address), Terminal())
        if outcome is None:
            return
        if outcome.summary is not None:
            print_outcome(outcome.summary, LogFormat.TEXT)
            if outcome.summary.exit_code != ExitCode.FINISHED:
                raise typer.Exit(outcome.summary.exit_code)
        with optional_output():
            typer.echo(f"{output}: {plural(outcome.answered, 'answer')}")
            typer.echo(f"{errors or output}: {plural(outcome.failed, 'error')}")
