"""The `tokenmill` command line: every command, grouped for `--help`."""

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tokenmill.commands.compare import compare_command
from tokenmill.commands.export import export_command
from tokenmill.commands.import_batch import import_batch_command
from tokenmill.commands.init import init_command
from tokenmill.commands.jobs import jobs_command
from tokenmill.commands.models import models_fetch, models_list, models_path
from tokenmill.commands.plan import plan_command
from tokenmill.commands.preview import preview_command
from tokenmill.commands.publish import publish_command
from tokenmill.commands.rejects import rejects_command
from tokenmill.commands.report import report_command
from tokenmill.commands.retry import retry_command
from tokenmill.commands.run import run_command
from tokenmill.commands.schema import schema_command
from tokenmill.commands.status import status_command
from tokenmill.commands.stop import stop_command
from tokenmill.commands.submit import submit_command
from tokenmill.commands.terminal import print_error
from tokenmill.commands.validate import validate_command
from tokenmill.commands.verify import verify_command
from tokenmill.commands.version import version_command
from tokenmill.errors import TokenmillError, UserError
from tokenmill.observe.streams import open_standard_streams
from tokenmill.stages.executor import Executor


class _Command(TyperCommand):
    """A command whose help lists flags without `<bool>`."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _bare_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """A group of commands whose help lists flags without `<bool>`."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _bare_flags(super().get_params(ctx))


def _bare_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


#: The commands below the headings of `tokenmill --help`, in the order of their use.
_COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Before a run": {
        "init": init_command,
        "validate": validate_command,
        "preview": preview_command,
        "plan": plan_command,
    },
    "Run": {
        "run": run_command,
        "status": status_command,
        "rejects": rejects_command,
        "retry": retry_command,
        "import-batch": import_batch_command,
    },
    "Cluster": {
        "submit": submit_command,
        "jobs": jobs_command,
        "stop": stop_command,
    },
    "Results": {
        "report": report_command,
        "compare": compare_command,
        "export": export_command,
        "verify": verify_command,
        "publish": publish_command,
    },
    "Other": {
        "schema": schema_command,
        "version": version_command,
    },
}
_MODELS: Mapping[str, Callable[..., None]] = {
    "list": models_list,
    "fetch": models_fetch,
    "path": models_path,
}
_HELP: Mapping[str, Any] = {"context_settings": {"help_option_names": ["--help", "-h"]}}


def _add(group: typer.Typer, name: str, command: Callable[..., None], panel: str | None) -> None:
    # Lines are joined, so that the terminal wraps each paragraph at its own width.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    group.command(name, cls=_Command, help=text, rich_help_panel=panel, **_HELP)(command)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        version_command()
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Only options of the program itself."""


app = typer.Typer(
    cls=_Group,
    help="Run LLMs over whole corpora: Parquet in, Parquet out, every row exactly once.",
    epilog="Start with: tokenmill init --input FOLDER",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    **_HELP,
)
app.callback()(_root)
for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        _add(app, _name, _command, _panel)
_models = typer.Typer(
    cls=_Group, help="List, download and find models.", no_args_is_help=True, **_HELP
)
for _name, _command in _MODELS.items():
    _add(_models, _name, _command, None)
app.add_typer(_models, name="models", rich_help_panel="Other")


def main(executor: Executor | None = None) -> None:
    """The console script. Units run on `executor` instead of Ray, if one is passed."""
    open_standard_streams()
    try:
        _check_surroundings()
        app(prog_name="tokenmill", obj=executor)
    except TokenmillError as error:
        # Commands report their own errors, except for `--debug` and what typer prints for them.
        if "--debug" in sys.argv:
            raise
        print_error(str(error))
        raise SystemExit(error.exit_code) from error


def _check_surroundings() -> None:
    """Raise `UserError` for a process in which no command can work."""
    if not __debug__:
        raise UserError("python -O and PYTHONOPTIMIZE remove checks of Ray and vLLM; run without")
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be used ({error.strerror}), it may have been deleted; "
            "change to another folder"
        ) from error
