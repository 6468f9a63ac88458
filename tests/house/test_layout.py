"""The layout: small folders, small files, one name for one thing, one file a command."""

import ast
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from helpers.command import ROOT
from helpers.house import (
    MODULES,
    NAMES,
    PACKAGE,
    dotted,
    functions,
    parse,
    public_definitions,
)

_MOST_MODULES = 16
_MOST_LINES = 400
_MOST_LINES_OF_A_FUNCTION = 60
_MOST_PUBLIC_NAMES = 10
#: What is at the top of the project, apart from files that begin with a dot.
FOLDERS = {"bench", "docs", "infra", "jobs", "pipeline", "requirements", "tests"}
FILES = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "mkdocs.yml",
    "pyproject.toml",
}
#: Files with more public names than others, and why.
MANY_NAMES = {
    "commands.options": "the options that several commands share",
    "commands.terminal": "how all commands write to the terminal",
    "observe.metrics": "a constant for each metric",
    "row_columns": "a constant for each column that every output has",
    "tasks.task": "the protocols and type aliases of all tasks",
}
#: Modules of `commands` that are not a command; `models` is a group of three.
NO_COMMANDS = {"__init__", "options", "terminal", "models"}


def test_nothing_unexpected_is_at_the_top_level() -> None:
    """What git keeps at the top level is known here: no output of a run, no scratch file."""
    if not (ROOT / ".git").exists():
        pytest.skip("a copy without git")
    listed = subprocess.run(
        ["/usr/bin/env", "git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    kept = {name.split("/")[0] for name in listed.stdout.decode().split("\0") if name}
    assert {name for name in kept if not name.startswith(".")} == FOLDERS | FILES


def test_a_folder_holds_few_modules() -> None:
    """At most sixteen, so that a file list says what a folder does; commands are one a file."""
    sizes = Counter(path.parent for path in MODULES if path.stem != "__init__")
    large = {str(folder): size for folder, size in sizes.items() if size > _MOST_MODULES}
    assert large.keys() <= {str(PACKAGE / "commands")}


@pytest.mark.parametrize("module", NAMES)
def test_a_file_is_short(module: str) -> None:
    """A file fits into a reader's head: its length, its functions, its public names."""
    path = NAMES[module]
    assert len(path.read_text().splitlines()) <= _MOST_LINES
    long = [
        function.name
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno >= _MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []
    if module not in MANY_NAMES:
        assert len(public_definitions(path)) <= _MOST_PUBLIC_NAMES, public_definitions(path)


def test_no_exception_is_listed_in_vain() -> None:
    """A file that has become small is taken from the list."""
    large = {name for name in NAMES if len(public_definitions(NAMES[name])) > _MOST_PUBLIC_NAMES}
    assert large == MANY_NAMES.keys()


def test_a_public_name_is_defined_once() -> None:
    """Who searches for a name finds one thing."""
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for name in public_definitions(path):
            modules[name].append(dotted(path))
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


def test_every_command_has_its_file() -> None:
    """`commands/X.py` defines `X_command`."""
    for path in sorted(PACKAGE.glob("commands/*.py")):
        if path.stem not in NO_COMMANDS:
            assert f"{path.stem}_command" in public_definitions(path), path.stem


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.stem
)
def test_a_file_opens_with_what_it_is(path: Path) -> None:
    """Every module and every test file has a docstring."""
    assert ast.get_docstring(parse(path))
