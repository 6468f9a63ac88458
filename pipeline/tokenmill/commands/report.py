"""`report`: an HTML page about an output."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import (
    DebugOption,
    JsonOption,
    OutputArgument,
    PageOption,
    PriceOption,
    write_file,
)
from tokenmill.commands.terminal import one_line_errors
from tokenmill.errors import UserError
from tokenmill.output.output import open_output
from tokenmill.output.runs import run_folder
from tokenmill.report.html import report_page
from tokenmill.report.report import make_report, parse_estimate
from tokenmill.storage.open import open_store


def report_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE.json",
            help="Estimate saved by plan --save, to compare with the result.",
        ),
    ] = None,
    price: PriceOption = None,
    to: PageOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write an HTML report: throughput, lengths, rejects, labels, scores and example rows.

    The page is one file that works offline. Without --to it is written to the folder of the last
    run, and its path is printed. With --json the numbers are printed, and a page is written only if
    --to is given.

    Example: tokenmill report out/summaries --plan plan.json --to report.html

    Exit codes: 0 written, 2 no output, or a mistake in an option.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        planned = None if plan is None else parse_estimate(_read(plan), f"--plan {plan}")
        report = make_report(opened, planned, price)
        if as_json:
            typer.echo(json.dumps(report.facts(), indent=2, default=str))
        if to is not None:
            write_file("--to", to, report_page(report))
        elif not as_json:
            if not report.runs:
                raise UserError(
                    f"{output} has no folder of a run to write the page to; name a file with --to"
                )
            key = f"{run_folder(report.runs[-1].run)}/report.html"
            opened.store.replace(key, report_page(report).encode())
            typer.echo(f"{opened.store.url}/{key}")
        if to is not None and not as_json:
            typer.echo(to)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--plan {path}: {getattr(error, 'strerror', None) or error}") from error
