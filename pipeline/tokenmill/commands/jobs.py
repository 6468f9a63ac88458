"""`jobs`: the jobs that were submitted to a cluster."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.text import Text

from tokenmill.cluster.submission import SubmittedJob
from tokenmill.commands.options import DebugOption, JobsApiOption, JsonOption, cluster_at
from tokenmill.commands.terminal import one_line_errors, plain_table, visible

# Wide enough that no id is folded: ids are copied from the table.
_WIDTH = 1000


def jobs_command(
    address: JobsApiOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the jobs submitted to a cluster, newest first.

    Example: tokenmill jobs --address http://head:8265

    Exit codes: 0 listed, 1 the cluster did not answer, 2 a mistake in the address or the token.
    """
    with one_line_errors(debug):
        jobs = cluster_at(address).jobs()[::-1]
        if as_json:
            typer.echo(json.dumps([asdict(job) for job in jobs], indent=2))
        else:
            _print_jobs(jobs)


def _print_jobs(jobs: list[SubmittedJob]) -> None:
    table = plain_table("id", "job", "state", "since", "output")
    for job in jobs:
        since = datetime.fromtimestamp(job.ended_at or job.submitted_at, UTC)
        cells = (job.id, job.job, job.state, f"{since:%Y-%m-%d %H:%M} UTC", job.output)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    console = Console(highlight=False, width=_WIDTH)
    console.print(table if jobs else "no tokenmill jobs")
