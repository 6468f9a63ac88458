"""`jobs` and `stop`: what was submitted to a cluster."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tokenmill.cluster.submission import SubmittedJob
from tokenmill.commands.options import DebugOption, JsonOption
from tokenmill.commands.submit import ClusterOption, cluster_at
from tokenmill.commands.terminal import one_line_errors, plain_table, visible

# An id is copied from the table: it must not be broken.
_WIDTH = 1000


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
        jobs = cluster_at(address).jobs()[::-1]
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
        typer.echo(f"{job_id}: {cluster_at(address).stop(job_id).state}")


def _print_jobs(jobs: list[SubmittedJob]) -> None:
    shown = plain_table("id", "job", "state", "since", "output")
    for job in jobs:
        since = datetime.fromtimestamp(job.ended_at or job.submitted_at, UTC)
        cells = (job.id, job.job, job.state, f"{since:%Y-%m-%d %H:%M} UTC", job.output)
        shown.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console(highlight=False, width=_WIDTH)
    console.print(shown if jobs else "no jobs of tokenmill")
