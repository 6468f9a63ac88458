"""`rejects`: rows without an answer, and why."""

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
from tokenmill.storage.open import open_store


def rejects_command(
    output: OutputArgument,
    classes: ClassOption = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples of each class.")] = 2,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All of them, to .parquet or .jsonl.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show the rows that got no answer, by class.

    Example: tokenmill rejects out/summaries --export rejects.jsonl
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        tables = [table for _, table in rejected_rows(opened, Selection(selected_classes(classes)))]
        if export is not None:
            export_rows(tables, export)
        _print_rejects(tables, examples)


def _print_rejects(tables: list[pa.Table], examples: int) -> None:
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        columns = table.select(["error", "source_file", "source_row"])
        for row in columns.to_pylist():
            by_class[row["error"]["class"]].append(row)
    shown = plain_table("class", "rows", "where and why", numbers=("rows",))
    for name, rows in sorted(by_class.items(), key=lambda item: -len(item[1])):
        shown.add_row(name, f"{len(rows):,}", "")
        for row in rows[:examples]:
            shown.add_row("", "", Text(visible(describe_reject(row))))
    console = Console(highlight=False)
    console.print(shown if by_class else "no rejects")
