"""`verify`: prove an output from its objects."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmill.commands.options import DebugOption, OutputArgument, write_file
from tokenmill.commands.terminal import one_line_errors, visible
from tokenmill.errors import ExitCode
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.output.verify import Certificate, Level, expected_of, verify
from tokenmill.storage.open import open_store

# More would scroll the count away.
_MOST_FINDINGS = 20


def verify_command(
    output: OutputArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row, and the input's rows beside them.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proof there, as JSON.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Prove from an output's objects that every input row is there once, in its place.

    Example: tokenmill verify out/summaries --deep

    Exit codes: 0 whole, 1 something is wrong, 2 no output.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        proof = verify(opened.store, expected_of(opened), Level.INPUT if deep else Level.FOOTERS)
        if certificate is not None:
            write_file("--certificate", certificate, proof.to_json())
        _print_proof(proof)
        if not proof.is_whole:
            raise typer.Exit(ExitCode.FAILED)


def _print_proof(proof: Certificate) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in proof.findings[:_MOST_FINDINGS]:
        line = f"{finding.damage}: {finding.key}: {finding.message}"
        console.print(visible(line), markup=False)
    if proof.findings[_MOST_FINDINGS:]:
        console.print(f"… and {len(proof.findings) - _MOST_FINDINGS:,} more")
    totals = proof.totals
    state = "whole" if proof.is_whole else f"NOT whole: {plural(len(proof.findings), 'finding')}"
    console.print(
        f"{proof.output}: {state}; {plural(totals.units, 'unit')}, {plural(totals.rows, 'row')}, "
        f"{totals.rejected:,} rejected, {totals.filtered:,} filtered out",
        markup=False,
    )
