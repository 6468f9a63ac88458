"""The command line: `tokenmill run`, `verify`, `retry` and the others, put together."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tokenmill import __version__
from tokenmill.commands.compare import compare_command
from tokenmill.commands.export import export_command
from tokenmill.commands.import_batch import import_batch_command
from tokenmill.commands.init import init_command
from tokenmill.commands.jobs import jobs_command, stop_command
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
from tokenmill.commands.submit import submit_command
from tokenmill.commands.terminal import say_error
from tokenmill.commands.validate import validate_command
from tokenmill.commands.verify import verify_command
from tokenmill.errors import ExitCode


class _Command(TyperCommand):
    """A command, in whose help a flag stands without `<bool>`."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _bare_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """A group of commands; its flags too."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _bare_flags(super().get_params(ctx))


def _bare_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


def version_command() -> None:
    """Print tokenmill's version.

    Example: tokenmill version
    """
    typer.echo(__version__)


#: The commands, in the order in which one needs them, below the headings of `tokenmill --help`.
_COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Before a run": {
        "init": init_command,
        "validate": validate_command,
        "preview": preview_command,
        "plan": plan_command,
    },
    "A run": {
        "run": run_command,
        "status": status_command,
        "rejects": rejects_command,
        "retry": retry_command,
    },
    "On a cluster": {
        "submit": submit_command,
        "jobs": jobs_command,
        "stop": stop_command,
    },
    "What came out": {
        "report": report_command,
        "compare": compare_command,
        "export": export_command,
        "verify": verify_command,
        "publish": publish_command,
    },
    "Besides": {
        "import-batch": import_batch_command,
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


def _add(to: typer.Typer, name: str, command: Callable[..., None], panel: str | None) -> None:
    # A paragraph is a line, which the terminal breaks where it ends.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    to.command(name, cls=_Command, help=text, rich_help_panel=panel, **_HELP)(command)


def _print_version(asked: bool) -> None:
    if asked:
        version_command()
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print it."),
    ] = False,
) -> None:
    """Nothing of its own."""


app = typer.Typer(
    cls=_Group,
    help="Run LLMs over whole corpora: Parquet in, Parquet out, every row exactly once.",
    epilog="Begin with: tokenmill init --input FOLDER",
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
    cls=_Group, help="Bundled models, and models from elsewhere.", no_args_is_help=True, **_HELP
)
for _name, _command in _MODELS.items():
    _add(_models, _name, _command, None)
app.add_typer(_models, name="models", rich_help_panel="Besides")


def main() -> None:
    """The console script."""
    if not __debug__:
        say_error("python -O or PYTHONOPTIMIZE drops checks of Ray and vLLM; run without it")
        raise SystemExit(ExitCode.USER_ERROR)
    app(prog_name="tokenmill")
