"""The options that several commands share, and the keys of the job that they stand for."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.cluster.ray_executor import RayExecutor
from tokenmill.commands.terminal import LogFormat
from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.reject import RejectClass
from tokenmill.stages.executor import Executor

JobArgument = Annotated[
    # Whether it can be read is said by us, in one line.
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", readable=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the job; repeatable."),
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="RAY", help="A Ray cluster; by default a local one.")
]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="A folder or s3:// prefix.")]
ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS", help="Only rejects of this class; repeatable."),
]
LogOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="TOKENMILL_LOG_FORMAT",
        help="What a run says while it is at work: text, or JSON lines for programs.",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="PATH", help="Instead of input.path.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", metavar="PATH", help="Instead of output.path.")
]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--date",
        metavar="DAY",
        help="What {date} in paths stands for: today, yesterday (UTC), 2026-01-31.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Only the first N rows.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def job_settings(  # noqa: PLR0913, PLR0917 - options of a command
    overrides: list[str] | None,
    input_path: str | None,
    output_path: str | None = None,
    limit: int | None = None,
    where: str | None = None,
    date: str | None = None,
) -> list[str]:
    """The overrides that `--set` and a command's own options name."""
    options = {
        "input.path": input_path,
        "output.path": output_path,
        "input.limit": limit,
        "input.where": where,
        "date": date,
    }
    named = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *named]


def selected_classes(classes: list[str] | None) -> frozenset[str] | None:
    """The classes that `--class` names; None for all. Raises `UserError` for one unknown."""
    known = [str(name) for name in RejectClass]
    for name in classes or ():
        if name not in known:
            raise UserError(f"--class {name}: {did_you_mean(name, known, 'class')}")
    return frozenset(classes) if classes else None


def write_file(option: str, target: Path, text: str) -> None:
    """Write the file that an option names. Raises `UserError`."""
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option} {target}: {error.strerror or error}") from error


def executor_of(
    ctx: typer.Context, address: str | None, metrics_port: int | None = None
) -> Executor:
    """Where a command's units run: on Ray, unless whoever calls the app passes another executor.

    Raises as `RayExecutor`.
    """
    return ctx.obj or RayExecutor(address, metrics_port)
