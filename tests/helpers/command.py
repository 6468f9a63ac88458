"""The command line as a user runs it: in its own process, with its output captured."""

import os
import select
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]

#: The command line with units run in the same process, without Ray.
WITHOUT_RAY = (
    sys.executable,
    "-c",
    (
        "from tokenmill.cli import main; from tokenmill.stages.in_process import InProcessExecutor;"
        "main(InProcessExecutor())"
    ),
)

_TIMEOUT_S = 600


def tokenmill(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tokenmill` until it ends."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def start_tokenmill(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `tokenmill` in the background; the caller ends it."""
    return subprocess.Popen(
        # A shell starts background processes with Ctrl-C ignored, and this process inherits that.
        ["/usr/bin/env", "--default-signal=INT", *command(*arguments)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_commit(process: subprocess.Popen[str], output: Path) -> None:
    """Return once a unit is committed; fail if the run ends before that."""
    while not list(output.glob("data/*/*.parquet")):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
            raise AssertionError(f"no unit was committed: {process.communicate()[0]}")


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Handles (pidfd) of the processes that the run has started.

    Ray's agents are left out: they search for their node for a minute before they end.
    """
    handles = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if not "".join(child.cmdline()).strip().endswith("Agent"):
                handles.append(os.pidfd_open(child.pid))
    return handles


def all_end(handles: list[int]) -> bool:
    """Whether each of the processes ends within a minute."""
    ended = [bool(select.select([handle], [], [], 60)[0]) for handle in handles]
    for handle in handles:
        os.close(handle)
    return all(ended)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tokenmill", *map(str, arguments)]


def output_rows(output: Path) -> list[dict[str, Any]]:
    """All rows of an output, by file and position."""
    rows = ds.dataset(output / "data", format="parquet").to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["source_file"], row["source_row"]))


def input_positions(corpus: Path) -> list[tuple[str, int]]:
    """The file and position of every input row; an output must hold each once."""
    return [
        (shard.name, row)
        for shard in sorted(corpus.glob("*.parquet"))
        for row in range(pq.read_metadata(shard).num_rows)
    ]


def positions(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["source_file"], row["source_row"]) for row in rows]


def program(name: str) -> str:
    """The path of a program that `make setup` installs for the tests."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert path, f"{name} is not installed: make setup"
    return path


def findings(linter: str, *arguments: str | Path) -> str:
    """The output of a linter."""
    command = [program(linter), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr
