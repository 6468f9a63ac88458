"""`rejects`: the rows without an answer, and the reasons."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.text import Text

from tokenmill.commands.options import ClassOption, DebugOption, OutputArgument, selected_classes
from tokenmill.commands.terminal import one_line_errors, plain_table, visible
from tokenmill.output.output import open_output
from tokenmill.output.rejects import Selection, describe_reject, export_rows, rejected_rows
from tokenmill.row_columns import ERROR, SOURCE_FILE, SOURCE_ROW
from tokenmill.storage.open import open_store


def rejects_command(
    output: OutputArgument,
    classes: ClassOption = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, metavar="N", help="Examples to show per class.")
    ] = 2,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Also write all of them to a .parquet or .jsonl file."
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show the rejected rows: how many of each class, with examples.

    Example: tokenmill rejects out/summaries --export rejects.jsonl

    Exit codes: 0 shown, 2 no output, or a mistake in an option.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        tables = [table for _, table in rejected_rows(opened, Selection(selected_classes(classes)))]
        if export is not None:
            export_rows(tables, export)
        _print_rejects(tables, examples)


def _print_rejects(tables: list[pa.Table], num_examples: int) -> None:
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        columns = table.select([ERROR, SOURCE_FILE, SOURCE_ROW])
        for row in columns.to_pylist():
            by_class[row[ERROR]["class"]].append(row)
    shown = plain_table("class", "rows", "examples", numbers=("rows",))
    for name, rows in sorted(by_class.items(), key=lambda item: -len(item[1])):
        shown.add_row(name, f"{len(rows):,}", "")
        for row in rows[:num_examples]:
            shown.add_row("", "", Text(visible(describe_reject(row))))
    console = Console(highlight=False)
    console.print(shown if by_class else "no rejects")
