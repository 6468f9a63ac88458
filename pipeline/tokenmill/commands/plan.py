"""`plan`: what a run will take, and what its prompts look like."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    LimitOption,
    PriceOption,
    SeedOption,
    SetOption,
    job_settings,
    write_file,
)
from tokenmill.commands.terminal import (
    facts_table,
    one_line_errors,
    print_line,
    print_prompts,
    table_console,
)
from tokenmill.estimate.estimate import Estimate, estimate
from tokenmill.estimate.statistics import Interval
from tokenmill.estimate.throughput_table import CPU, DEVICES
from tokenmill.formatting import duration, plural
from tokenmill.job.loader import load_job
from tokenmill.models.cache import log_file
from tokenmill.observe.screen import redirected_output

_DAY_S = 86_400


def plan_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    sample: Annotated[
        int,
        typer.Option("--sample", min=1, metavar="N", help="Number of rows to count tokens on."),
    ] = 500,
    seed: SeedOption = 0,
    previous: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="OUTPUT",
            help="Earlier output to take answer lengths and throughput from.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="DEVICE", help=f"Hardware the run will use: {', '.join(DEVICES)}."
        ),
    ] = None,
    price: PriceOption = None,
    input_path: InputOption = None,
    date: DateOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Also write the estimate, as JSON."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Estimate a run: tokens, time, GPU-hours, cost and rows that would be rejected.

    Tokens are counted exactly on a sample of rows and extrapolated with 95 % intervals.

    Example: tokenmill plan jobs/summarize.yaml --from out/try --price 2.50

    Exit codes: 0 estimated, 2 a mistake in the job or its input, or a model is not fetched.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, limit=limit, date=date)
        if price is not None:
            settings.append(f"model.price_per_gpu_hour={price}")
        with redirected_output(log_file("plan.log")):
            result = estimate(load_job(job_file, settings), sample, seed, previous, device)
        text = json.dumps(asdict(result), indent=2)
        if save is not None:
            write_file("--save", save, f"{text}\n")
        if as_json:
            typer.echo(text)
        else:
            _print_estimate(result)
            print_line(f"next: tokenmill run {job_file}")


def _print_estimate(result: Estimate) -> None:
    """The prompts, and after them the figures, which are still in view at the end."""
    console = table_console()
    for shown in result.prompts:
        print_prompts(console, shown.prompts, f"{shown.source_file} row {shown.source_row:,}")
    console.print(facts_table(dict(_facts(result))))
    for note in result.notes:
        print_line(note)


def _facts(result: Estimate) -> Iterator[tuple[str, str]]:
    rows = result.passing_rows
    yield "job", result.job
    yield "input", result.input
    shards, units = plural(result.shards, "shard"), plural(result.units, "unit")
    yield "rows", f"{result.rows:,} in {shards} ({_size(result.bytes)}) and {units}"
    sampled = f"{plural(result.sampled_rows, 'row')} of {plural(result.sampled_units, 'unit')}"
    yield "sample", f"{sampled}, seed {result.seed}"
    if rows.estimate != result.rows:
        yield "after input.where", _interval(rows, "row")
    yield (
        "input tokens",
        f"{_interval(result.input_tokens)}, {_per_row(result.input_tokens.estimate, rows)}",
    )
    yield "output tokens", _output_tokens(result)
    if result.not_counted:
        previous = result.previous
        source = "" if previous is None else f" (taken from {previous.output} instead)"
        yield "not counted", f"{'; '.join(result.not_counted)}{source}"
    yield "rejects", _interval(result.rejects, "row")
    for name, count in result.rejects_by_class.items():
        yield f"  {name}", _interval(count, "row")
    if result.truncated.estimate:
        yield "truncated", _interval(result.truncated, "row")
    if result.divided.estimate:
        yield "split into chunks", _interval(result.divided, "row")
    yield from _time_and_cost(result)


def _time_and_cost(result: Estimate) -> Iterator[tuple[str, str]]:
    previous, speed = result.previous, result.speed
    if previous is not None and previous.differs:
        keys = ", ".join(previous.differs)
        yield "note", f"{previous.output} was made by a job with different settings: {keys}"
    if speed is None or result.seconds_per_replica is None:
        reason = "no measured throughput for this model on this machine"
        if previous is not None:
            reason += f" ({previous.output} ran too briefly to measure it)"
        yield "engine time", f"unknown: {reason}; pass --from OUTPUT or --on {'|'.join(DEVICES)}"
        return
    # A limit of the tokens, not of the time: the speed may be lower.
    longest = "" if result.output_tokens.is_measured else ", if answers reach max_tokens"
    time = _time(result.seconds_per_replica)
    yield "engine time", f"about {time} on {plural(result.replicas, 'replica')}{longest}"
    tokens = f"{speed.input_tokens_per_s:,.0f} in, {speed.output_tokens_per_s:,.0f} out"
    yield "tokens/s", f"{tokens} ({speed.source})"
    if result.gpu_hours is not None:
        yield "GPU-hours", f"{result.gpu_hours:,.2f}{longest}"
    if result.cost is not None:
        yield "cost", f"{result.cost:,.2f} ({result.price_per_gpu_hour:,.2f} a GPU-hour){longest}"
    elif result.price_per_gpu_hour is not None:
        gpus = "|".join(device for device in DEVICES if device != CPU)
        yield "cost", f"unknown: this throughput is a CPU's; pass --on {gpus} or --from OUTPUT"


def _output_tokens(result: Estimate) -> str:
    tokens = result.output_tokens
    most = f"at most {tokens.most:,}{' in first requests' if result.not_counted else ''}"
    if not tokens.is_measured or result.previous is None:
        return f"{most}, {_per_row(tokens.most, result.passing_rows)}"
    mean = f"{result.previous.output_tokens_per_row:,.1f} per row in {result.previous.output}"
    return f"{tokens.estimate:,} ({mean}), {most}"


def _interval(number: Interval, noun: str = "") -> str:
    text = plural(number.estimate, noun) if noun else f"{number.estimate:,}"
    if number.low == number.high:
        return text
    return f"{text} ({number.low:,} to {number.high:,})"


def _per_row(number: int, rows: Interval) -> str:
    return f"{number / max(1, rows.estimate):,.1f} per row"


def _time(seconds: float) -> str:
    return f"{seconds / _DAY_S:,.1f} days" if seconds >= _DAY_S else duration(seconds)


def _size(num_bytes: int) -> str:
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":  # noqa: PLR2004 - SI
            break
        amount /= 1000
    return f"{num_bytes:,} B" if unit == "B" else f"{amount:,.1f} {unit}"
