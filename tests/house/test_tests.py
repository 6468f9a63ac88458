"""The tests themselves: each says what is true."""

import ast
from pathlib import Path

import pytest
from helpers.command import ROOT
from helpers.house import functions

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_test_says_what_is_true(path: Path) -> None:
    """Every test has a docstring: read one after another, they are the specification."""
    tests = [function for function in functions(path) if function.name.startswith("test_")]
    assert [test.name for test in tests if not ast.get_docstring(test)] == []
