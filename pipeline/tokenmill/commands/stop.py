"""`stop`: end a job that was submitted to a cluster."""

from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, JobsApiOption, cluster_at
from tokenmill.commands.terminal import one_line_errors


def stop_command(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the job: see tokenmill jobs.")],
    address: JobsApiOption = None,
    debug: DebugOption = False,
) -> None:
    """Stop a submitted job and wait until it has stopped. Committed units are kept.

    Example: tokenmill stop tokenmill-summaries-1f0c2a9b3d --address http://head:8265

    Exit codes: 0 the job has stopped or had already ended, 1 the cluster did not answer, 2 no such
    job, or a mistake in the address or the token.
    """
    with one_line_errors(debug):
        typer.echo(f"{job_id}: {cluster_at(address).stop(job_id).state}")
