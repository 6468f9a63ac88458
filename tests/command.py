"""The command line as a user runs it: in a process of its own, its output captured."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]

_TIMEOUT_S = 600


def tokenmill(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tokenmill` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def start_tokenmill(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `tokenmill` in the background; the caller ends it."""
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def output_rows(output: Path) -> list[dict[str, Any]]:
    """All rows below an output's `data/`, by file and position."""
    rows = ds.dataset(output / "data", format="parquet").to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["source_file"], row["source_row"]))


def input_positions(corpus: Path) -> list[tuple[str, int]]:
    """Every input row's file and position: what an output must hold once each."""
    return [
        (shard.name, row)
        for shard in sorted(corpus.glob("*.parquet"))
        for row in range(pq.read_metadata(shard).num_rows)
    ]


def positions(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["source_file"], row["source_row"]) for row in rows]
