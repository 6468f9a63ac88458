"""`submit`: run a job on an existing Ray cluster, through its Job API."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tokenmill.cluster.submission import JobState, SubmittedJob, require_cluster_urls
from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JobsApiOption,
    LimitOption,
    OutputOption,
    SetOption,
    cluster_at,
    job_settings,
)
from tokenmill.commands.terminal import one_line_errors, print_remark, stoppable, visible
from tokenmill.errors import ExitCode, RunFailed
from tokenmill.job.loader import load_job


def submit_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    address: JobsApiOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the run's log and exit with its exit code.")
    ] = False,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    no_ship: Annotated[
        bool,
        typer.Option(
            "--no-ship", help="Use the cluster's own tokenmill instead of shipping this one."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Submit a job to a Ray cluster, together with tokenmill's code, and print its id.

    If a job with this name and output is still running, attaches to it instead of submitting again.

    Example: tokenmill submit job.yaml --address http://head:8265 --follow

    Exit codes: 0 submitted, 1 the cluster did not answer or the job did not start, 2 a mistake in
    the job, the address or the token. With --follow, the run's exit code, or 4 after Ctrl-C, which
    leaves the run running.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        job = load_job(job_file, settings)
        require_cluster_urls(job)
        cluster = cluster_at(address)
        submitted, is_new = cluster.submit(job, with_code=not no_ship)
        state = "submitted" if is_new else f"already submitted, {submitted.state}"
        print_remark(f"{submitted.id}: {state}")
        if not follow:
            typer.echo(submitted.id)
            return
        with _detach_on_interrupt(submitted, cluster.address), stoppable():
            ended = cluster.follow(submitted.id, _print_log)
        raise typer.Exit(_exit_code(ended))


def _print_log(text: str) -> None:
    """Print a part of a log, which may end within a line."""
    lines = text.replace("\t", " ").split("\n")
    typer.echo("\n".join(map(visible, lines)), nl=False)


@contextmanager
def _detach_on_interrupt(job: SubmittedJob, address: str) -> Iterator[None]:
    """On Ctrl-C stop following the job, and say how to attach again or stop it."""
    try:
        yield
    except KeyboardInterrupt:
        print_remark(
            f"{job.id} keeps running. Run the same command to attach again, or stop it: "
            f"tokenmill stop {job.id} --address {address}"
        )
        raise typer.Exit(ExitCode.STOPPED) from None


def _exit_code(job: SubmittedJob) -> int:
    """The run's exit code. Raises `RunFailed` if the run never started."""
    if job.state is JobState.STOPPED:
        return ExitCode.STOPPED
    if job.exit_code is None:
        raise RunFailed(f"{job.id} {job.state}: {job.message}")
    # A negative code is the signal that killed the run.
    return job.exit_code if job.exit_code >= 0 else ExitCode.FAILED
