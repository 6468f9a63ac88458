"""The table of what real files and environments broke names tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = (TESTS / "reality" / "README.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", TABLE)))


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_a_test_in_the_table_exists(file: str, function: str) -> None:
    """Renaming or removing it means changing the table."""
    assert f"def {function}(" in (TESTS / file).read_text()


def test_each_repaired_fault_has_a_test() -> None:
    """A row without a test is marked as open."""
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and "---" not in line]
    faults = [row for row in rows if not row.startswith("| what was met")]
    assert len(faults) > 60
    assert [row for row in faults if "::test_" not in row and "*open:" not in row] == []
