"""`run` and `retry`: what starts engines and writes an output."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.commands.options import (
    AddressOption,
    ClassOption,
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    LimitOption,
    LogOption,
    OutputArgument,
    OutputOption,
    SetOption,
    job_settings,
    selected_classes,
)
from pipeline.commands.terminal import LogFormat, interface_of, one_line_errors, stoppable
from pipeline.errors import ExitCode
from pipeline.job_file import load_job
from pipeline.monitor import counted, duration
from pipeline.rejects import Selection
from pipeline.retry import retry_rejects
from pipeline.run import Summary, run_job


def run_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            envvar="TOKENMILL_METRICS_PORT",
            metavar="PORT",
            min=1,
            max=65535,
            help="Where on 127.0.0.1 Prometheus finds the metrics of a local run.",
        ),
    ] = None,
    log_format: LogOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Run a job, or resume it: only what its output lacks.

    Example: tokenmill run jobs/summarize.yaml --limit 20 --output out/try

    Exit codes: 0 finished, 1 failed (run it again to resume), 2 a mistake in the job, input or
    output, 3 finished with more rejects than the job allows, 4 stopped by Ctrl-C or SIGTERM (run it
    again to resume).
    """
    interface = interface_of(log_format)
    with one_line_errors(debug, interface.fail):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        with stoppable():
            summary = run_job(load_job(job_file, settings), address, interface, metrics_port)
        if summary is not None:
            _print(summary, log_format)
            raise typer.Exit(summary.exit_code)


def retry_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    classes: ClassOption = None,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Also answers cut at max_tokens.")
    ] = False,
    overrides: SetOption = None,
    address: AddressOption = None,
    log_format: LogOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Answer rejected rows again, in place; a row that had an answer keeps it until a new one.

    Example: tokenmill retry out/summaries --truncated --set sampling.max_tokens=200
    """
    interface = interface_of(log_format)
    with one_line_errors(debug, interface.fail), stoppable():
        selection = Selection(selected_classes(classes), truncated)
        summary = retry_rejects(output, selection, overrides or [], address, interface)
        if summary is not None:
            _print(summary, log_format)
            raise typer.Exit(summary.exit_code)


def _print(summary: Summary, log_format: LogFormat) -> None:
    if log_format is LogFormat.JSON:
        typer.echo(json.dumps(asdict(summary)))
    else:
        print_summary(summary)


def print_summary(summary: Summary) -> None:
    """What a run did, a fact a line."""
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
    done = f"{counted(summary.units, 'unit')}, {counted(summary.rows, 'row')}"
    yield "this run", f"{done} in {duration(summary.seconds)}"
    seconds = summary.engine_seconds
    for name, tokens in (
        ("input tokens", summary.input_tokens),
        ("output tokens", summary.generated_tokens),
    ):
        # A run that is over in a moment has no rate worth the name.
        yield name, f"{tokens:,} ({tokens / seconds:,.0f}/s)" if seconds >= 1 else f"{tokens:,}"
    if summary.reused:
        yield "reused", f"{summary.reused:,} answers, of requests that were asked before"
    yield "output", summary.output
    yield "log", summary.log
    if summary.exit_code == ExitCode.OVER_REJECT_BUDGET and totals is not None:
        excess = f"{totals.rejected:,} rejects ({totals.reject_rate:.1%}) are more than allowed"
        yield "over budget", f"{excess}; raise max_reject_rate or mend the rows (see error)"
    yield "next", f"tokenmill {'rejects' if summary.rejected else 'report'} {summary.output}"
