"""The command line: `tokenmill run`, `verify`, `retry` and the others, put together."""

import typer

from pipeline import __version__
from pipeline.commands.ahead import preview_command, validate_command
from pipeline.commands.cluster import jobs_command, stop_command, submit_command
from pipeline.commands.exchange import export_command, schema_command
from pipeline.commands.init import init_command
from pipeline.commands.look import compare_command, report_command
from pipeline.commands.models import models_app
from pipeline.commands.outputs import rejects_command, status_command, verify_command
from pipeline.commands.plan import plan_command
from pipeline.commands.run import retry_command, run_command
from pipeline.commands.terminal import say_error
from pipeline.errors import ExitCode

app = typer.Typer(
    help="Run LLMs over whole corpora: Parquet in, Parquet out, every row exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command("init")(init_command)
app.command("run")(run_command)
app.command("validate")(validate_command)
app.command("plan")(plan_command)
app.command("preview")(preview_command)
app.command("status")(status_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.command("rejects")(rejects_command)
app.command("retry")(retry_command)
app.command("submit")(submit_command)
app.command("jobs")(jobs_command)
app.command("stop")(stop_command)
app.command("schema")(schema_command)
app.add_typer(models_app, name="models")


@app.command()
def version() -> None:
    """Print tokenmill's version."""
    typer.echo(__version__)


def main() -> None:
    """The console script."""
    if not __debug__:
        say_error("python -O or PYTHONOPTIMIZE drops checks of Ray and vLLM; run without it")
        raise SystemExit(ExitCode.USER_ERROR)
    app()
