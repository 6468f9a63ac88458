"""`publish`: make a pointer file name an output."""

from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, OutputArgument
from tokenmill.commands.terminal import one_line_errors
from tokenmill.errors import UserError
from tokenmill.output.output import open_output
from tokenmill.output.publish import publish
from tokenmill.output.success import read_success
from tokenmill.output.verify import Level, expected_output, require_whole, verify
from tokenmill.storage.open import open_store


def publish_command(
    output: OutputArgument,
    pointer: Annotated[
        str,
        typer.Argument(metavar="POINTER.json", help="The pointer file: a path or an s3:// URL."),
    ],
    debug: DebugOption = False,
) -> None:
    """Point a current.json at an output, so that readers switch (or roll back) atomically.

    Example: tokenmill publish s3://bucket/tags/dt=2026-01-30 s3://bucket/tags/current.json

    Exit codes: 0 published, 2 no finished output.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        if read_success(opened.store) is None:
            raise UserError(f"{opened.store.url} is not finished; run its job to the end first")
        totals = require_whole(verify(opened.store, expected_output(opened), Level.FOOTERS))
        published = publish(opened, totals, pointer, allow_rollback=True)
        before = "" if published.previous is None else f" (before: {published.previous})"
        typer.echo(f"{pointer}: {published.output}{before}")
