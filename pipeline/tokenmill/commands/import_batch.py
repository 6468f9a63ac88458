"""`import-batch`: answer a batch file in OpenAI's format."""

from typing import Annotated

import typer

from tokenmill.commands.options import AddressOption, DebugOption, SetOption, executor_of
from tokenmill.commands.run import print_summary
from tokenmill.commands.terminal import Terminal, one_line_errors, stoppable
from tokenmill.errors import ExitCode
from tokenmill.exchange.openai_batch import Batch, run_batch


def import_batch_command(  # noqa: PLR0913, PLR0917 - options of a command
    ctx: typer.Context,
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
        outcome = run_batch(batch, model, overrides or [], executor_of(ctx, address), Terminal())
        if outcome is None:
            return
        if outcome.summary is not None:
            print_summary(outcome.summary)
            if outcome.summary.exit_code != ExitCode.FINISHED:
                raise typer.Exit(outcome.summary.exit_code)
        typer.echo(f"{output}: {outcome.answered:,} answers")
        typer.echo(f"{errors or output}: {outcome.failed:,} errors")
