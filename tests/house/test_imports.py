"""Imports point one way, and each outside library is entered by its own modules only."""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.command import ROOT, program
from helpers.house import NAMES, imported_names

#: Which modules or folders of ours may import a library.
DOORS = {
    "ray": ("cluster",),
    "grpc": ("cluster.auth_check",),
    "vllm": ("engine.vllm", "engine.vllm_params", "engine.vllm_start"),
    "s3fs": ("storage.s3",),
    "fsspec": ("storage.s3", "input.listing"),
    "botocore": ("storage",),
    # Ray's Job API needs it to follow a log.
    "aiohttp": ("storage.s3_suffix_reads", "cluster.jobs_api"),
    "typer": ("cli", "commands"),
    "rich": ("observe.screen", "commands"),
    "plotly": ("report.html",),
    "opentelemetry": ("observe.traces",),
    "PIL": ("prompt.media.decode",),
    "deltalake": ("exchange.table_formats",),
    "pyiceberg": ("exchange.table_formats",),
    "soundfile": ("prompt.media.decode",),
    "soxr": ("prompt.media.decode",),
    "torch": ("models.bundled",),
    "transformers": ("prompt.tokenizer", "models"),
    "huggingface_hub": ("models",),
}
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
    "stdnum",
]


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports; `__init__` for a name of a package itself."""
    found = set()
    for name in imported_names(path):
        root, *parts = name.split(".")
        if root == "tokenmill":
            # The longest prefix that is a module; the rest is a name in it.
            beginnings = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            module = next((known for known in beginnings if known in NAMES), None)
            package = ".".join([*parts[:-1], "__init__"])
            found.add(module or (package if package in NAMES else "__init__"))
    return found


@pytest.mark.parametrize("module", NAMES)
def test_the_outside_is_entered_by_its_doors_only(module: str) -> None:
    """A library of an outside world is imported where DOORS says and nowhere else."""
    for name in imported_names(NAMES[module]):
        doors = DOORS.get(name.split(".")[0], (module,))
        assert any(module == door or module.startswith(f"{door}.") for door in doors), (
            f"{module} imports {name}; only {', '.join(doors)} may"
        )


def test_every_door_is_in_use() -> None:
    """A door that no module uses any more is taken from the list."""
    used = {
        (library, door)
        for module, path in NAMES.items()
        for library in {name.split(".")[0] for name in imported_names(path)} & DOORS.keys()
        for door in DOORS[library]
        if module == door or module.startswith(f"{door}.")
    }
    assert used == {(library, door) for library, doors in DOORS.items() for door in doors}


def test_a_folder_imports_only_folders_below_it() -> None:
    """The layers in pyproject.toml hold, imports for type checkers included."""
    # In its own process, since it disables the loggers of this one.
    done = subprocess.run(
        [program("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_imports_point_one_way() -> None:
    """The modules import each other without a circle, those for type checkers included."""
    graph = {module: imported_modules(path) for module, path in NAMES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == NAMES.keys()


def test_the_command_line_starts_without_what_is_slow_to_import() -> None:
    """`tokenmill --help` and a mistake in a job file cost no import of Ray, vLLM or torch."""
    script = f"import sys, tokenmill.cli; print(*sorted(sys.modules.keys() & set({SLOW})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == []
