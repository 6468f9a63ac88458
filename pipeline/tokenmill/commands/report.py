"""`report` and `compare`: a page to look at, and a gate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, JsonOption, OutputArgument, write_file
from tokenmill.commands.terminal import one_line_errors
from tokenmill.errors import UserError
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import run_folder
from tokenmill.report.html import report_page
from tokenmill.report.report import make_report, read_plan_file
from tokenmill.storage.open import open_store

ToOption = Annotated[
    Path | None, typer.Option("--to", metavar="FILE.html", help="Write the page there.")
]


def report_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="What `plan` told, to set beside what came."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, metavar="P", help="Of a GPU-hour, to tell the cost.")
    ] = None,
    to: ToOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a page of what came out: throughput, lengths, rejects, labels, scores, rows.

    One HTML file without a network, by default in the last run's folder; its place is printed. With
    --json the figures are printed instead, and the page is written only where --to says.

    Example: tokenmill report out/summaries --plan plan.json --to report.html

    Exit codes: 0 written, 2 no output.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        planned = None if plan is None else read_plan_file(_read(plan), f"--plan {plan}")
        made = make_report(opened, planned, price)
        if as_json:
            typer.echo(json.dumps(made.facts(), indent=2, default=str))
        if to is not None:
            write_file("--to", to, report_page(made))
        elif not as_json:
            if not made.runs:
                raise UserError(f"{output}: no run has left anything there; name a file with --to")
            key = f"{run_folder(made.runs[-1].run)}/report.html"
            opened.store.replace(key, report_page(made).encode())
            typer.echo(f"{opened.store.url}/{key}")
        if to is not None and not as_json:
            typer.echo(to)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--plan {path}: {getattr(error, 'strerror', None) or error}") from error
