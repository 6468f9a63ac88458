"""The house: one door per outside world, imports one way, tests that say what is true."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from command import ROOT

PACKAGE = ROOT / "pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
#: What stands at the top of the project, besides files that begin with a dot.
ROOMS = {"bench", "docs", "infra", "jobs", "pipeline", "requirements", "tests"}
PAPERS = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "mkdocs.yml",
    "pyproject.toml",
}
#: The modules of the command line.
COMMANDS = {f"commands.{path.stem}" for path in (ROOT / "pipeline" / "commands").glob("*.py")}
#: Who may import what from outside: the modules of ours that are its doors.
DOORS = {
    # The runs' own, and Ray's client of a cluster's Job API, which starts none.
    "ray": {"pool", "local_ray", "cluster"},
    "grpc": {"pool"},
    "vllm": {"engine"},
    "s3fs": {"store"},
    "fsspec": {"store"},
    "botocore": {"store", "s3_ends"},
    # Of the Job API a log that is followed.
    "aiohttp": {"s3_ends", "cluster"},
    "typer": {"cli", *COMMANDS},
    "rich": {"screen", *COMMANDS},
    "plotly": {"page"},
    "opentelemetry": {"traces"},
    "PIL": {"media"},
    "deltalake": {"tables"},
    "pyiceberg": {"tables"},
    "soundfile": {"media"},
    "soxr": {"media"},
    "torch": {"tokenizer", "models"},
    "transformers": {"tokenizer", "models"},
    "huggingface_hub": {"tokenizer", "models"},
}
#: A pure function of strings, and no way out.
EXCEPTIONS = {("shards", "fsspec.utils.glob_translate")}
#: Seconds of import each, which `tokenmill --help` must not cost.
SLOW = [
    "ray",
    "vllm",
    "torch",
    "transformers",
    "s3fs",
    "PIL",
    "plotly",
    "soundfile",
    "deltalake",
    "pyiceberg",
    "pandas",
    "opentelemetry",
]


def dotted(path: Path) -> str:
    """A module's name below the package: `job`, `tasks.row`; a package's own ends in `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {dotted(path): path for path in MODULES}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported_names(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: imports name their whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports; `__init__` for a name of a package itself."""
    found = set()
    for name in imported_names(path):
        root, *parts = name.split(".")
        if root == PACKAGE.name:
            # The longest beginning that is a module; behind it stands a name in it.
            beginnings = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            module = next((known for known in beginnings if known in NAMES), None)
            package = ".".join([*parts[:-1], "__init__"])
            found.add(module or (package if package in NAMES else "__init__"))
    return found


def test_nothing_is_left_lying_at_the_door() -> None:
    """What git keeps at the top level is known here: no output of a run, no scratch file."""
    if not (ROOT / ".git").exists():
        pytest.skip("a copy without git")
    listed = subprocess.run(
        ["/usr/bin/env", "git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    kept = {name.split("/")[0] for name in listed.stdout.decode().split("\0") if name}
    assert {name for name in kept if not name.startswith(".")} == ROOMS | PAPERS


@pytest.mark.parametrize("module", NAMES)
def test_the_outside_is_entered_by_its_doors_only(module: str) -> None:
    """Each library that stands for an outside world is imported by its door and nowhere else."""
    for name in imported_names(NAMES[module]):
        doors = DOORS.get(name.split(".")[0], {module})
        assert module in doors or (module, name) in EXCEPTIONS, (
            f"{module} imports {name}; only {', '.join(sorted(doors))} may"
        )


def test_every_door_is_in_use() -> None:
    """A door or an exception that nobody uses any more is taken from the list."""
    used = {(module, name) for module, path in NAMES.items() for name in imported_names(path)}
    assert used >= EXCEPTIONS
    libraries = {name.split(".")[0] for _, name in used}
    # fsspec is entered through s3fs today.
    assert libraries >= DOORS.keys() - {"fsspec"}


def test_imports_point_one_way() -> None:
    """The modules import each other without a circle, those for type checkers included."""
    graph = {module: imported_modules(path) for module, path in NAMES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == NAMES.keys()


def all_imported(module: str) -> set[str]:
    """The modules of ours that a module imports, and those that they import, and so on."""
    found: set[str] = set()
    new = {module}
    while new:
        new = {name for known in new for name in imported_modules(NAMES[known])} - found
        found |= new
    return found


@pytest.mark.parametrize("module", [module for module in NAMES if module.startswith("tasks.")])
def test_tasks_know_nothing_of_jobs_and_engines(module: str) -> None:
    """A job is made of tasks and an engine answers them: not even indirectly do they look up."""
    above = {"job", "engine", "fake", "scheduler", "replica", "pool", "run", "cli"}
    assert all_imported(module) & above == set()


@pytest.mark.parametrize("name", ["errors", "schema"])
def test_the_ground_floor_imports_nothing_of_ours(name: str) -> None:
    """What every module may use depends on none."""
    assert imported_modules(NAMES[name]) == set()


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_what_it_is(path: Path) -> None:
    """Every module and every test file has a docstring."""
    assert ast.get_docstring(parse(path))


def test_the_command_line_starts_without_what_is_slow_to_import() -> None:
    """`tokenmill --help` and a mistake in a job file cost no import of Ray, vLLM or torch."""
    script = f"import sys, pipeline.cli; print(*sorted(sys.modules.keys() & set({SLOW})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == []


def each_test(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_test_says_what_is_true(path: Path) -> None:
    """Every test has a docstring: read one after another, they are the specification."""
    silent = [test.name for test in each_test(path) if not ast.get_docstring(test)]
    assert silent == []
