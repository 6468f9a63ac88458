"""A small corpus, the job over it, and what an undisturbed run makes of it."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenmill.storage.base import Store

#: A text with this word kills the fake engine.
POISON = "hemlock"
ROWS_PER_UNIT = 6

JOB = """
name: chaos
input: {path: unset, keep: [doc_id]}
model:
  source: fake
  engine:
    {max_num_seqs: 4, output_tokens: 6, refuse_rate: 0.03, error_rate: 0.03, crash_on: hemlock}
prompt: {user: "{{ text }}"}
sampling: {temperature: 0, max_tokens: 24}
output: {path: unset}
units: {rows: 6}
max_reject_rate: 0.5
"""
#: What is answered again, and how, once a run is finished.
RETRY = ("--class", "engine_error", "--class", "engine_crash")
MENDED = "model.engine={max_num_seqs: 4, output_tokens: 6}"


def write_corpus(folder: Path, shards: int = 3, rows: int = 60, poison: bool = True) -> None:
    """Shards of rows with texts of their own, some without; in the last one a row is poison."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        texts: list[str | None] = [f"text {row} of shard {shard}, " * 3 for row in range(rows)]
        texts[rows // 2] = None
        texts[rows // 3] = ""
        if poison and shard == shards - 1:
            texts[rows // 4] = f"a cup of {POISON}"
        ids = [f"{shard}-{row}" for row in range(rows)]
        table = pa.table({"doc_id": ids, "text": texts})
        # Or a bit that is flipped on its way would be a row's own.
        pq.write_table(table, folder / f"shard-{shard}.parquet", write_page_checksum=True)


def write_job(path: Path, engine: str = "") -> Path:
    """The job file, with more settings of the fake engine."""
    path.write_text(JOB.replace("crash_on: hemlock", f"crash_on: hemlock{engine}"))
    return path


Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Losses:
    """How an output differs from an undisturbed one: rows, and objects that cannot be read."""

    lost: int = 0
    doubled: int = 0
    torn: int = 0
    different: int = 0

    @property
    def none(self) -> bool:
        return self == Losses()


def read_rows(store: Store) -> tuple[list[dict[str, Any]], int]:
    """All rows of an output's objects, and how many objects cannot be read."""
    rows: list[dict[str, Any]] = []
    torn = 0
    for item in store.list("data"):
        try:
            rows += pq.read_table(io.BytesIO(store.read(item.key))).to_pylist()
        except (pa.ArrowException, OSError):
            torn += 1
    return rows, torn


def _place(row: Mapping[str, Any]) -> Place:
    return row["source_file"], row["source_row"]


def by_place(rows: Iterable[dict[str, Any]]) -> dict[Place, dict[str, Any]]:
    return {_place(row): row for row in rows}


def losses(store: Store, undisturbed: Mapping[Place, dict[str, Any]]) -> Losses:
    """Hold an output's rows against those of an undisturbed run."""
    rows, torn = read_rows(store)
    counts = Counter(_place(row) for row in rows)
    return Losses(
        lost=len(undisturbed.keys() - counts.keys()),
        doubled=sum(count - 1 for count in counts.values()) + len(counts.keys() - undisturbed),
        torn=torn,
        different=sum(row != undisturbed.get(_place(row)) for row in rows),
    )


def differing(store: Store, undisturbed: Mapping[Place, dict[str, Any]]) -> Iterator[str]:
    """The rows that are different, for a person."""
    for row in read_rows(store)[0]:
        other = undisturbed.get(_place(row))
        if row != other:
            yield f"{_place(row)}: {row} instead of {other}"
