"""`compare`: two outputs, row by row."""

import json
from typing import Annotated

import typer
from rich.text import Text

from tokenmill.commands.options import DebugOption, JsonOption, PageOption, write_file
from tokenmill.commands.terminal import (
    facts_table,
    one_line_errors,
    plain_table,
    print_line,
    table_console,
    visible,
)
from tokenmill.errors import ExitCode
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.report.column_diff import ColumnComparison
from tokenmill.report.compare import Comparison, DriftLimits, compare
from tokenmill.report.html import comparison_page
from tokenmill.storage.open import open_store


def compare_command(  # noqa: PLR0913, PLR0917 - options of a command
    first: Annotated[str, typer.Argument(metavar="OUT_A", help="The baseline output.")],
    second: Annotated[str, typer.Argument(metavar="OUT_B", help="The output to compare with it.")],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="COLUMN,…", help="Count changes in these columns only."),
    ] = None,
    max_changed: Annotated[
        float,
        typer.Option(
            "--max-changed",
            min=0,
            max=1,
            metavar="SHARE",
            help="Largest share of rows that may change.",
        ),
    ] = 0.02,
    max_drift: Annotated[
        float | None,
        typer.Option(
            "--max-drift",
            min=0,
            metavar="D",
            help="Largest allowed change of a numeric column's mean.",
        ),
    ] = None,
    to: PageOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare two outputs row by row. Exits 1 if too much changed, so it can gate a model change.

    A row counts as changed if a column differs, or if only one output rejects the row or has it at
    all. Without --on, all columns that both outputs have are counted, except for fractional
    numbers, finish reasons and numbers of attempts.

    Example: tokenmill compare out/monday out/tuesday --on label --max-changed 0.01 --to diff.html

    Exit codes: 0 within the limits, 1 over a limit, 2 no output, outputs of different inputs, or
    nothing that both outputs have to compare.
    """
    with one_line_errors(debug):
        limits = DriftLimits(max_changed, max_drift)
        names = None if on is None else [name.strip() for name in on.split(",")]
        comparison = compare(open_output(open_store(first)), open_output(open_store(second)), names)
        limits.check(comparison)
        if to is not None:
            write_file("--to", to, comparison_page(comparison, limits))
        if as_json:
            facts = {**comparison.facts(), **limits.verdict(comparison)}
            typer.echo(json.dumps(facts, indent=2))
        else:
            _print_comparison(comparison, limits)
        if not limits.allows(comparison):
            raise typer.Exit(ExitCode.FAILED)


def _print_comparison(comparison: Comparison, limits: DriftLimits) -> None:
    console = table_console()
    gained, lost = comparison.rejects_gained, comparison.rejects_lost
    facts = {
        "rows": f"{comparison.rows:,} in both, {comparison.answered:,} answered in both",
        "only in A": f"{comparison.only_a:,}" if comparison.only_a else "",
        "only in B": f"{comparison.only_b:,}" if comparison.only_b else "",
        "rejected only in A": ", ".join(f"{count:,} {name}" for name, count in lost.items()),
        "rejected only in B": ", ".join(f"{count:,} {name}" for name, count in gained.items()),
        "changed": plural(comparison.changed, "row"),
    }
    console.print(facts_table(facts))
    table = plain_table("column", "equal", "changed", "details", numbers=("equal", "changed"))
    for column in comparison.columns:
        table.add_row(
            Text(visible(column.name)),
            f"{column.agreement:.2%}",
            f"{column.changed:,}",
            _details(column),
        )
    console.print(table)
    state = "within the limits" if limits.allows(comparison) else "OVER THE LIMIT"
    changed = f"{comparison.changed_share:.2%} of rows changed (limit {limits.max_changed:.2%})"
    drift = ""
    if limits.max_drift is not None:
        drift = f", drift {comparison.largest_drift:.4g} (limit {limits.max_drift:.4g})"
    print_line(f"{state}: {changed}{drift}")


def _details(column: ColumnComparison) -> str:
    """How a column changed, in a few words."""
    drift = column.drift
    if drift is not None and drift.mean_difference is not None:
        correlation = "" if drift.correlation is None else f", r {drift.correlation:.3f}"
        return f"mean {drift.mean_a:.4g} → {drift.mean_b:.4g}{correlation}"
    if column.likeness is not None:
        return f"similarity {column.likeness:.3f} (chrF)"
    if column.gained or column.lost:
        gained, lost = sum(column.gained.values()), sum(column.lost.values())
        return f"{gained:,} gained, {lost:,} lost"
    return "" if column.is_gated else "not counted"
