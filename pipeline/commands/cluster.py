"""`submit`, `jobs` and `stop`: runs on a Ray cluster that is there, by its Job API."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from pipeline.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    LimitOption,
    OutputOption,
    SetOption,
    job_settings,
)
from pipeline.commands.terminal import (
    errors_console,
    one_line_errors,
    plain_table,
    stoppable,
    visible,
)
from pipeline.errors import ExitCode, RunFailed, UserError
from pipeline.job_file import load_job
from pipeline.submission import JobState, SubmittedJob, require_places_of_a_cluster

if TYPE_CHECKING:
    from pipeline.cluster import Cluster

# An id is copied from the table: it must not be broken.
_WIDTH = 1000

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Of the cluster's Job API: http://HOST:8265.",
    ),
]


def submit_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    address: ClusterOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the run's log, and end with its exit code.")
    ] = False,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Run the tokenmill that is installed there.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Run a job on a Ray cluster, which is given the job and tokenmill's code; print its id.

    A job of the same name and output that has not ended is not submitted again, but found.

    Example: tokenmill submit job.yaml --address http://head:8265 --follow

    Exit codes: 0 submitted, 1 no answer or the start failed, 2 a mistake in the job, the address or
    the token; with --follow those of the run, and 4 after Ctrl-C, which leaves the run alone.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        job = load_job(job_file, settings)
        require_places_of_a_cluster(job)
        cluster = _cluster(address)
        found, is_new = cluster.submit(job, with_code=not no_ship)
        _remark(f"{found.id}: {'submitted' if is_new else f'is there, {found.state}'}")
        if not follow:
            typer.echo(found.id)
            return
        with _left_alone(found, cluster.address), stoppable():
            ended = cluster.follow(found.id, _show)
        raise typer.Exit(_exit_code(ended))


def jobs_command(
    address: ClusterOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the jobs that were submitted to a cluster, the last one first.

    Example: tokenmill jobs --address http://head:8265

    Exit codes: 0 whatever their states, 1 no answer, 2 a mistake in the address or the token.
    """
    with one_line_errors(debug):
        jobs = _cluster(address).jobs()[::-1]
        if as_json:
            typer.echo(json.dumps([asdict(job) for job in jobs], indent=2))
        else:
            _print_jobs(jobs)


def stop_command(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokenmill jobs` names it.")],
    address: ClusterOption = None,
    debug: DebugOption = False,
) -> None:
    """Stop a submitted job, and wait until it has stopped; what it committed stays.

    Example: tokenmill stop tokenmill-summaries-1f0c2a9b3d --address http://head:8265

    Exit codes: 0 it has ended, 1 no answer, 2 no such job, or a mistake in the
    address or the token.
    """
    with one_line_errors(debug):
        typer.echo(f"{job_id}: {_cluster(address).stop(job_id).state}")


def _cluster(address: str | None) -> "Cluster":
    """The cluster at an address. Raises as `Cluster` does."""
    if address is None:
        raise UserError(
            "--address is missing: the cluster's Job API, http://HOST:8265, or "
            "RAY_API_SERVER_ADDRESS"
        )
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: the Job API speaks HTTP, at the dashboard's port: "
            "http://HOST:8265"
        )
    # Ray is seconds of import, which a mistake must not cost.
    from pipeline.cluster import Cluster  # noqa: PLC0415

    return Cluster(address)


def _remark(line: str) -> None:
    errors_console().print(visible(line), markup=False)


def _show(text: str) -> None:
    """A part of a log, which may end within a line."""
    lines = text.replace("\t", " ").split("\n")
    typer.echo("\n".join(map(visible, lines)), nl=False)


@contextmanager
def _left_alone(job: SubmittedJob, address: str) -> Iterator[None]:
    """Ctrl-C ends the following, and tells how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        _remark(
            f"{job.id} goes on; the same command comes back to it, and this ends it: "
            f"tokenmill stop {job.id} --address {address}"
        )
        raise typer.Exit(ExitCode.STOPPED) from None


def _exit_code(job: SubmittedJob) -> int:
    """The run's own, where it ended by itself. Raises `RunFailed` where it never began."""
    if job.state is JobState.STOPPED:
        return ExitCode.STOPPED
    if job.exit_code is None:
        raise RunFailed(f"{job.id} {job.state}: {job.message}")
    # Below 0: the signal that killed it.
    return job.exit_code if job.exit_code >= 0 else ExitCode.FAILED


def _print_jobs(jobs: list[SubmittedJob]) -> None:
    shown = plain_table("id", "job", "state", "since", "output")
    for job in jobs:
        since = datetime.fromtimestamp(job.ended_at or job.submitted_at, UTC)
        cells = (job.id, job.job, job.state, f"{since:%Y-%m-%d %H:%M} UTC", job.output)
        shown.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console(highlight=False, width=_WIDTH)
    console.print(shown if jobs else "no jobs of tokenmill")
