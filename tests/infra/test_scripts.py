"""The shell scripts, read by bash and by shellcheck."""

import subprocess
from pathlib import Path

import pytest
from helpers.command import ROOT, findings

SHEBANG = b"#!/usr/bin/env bash\n"
SCRIPTS = [
    path
    for folder in (".ci", "bench", "docs", "infra", "jobs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and path.read_bytes().startswith(SHEBANG)
]
each = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_scripts_are_found() -> None:
    """Set-up, the batch script, the measurement and the continuous integration among them."""
    assert {path.name for path in SCRIPTS} >= {"run", "gpu.sh", "run.sbatch", "setup.sh"}


@each
def test_bash_reads_it(path: Path) -> None:
    """To its end, and it stops at the first error, an unset variable and a broken pipe."""
    subprocess.run(["/usr/bin/env", "bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()


@each
def test_shellcheck_finds_nothing(path: Path) -> None:
    """Not even a matter of style."""
    assert findings("shellcheck", "--severity=style", path) == ""
