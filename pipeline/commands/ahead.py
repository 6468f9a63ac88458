"""`validate` and `preview`: what is known, and seen, before a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from pipeline import models
from pipeline.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    LimitOption,
    OutputOption,
    SetOption,
    job_settings,
)
from pipeline.commands.terminal import facts_table, one_line_errors, screen, stoppable, visible
from pipeline.job_file import load_job
from pipeline.monitor import counted
from pipeline.preview import PreviewedRow, preview
from pipeline.screen import chatter_into
from pipeline.validate import Validation, validate

# Of a cell in a preview; and what a table may take of a wide terminal.
_MOST_CHARACTERS = 600


def validate_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a job against its input, its models and this machine; write and start nothing.

    Example: tokenmill validate jobs/summarize.yaml

    Exit codes: 0 it can be run, 2 a mistake in the job or its input.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        with chatter_into(models.cache_folder() / "logs" / "validate.log"):
            found = validate(load_job(job_file, settings))
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        else:
            _print_validation(job_file, found)


def preview_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows.")] = 5,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Which rows: another seed draws others.")
    ] = 0,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Instead of input.where.")
    ] = None,
    input_path: InputOption = None,
    date: DateOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Answer a few rows and show them; write nothing.

    Example: tokenmill preview jobs/summarize.yaml -n 3 --where "language = 'en'"
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, where=where, date=date)
        job = load_job(job_file, settings)
        log = models.cache_folder() / "logs" / "preview.log"
        with chatter_into(log) as console, stoppable():
            if not as_json:
                console.print(f"loading {job.model.source}; the log is {log}", markup=False)
            previewed = preview(job, rows, seed)
        if as_json:
            typer.echo(json.dumps([asdict(row) for row in previewed], indent=2, default=str))
        else:
            _print_preview(previewed)


def _print_validation(job_file: Path, found: Validation) -> None:
    shards, units = counted(found.shards, "shard"), counted(found.units, "unit")
    lines = {
        "rows": f"{found.rows:,} in {shards} and {units}",
        "skipped": ", ".join(found.skipped_shards),
        "columns": ", ".join(f"{name} {type_}" for name, type_ in found.columns.items()),
        "models": ", ".join(model.source for model in found.models),
        "to fetch": ", ".join(model.source for model in found.missing_models),
    }
    console = screen()
    console.print(visible(f"{job_file} can be run"), markup=False, soft_wrap=True)
    console.print(facts_table(lines))
    if found.missing_models:
        console.print("what follows from a model's tokenizer is known once it is fetched")
    missing = [f"models fetch {model.source}" for model in found.missing_models[:1]]
    (command,) = missing or [f"preview {job_file}"]
    console.print(visible(f"next: tokenmill {command}"), markup=False, soft_wrap=True)


def _print_preview(previewed: list[PreviewedRow]) -> None:
    """A block a row: what the job reads, and beside it what it would write."""
    console = screen()
    for row in previewed:
        where = f"{row.source_file} row {row.source_row:,}"
        shown = Table(box=HORIZONTALS, title=visible(where), title_justify="left", expand=True)
        # Folded: a text without spaces, as in Chinese, would be cut after its first line.
        shown.add_column("read", ratio=1, overflow="fold")
        shown.add_column("written", ratio=1, overflow="fold")
        shown.add_row(_cells_text(row.read), _cells_text(row.written))
        console.print(shown)


def _said(name: str, value: Any) -> str:
    """A cell in words; --json has all of it."""
    if name == "error" and isinstance(value, Mapping):
        return f"{value['class']}: {value['message']}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _cells_text(cells: Mapping[str, Any]) -> Text:
    """Each column's name and value, long ones cut; nulls are left out."""
    text = Text()
    for name, value in cells.items():
        if value is None:
            continue
        said = _said(name, value)
        if len(said) > _MOST_CHARACTERS:
            said = f"{said[:_MOST_CHARACTERS]} …"
        text.append(f"{name}  ", "bold").append(f"{visible(said)}\n")
    return text
