"""Options and arguments that several commands share, each declared once, and what they become."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cluster.ray_executor import RayExecutor
from tokenmill.commands.terminal import LogFormat
from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.reject import RejectClass
from tokenmill.stages.executor import Executor

if TYPE_CHECKING:
    from tokenmill.cluster.jobs_api import Cluster

JobArgument = Annotated[
    # readable=False: `load_job` reports an unreadable file in one line, typer in a box.
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", readable=False)
]
OutputArgument = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="The output: a folder or an s3:// prefix.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the job. Repeatable."),
]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="PATH", help="Override input.path.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", metavar="PATH", help="Override output.path.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Use only the first N rows.")
]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--date",
        metavar="DAY",
        help="Value of {date} in paths: today, yesterday (both UTC) or 2026-01-31.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed that selects the random rows.")
]
PriceOption = Annotated[
    float | None,
    typer.Option(
        "--price",
        min=0,
        metavar="PRICE",
        help="Price of a GPU-hour. Default: model.price_per_gpu_hour.",
    ),
]
ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS", help="Only rejects of this class. Repeatable."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="RAY",
        help="Ray cluster to run on. Default: RAY_ADDRESS, or a local Ray.",
    ),
]
JobsApiOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Address of the cluster's Job API: http://HOST:8265.",
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        envvar="TOKENMILL_METRICS_PORT",
        metavar="PORT",
        min=1,
        max=65535,
        help="Serve Prometheus metrics of a local run on this port of 127.0.0.1.",
    ),
]
LogOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        envvar="TOKENMILL_LOG_FORMAT",
        help="Format of progress and errors: text, or JSON lines for programs.",
    ),
]
PageOption = Annotated[
    Path | None, typer.Option("--to", metavar="FILE.html", help="Write the HTML page to FILE.html.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def job_settings(  # noqa: PLR0913, PLR0917 - options of a command
    overrides: list[str] | None,
    input_path: str | None,
    output_path: str | None = None,
    limit: int | None = None,
    where: str | None = None,
    date: str | None = None,
) -> list[str]:
    """The overrides of `--set`, followed by those of options that set a job key."""
    options = {
        "input.path": input_path,
        "output.path": output_path,
        "input.limit": limit,
        "input.where": where,
        "date": date,
    }
    settings = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *settings]


def selected_classes(classes: list[str] | None) -> frozenset[str] | None:
    """The classes that `--class` names; None for all. Raises `UserError` for an unknown class."""
    names = [str(name) for name in RejectClass]
    for name in classes or ():
        if name not in names:
            raise UserError(f"--class {name}: {did_you_mean(name, names, 'class')}")
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
    """Where a command's units run: on Ray, unless the caller of the app passed another executor.

    Raises as `RayExecutor`.
    """
    return ctx.obj or RayExecutor(address, metrics_port)


def cluster_at(address: str | None) -> "Cluster":
    """The cluster at an address of Ray's Job API. Raises as `Cluster` does."""
    if address is None:
        raise UserError(
            "--address is missing; pass the cluster's Job API (http://HOST:8265) or set "
            "RAY_API_SERVER_ADDRESS"
        )
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: the Job API is served over HTTP at the dashboard's port; "
            "write http://HOST:8265"
        )
    # Importing Ray takes seconds; a mistyped address is reported without it.
    from tokenmill.cluster.jobs_api import Cluster  # noqa: PLC0415

    return Cluster(address)
