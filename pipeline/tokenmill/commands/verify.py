"""`verify`: check an output from its objects alone."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import DebugOption, OutputArgument, write_file
from tokenmill.commands.terminal import one_line_errors, print_line
from tokenmill.errors import ExitCode
from tokenmill.formatting import plural
from tokenmill.output.output import open_output
from tokenmill.output.verify import Certificate, Level, expected_output, verify
from tokenmill.storage.open import open_store

# More would scroll the totals off the screen.
_MAX_FINDINGS = 20


def verify_command(
    output: OutputArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every row and compare it with the input.")
    ] = False,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Also write the result, as JSON."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Check that an output holds every input row exactly once and in order.

    Example: tokenmill verify out/summaries --deep

    Exit codes: 0 verified, 1 problems found, 2 no output.
    """
    with one_line_errors(debug):
        opened = open_output(open_store(output))
        level = Level.INPUT if deep else Level.FOOTERS
        proof = verify(opened.store, expected_output(opened), level)
        if certificate is not None:
            write_file("--certificate", certificate, proof.to_json())
        _print_proof(proof)
        if not proof.is_whole:
            raise typer.Exit(ExitCode.FAILED)


def _print_proof(proof: Certificate) -> None:
    for finding in proof.findings[:_MAX_FINDINGS]:
        print_line(f"{finding.damage}: {finding.key}: {finding.message}")
    if proof.findings[_MAX_FINDINGS:]:
        print_line(f"… and {len(proof.findings) - _MAX_FINDINGS:,} more")
    if proof.ignored:
        first, *others = proof.ignored
        files = plural(len(proof.ignored), "file")
        print_line(f"Ignored {files} of other programs: {first}{', …' if others else ''}")
    totals, problems = proof.totals, plural(len(proof.findings), "problem")
    print_line(
        f"{proof.output}: {'verified' if proof.is_whole else f'NOT verified, {problems}'}; "
        f"{plural(totals.units, 'unit')}, {plural(totals.rows, 'row')}, "
        f"{totals.rejected:,} rejected, {totals.filtered:,} filtered out"
    )
