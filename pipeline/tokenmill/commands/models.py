"""`models`: a group of three commands that share their arguments: list, fetch, path."""

from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from tokenmill.commands.options import DebugOption
from tokenmill.commands.terminal import one_line_errors, plain_table
from tokenmill.errors import RunFailed, UserError
from tokenmill.job.sections import Model
from tokenmill.models import bundled, fetch
from tokenmill.models.cache import log_file
from tokenmill.observe.screen import redirected_output

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="bundled:NAME, a Hub id or s3://bucket/prefix.")
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a Hub model."),
]


def models_list() -> None:
    """List the bundled models and whether they are on this machine.

    Example: tokenmill models list
    """
    table = plain_table("model", "description", "fetched")
    for name, model in bundled.BUNDLED_MODELS.items():
        source = f"bundled:{name}"
        fetched = "yes" if fetch.local_path(Model(source=source)) else "no"
        table.add_row(source, model.description, fetched)
    Console().print(table)


def models_fetch(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Download a model unless it is already on this machine, and print its folder.

    Example: tokenmill models fetch bundled:smollm2-135m

    Exit codes: 0 the model is on this machine, 1 the download failed, 2 no such model.
    """
    with one_line_errors(debug):
        model = _model(source, revision)
        log = log_file("models.log")
        with redirected_output(log) as console:
            if fetch.local_path(model) is None:
                console.print(f"fetching {source}; log: {log}", markup=False)
            folder = fetch.fetch_model(model)
        typer.echo(folder)


def models_path(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Print the folder of a model that is already on this machine.

    Example: tokenmill models path bundled:smollm2-135m

    Exit codes: 0 the model is on this machine, 1 it is not, 2 no such model.
    """
    with one_line_errors(debug):
        folder = fetch.local_path(_model(source, revision))
        if folder is None:
            raise RunFailed(
                f"{source} is not on this machine; run: tokenmill models fetch {source}"
            )
        typer.echo(folder)


def _model(source: str, revision: str | None) -> Model:
    try:
        return Model(source=source, revision=revision)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{source}: {reason}") from error
