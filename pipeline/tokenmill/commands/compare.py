"""`compare`: two outputs, row by row."""

import json
from typing import Annotated

import typer
from rich.text import Text

from tokenmill.commands.options import DebugOption, JsonOption, write_file
from tokenmill.commands.report import ToOption
from tokenmill.commands.terminal import facts_table, one_line_errors, plain_table, screen, visible
from tokenmill.errors import ExitCode
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.report.column_diff import ColumnComparison
from tokenmill.report.compare import Comparison, DriftLimits, compare
from tokenmill.report.html import comparison_page
from tokenmill.storage.open import open_store


def compare_command(  # noqa: PLR0913, PLR0917 - options of a command
    first: Annotated[str, typer.Argument(metavar="OUT_A", help="The output to hold against.")],
    second: Annotated[str, typer.Argument(metavar="OUT_B", help="The one that may have changed.")],
    on: Annotated[
        str | None,
        typer.Option(metavar="COLUMN,…", help="Only changes in these columns count."),
    ] = None,
    max_changed: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Of the rows, that may change.")
    ] = 0.02,
    max_drift: Annotated[
        float | None,
        typer.Option(min=0, metavar="D", help="That the mean of a numeric column may move."),
    ] = None,
    to: ToOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Hold two outputs over the same rows against each other: a gate before a model is changed.

    A row has changed if a column differs in it, or if only one output rejects it, or has it at all.
    Without --on all columns count that both have but for fractional numbers, reasons of an end and
    numbers of attempts.

    Example: tokenmill compare out/monday out/tuesday --on label --max-changed 0.01 --to diff.html

    Exit codes: 0 within the limits, 1 beyond, 2 no output, or of different inputs.
    """
    with one_line_errors(debug):
        limits = DriftLimits(max_changed, max_drift)
        names = None if on is None else [name.strip() for name in on.split(",")]
        found = compare(open_output(open_store(first)), open_output(open_store(second)), names)
        if to is not None:
            write_file("--to", to, comparison_page(found, limits))
        if as_json:
            typer.echo(json.dumps({**found.facts(), **limits.verdict(found)}, indent=2))
        else:
            _print_comparison(found, limits)
        if not limits.is_kept_by(found):
            raise typer.Exit(ExitCode.FAILED)


def _print_comparison(found: Comparison, limits: DriftLimits) -> None:
    console = screen()
    gained, lost = found.rejects_gained, found.rejects_lost
    facts = {
        "rows": f"{found.rows:,} in both, {found.answered:,} answered in both",
        "only in A": f"{found.only_a:,}" if found.only_a else "",
        "only in B": f"{found.only_b:,}" if found.only_b else "",
        "rejects gained": ", ".join(f"{count:,} {name}" for name, count in gained.items()),
        "rejects lost": ", ".join(f"{count:,} {name}" for name, count in lost.items()),
        "changed": plural(found.changed, "row"),
    }
    console.print(facts_table(facts))
    shown = plain_table("column", "agree", "changed", "how", numbers=("agree", "changed"))
    for column in found.columns:
        shown.add_row(
            Text(visible(column.name)),
            f"{column.agreement:.2%}",
            f"{column.changed:,}",
            _how(column),
        )
    console.print(shown)
    state = "within the limits" if limits.is_kept_by(found) else "BEYOND the limits"
    drift = "" if limits.max_drift is None else f", drift {found.largest_drift:.4g}"
    allowed = "" if limits.max_drift is None else f", drift {limits.max_drift:.4g}"
    console.print(
        f"{state}: {found.changed_share:.2%} of the rows changed{drift}; "
        f"allowed {limits.max_changed:.2%}{allowed}",
        markup=False,
    )


def _how(column: ColumnComparison) -> str:
    """What there is to say of a column's changes, in a few words."""
    drift = column.drift
    if drift is not None and drift.mean_difference is not None:
        correlation = "" if drift.correlation is None else f", r {drift.correlation:.3f}"
        return f"mean {drift.mean_a:.4g} → {drift.mean_b:.4g}{correlation}"
    if column.likeness is not None:
        return f"likeness {column.likeness:.3f} (chrF)"
    if column.gained or column.lost:
        gained, lost = sum(column.gained.values()), sum(column.lost.values())
        return f"{gained:,} gained, {lost:,} lost"
    return "" if column.is_gated else "does not count"
