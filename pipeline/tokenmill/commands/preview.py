"""`preview`: real answers for a few rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    SetOption,
    job_settings,
)
from tokenmill.commands.terminal import one_line_errors, screen, stoppable, visible
from tokenmill.job.loader import load_job
from tokenmill.models import cache
from tokenmill.observe.screen import chatter_into
from tokenmill.run.preview import PreviewedRow, preview

# Of a cell in a preview; and what a table may take of a wide terminal.
_MOST_CHARACTERS = 600


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
        log = cache.cache_folder() / "logs" / "preview.log"
        with chatter_into(log) as console, stoppable():
            if not as_json:
                console.print(f"loading {job.model.source}; the log is {log}", markup=False)
            previewed = preview(job, rows, seed)
        if as_json:
            typer.echo(json.dumps([asdict(row) for row in previewed], indent=2, default=str))
        else:
            _print_preview(previewed)


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
