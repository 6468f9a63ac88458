"""`submit`, `jobs` and `stop`: runs on a Ray cluster that is there, by its Job API."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmill.cluster.submission import JobState, SubmittedJob, require_cluster_urls
from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    LimitOption,
    OutputOption,
    SetOption,
    job_settings,
)
from tokenmill.commands.terminal import errors_console, one_line_errors, stoppable, visible
from tokenmill.errors import ExitCode, RunFailed, UserError
from tokenmill.job.loader import load_job

if TYPE_CHECKING:
    from tokenmill.cluster.jobs_api import Cluster


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
        require_cluster_urls(job)
        cluster = cluster_at(address)
        found, is_new = cluster.submit(job, with_code=not no_ship)
        _remark(f"{found.id}: {'submitted' if is_new else f'is there, {found.state}'}")
        if not follow:
            typer.echo(found.id)
            return
        with _left_alone(found, cluster.address), stoppable():
            ended = cluster.follow(found.id, _show)
        raise typer.Exit(_exit_code(ended))


def cluster_at(address: str | None) -> "Cluster":
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
    from tokenmill.cluster.jobs_api import Cluster  # noqa: PLC0415

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
