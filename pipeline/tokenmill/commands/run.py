"""`run`: run a job or resume it, and print the summary of a run."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import typer

from tokenmill.commands.options import (
    AddressOption,
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    LimitOption,
    LogOption,
    MetricsPortOption,
    OutputOption,
    SetOption,
    executor_of,
    job_settings,
)
from tokenmill.commands.terminal import (
    LogFormat,
    interface_of,
    one_line_errors,
    optional_output,
    stoppable,
)
from tokenmill.errors import ExitCode
from tokenmill.formatting import duration, plural
from tokenmill.job.loader import load_job
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary


def run_command(  # noqa: PLR0913, PLR0917 - options of a command
    ctx: typer.Context,
    job_file: JobArgument,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    metrics_port: MetricsPortOption = None,
    log_format: LogOption = LogFormat.TEXT,
    debug: DebugOption = False,
) -> None:
    """Run a job. Rerun the same command to resume: only units missing from the output are run.

    Example: tokenmill run jobs/summarize.yaml --limit 20 --output out/try

    Exit codes: 0 finished, 1 failed (rerun to resume), 2 a mistake in the job, the input or the
    output, 3 more rejects than the job allows, 4 stopped by a signal, such as Ctrl-C (rerun to
    resume).
    """
    interface = interface_of(log_format)
    with one_line_errors(debug, interface.fail):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        with stoppable():
            executor = executor_of(ctx, address, metrics_port)
            summary = run_job(load_job(job_file, settings), executor, interface)
        if summary is not None:
            print_outcome(summary, log_format)
            raise typer.Exit(summary.exit_code)


def print_outcome(summary: Summary, log_format: LogFormat) -> None:
    """Print the summary in the format of the log: text or JSON."""
    with optional_output():
        if log_format is LogFormat.JSON:
            typer.echo(json.dumps(asdict(summary)))
        else:
            _print_summary(summary)


def _print_summary(summary: Summary) -> None:
    """Print what a run did, one fact per line."""
    lines = list(_summary_lines(summary))
    width = max(len(name) for name, _ in lines)
    # Not a table: paths are copied from here and must not be folded at the terminal's width.
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
        first, *others = summary.skipped_shards
        yield "skipped shards", f"{len(summary.skipped_shards):,}: {first}{', …' if others else ''}"
    done = f"{plural(summary.units, 'unit')}, {plural(summary.rows, 'row')}"
    yield "this run", f"{done} in {duration(summary.seconds)}"
    seconds = summary.engine_seconds
    for name, tokens in (
        ("input tokens", summary.input_tokens),
        ("output tokens", summary.generated_tokens),
    ):
        # The rate of a shorter run means nothing.
        yield name, f"{tokens:,} ({tokens / seconds:,.0f}/s)" if seconds >= 1 else f"{tokens:,}"
    if summary.reused:
        yield "reused", f"{plural(summary.reused, 'answer')} of identical requests"
    for warning in summary.warnings:
        yield "warning", warning
    yield "output", summary.output
    yield "log", summary.log
    if summary.exit_code == ExitCode.OVER_REJECT_BUDGET and totals is not None:
        rejected = f"{totals.rejected:,} of {plural(totals.rows, 'row')}"
        excess = f"{rejected} rejected, more than max_reject_rate or max_rejects allows"
        yield "over the limit", f"{excess}; fix the rows (see error) or raise the limit"
    yield "next", f"tokenmill {'rejects' if summary.rejected else 'report'} {summary.output}"
