"""`retry`: run rejected rows again, in place."""

from typing import Annotated

import typer

from tokenmill.commands.options import (
    AddressOption,
    ClassOption,
    DebugOption,
    LogOption,
    OutputArgument,
    SetOption,
    executor_of,
    selected_classes,
)
from tokenmill.commands.run import print_outcome
from tokenmill.commands.terminal import LogFormat, interface_of, one_line_errors, stoppable
from tokenmill.output.rejects import Selection
from tokenmill.run.retry import retry_rejects
from tokenmill.storage.open import open_store


def retry_command(  # noqa: PLR0913, PLR0917 - options of a command
    ctx: typer.Context,
    output: OutputArgument,
    classes: ClassOption = None,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Also retry answers cut off at max_tokens.")
    ] = False,
    overrides: SetOption = None,
    address: AddressOption = None,
    log_format: LogOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Run rejected rows again and update the output in place.

    A row that has an answer keeps it until a new one replaces it.

    Example: tokenmill retry out/summaries --truncated --set sampling.max_tokens=200

    Exit codes: those of run.
    """
    interface = interface_of(log_format)
    with one_line_errors(debug, interface.fail), stoppable():
        selection = Selection(selected_classes(classes), truncated)
        summary = retry_rejects(
            open_store(output), selection, overrides or [], executor_of(ctx, address), interface
        )
        if summary is not None:
            print_outcome(summary, log_format)
            raise typer.Exit(summary.exit_code)
