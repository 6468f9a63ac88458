"""`plan`: what a run will take, and what its prompts look like."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    LimitOption,
    SetOption,
    job_settings,
    write_file,
)
from tokenmill.commands.terminal import facts_table, one_line_errors, screen, visible
from tokenmill.estimate.estimate import Estimate, estimate
from tokenmill.estimate.row_sample import ShownPrompt
from tokenmill.estimate.statistics import Interval
from tokenmill.estimate.throughput_table import DEVICES
from tokenmill.formatting import duration, plural
from tokenmill.job.loader import load_job
from tokenmill.models import cache
from tokenmill.observe.screen import chatter_into

# Of a prompt on the screen; --json has all of it.
_MOST_CHARACTERS = 1200
_DAY_S = 86_400


def plan_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="Rows to count tokens of.")] = 500,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Which rows: another seed draws others.")
    ] = 0,
    previous: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="OUTPUT", help="A former run: lengths of answers, and the pace."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--on", metavar="DEVICE", help=f"Where it will run: {', '.join(DEVICES)}."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="P", help="Of a GPU-hour; instead of model.price_per_gpu_hour."
        ),
    ] = None,
    input_path: InputOption = None,
    date: DateOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures there, as JSON.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a run will take: tokens, time, GPU-hours, cost, rows that will not do.

    Tokens are counted exactly on a sample, and told of the whole with a 95 % interval.

    Example: tokenmill plan jobs/summarize.yaml --from out/try --price 2.50
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, limit=limit, date=date)
        if price is not None:
            settings.append(f"model.price_per_gpu_hour={price}")
        with chatter_into(cache.cache_folder() / "logs" / "plan.log"):
            found = estimate(load_job(job_file, settings), sample, seed, previous, device)
        text = json.dumps(asdict(found), indent=2)
        if save is not None:
            write_file("--save", save, f"{text}\n")
        if as_json:
            typer.echo(text)
        else:
            _print_plan(found)
            screen().print(visible(f"next: tokenmill run {job_file}"), markup=False, soft_wrap=True)


def _print_plan(found: Estimate) -> None:
    console = screen()
    console.print(facts_table(dict(_facts(found))))
    for note in found.notes:
        console.print(visible(note), markup=False)
    for shown in found.prompts:
        for task, prompt in shown.prompts.items():
            console.print(_panel(shown, task, prompt))


def _facts(found: Estimate) -> Iterator[tuple[str, str]]:
    rows = found.passing_rows
    yield "job", found.job
    yield "input", found.input
    shards, units = plural(found.shards, "shard"), plural(found.units, "unit")
    held = f"in {shards} ({_in_bytes(found.bytes)}) and {units}"
    yield "rows", f"{found.rows:,} {held}"
    sampled = plural(found.sampled_rows, "row")
    yield "counted", f"{sampled} of {plural(found.sampled_units, 'unit')}, seed {found.seed}"
    if rows.estimate != found.rows:
        yield "pass input.where", _interval(rows, "row")
    yield (
        "input tokens",
        f"{_interval(found.input_tokens)}; {_mean(found.input_tokens.estimate, rows)}",
    )
    yield "output tokens", _output_tokens(found)
    yield "rejects", _interval(found.rejects, "row")
    for name, count in found.rejects_by_class.items():
        yield f"  {name}", _interval(count, "row")
    if found.truncated.estimate:
        yield "truncated", _interval(found.truncated, "row")
    if found.divided.estimate:
        yield "divided", _interval(found.divided, "row")
    yield from _means(found)


def _means(found: Estimate) -> Iterator[tuple[str, str]]:
    """Time and money, and where their figures are from."""
    if found.previous is not None and found.previous.differs:
        yield "former run", f"of another job; these differ: {', '.join(found.previous.differs)}"
    if found.speed is None or found.seconds_per_replica is None:
        tried = "" if found.previous is None else f", and {found.previous.output} ran too shortly"
        ways = f"give --from, or --on {'|'.join(DEVICES)}"
        yield "engine time", f"no figure for this model here{tried}; {ways}"
        return
    at_most = "" if found.output_tokens.is_measured else "at most "
    yield (
        "engine time",
        f"{at_most}{_time(found.seconds_per_replica)} on {plural(found.replicas, 'replica')}",
    )
    speed = found.speed
    pace = f"{speed.input_tokens_per_s:,.0f} tokens/s in, {speed.output_tokens_per_s:,.0f} out"
    yield "speed", f"{pace}: {speed.source}"
    if found.gpu_hours is not None:
        yield "GPU-hours", f"{at_most}{found.gpu_hours:,.2f}"
    if found.cost is not None:
        price = f"{found.price_per_gpu_hour:,.2f} a GPU-hour"
        yield "cost", f"{at_most}{found.cost:,.2f}, at {price}"
    elif found.price_per_gpu_hour is not None:
        yield "cost", "the figures are a CPU's; give --on h100|h200, or --from"


def _output_tokens(found: Estimate) -> str:
    tokens = found.output_tokens
    most = f"at most {tokens.most:,}"
    if not tokens.is_measured or found.previous is None:
        return f"{most}; {_mean(tokens.most, found.passing_rows)}"
    mean = f"{found.previous.output_tokens_per_row:,.1f} a row in {found.previous.output}"
    return f"{tokens.estimate:,}, as {mean}; {most}"


def _interval(number: Interval, of: str = "") -> str:
    said = plural(number.estimate, of) if of else f"{number.estimate:,}"
    if number.low == number.high:
        return said
    return f"{said} ({number.low:,} to {number.high:,})"


def _mean(number: int, rows: Interval) -> str:
    return f"{number / max(1, rows.estimate):,.1f} a row"


def _time(seconds: float) -> str:
    return f"{seconds / _DAY_S:,.1f} days" if seconds >= _DAY_S else duration(seconds)


def _in_bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":  # noqa: PLR2004 - SI
            break
        amount /= 1000
    return f"{size:,} B" if unit == "B" else f"{amount:,.1f} {unit}"


def _panel(shown: ShownPrompt, task: str, prompt: str) -> Panel:
    if len(prompt) > _MOST_CHARACTERS:
        prompt = f"{prompt[:_MOST_CHARACTERS]} …"
    lines = "\n".join(map(visible, prompt.split("\n")))
    where = visible(f"{task}: {shown.source_file} row {shown.source_row:,}")
    return Panel(Text(lines), title=Text(where), title_align="left")
