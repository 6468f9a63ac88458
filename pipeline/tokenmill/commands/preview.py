"""`preview`: run a few rows and show their answers."""

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
    SeedOption,
    SetOption,
    job_settings,
)
from tokenmill.commands.terminal import (
    one_line_errors,
    print_prompts,
    stoppable,
    table_console,
    visible,
)
from tokenmill.job.loader import load_job
from tokenmill.models.cache import log_file
from tokenmill.observe.screen import redirected_output
from tokenmill.run.preview import PreviewedRow, preview

# Longer cells are cut on the screen; --json prints them whole.
_MAX_CHARACTERS = 600


def preview_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, metavar="N", help="Number of rows.")
    ] = 5,
    seed: SeedOption = 0,
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="Override input.where.")
    ] = None,
    input_path: InputOption = None,
    date: DateOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a few random rows and show their answers, and the prompts of one. Writes nothing.

    Example: tokenmill preview jobs/summarize.yaml -n 3 --where "language = 'en'"

    Exit codes: 0 shown, 1 failed, 2 a mistake in the job or its input, 4 stopped by Ctrl-C.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, where=where, date=date)
        job = load_job(job_file, settings)
        log = log_file("preview.log")
        with redirected_output(log) as console, stoppable():
            if not as_json:
                console.print(f"loading {job.model.source}; log: {log}", markup=False)
            previewed = preview(job, rows, seed)
        if as_json:
            typer.echo(json.dumps([asdict(row) for row in previewed], indent=2, default=str))
        else:
            _print_preview(previewed)


def _print_preview(previewed: list[PreviewedRow]) -> None:
    """One row's prompts, and a table per row: input columns left, output columns right."""
    console = table_console()
    prompted = next((row for row in previewed if row.prompts), None)
    if prompted is not None:
        title = f"{prompted.source_file} row {prompted.source_row:,}"
        print_prompts(console, prompted.prompts, title)
    for row in previewed:
        title = visible(f"{row.source_file} row {row.source_row:,}")
        table = Table(box=HORIZONTALS, title=title, title_justify="left", expand=True)
        # Folded: a text without spaces, such as Chinese, would be cut after its first line.
        table.add_column("input", ratio=1, overflow="fold")
        table.add_column("output", ratio=1, overflow="fold")
        table.add_row(_cells_text(row.read), _cells_text(row.written))
        console.print(table)


def _cell_text(name: str, value: Any) -> str:
    if name == "error" and isinstance(value, Mapping):
        text = f"{value['class']}: {value['message']}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"


def _cells_text(cells: Mapping[str, Any]) -> Text:
    """The name and value of each column that is not null."""
    text = Text()
    for name, value in cells.items():
        if value is not None:
            text.append(f"{name}  ", "bold").append(f"{visible(_cell_text(name, value))}\n")
    return text
