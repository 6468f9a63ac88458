"""Write the demo corpus (documents.yaml in this folder) as Parquet shards.

    python jobs/demo/build.py OUTPUT_DIR

The same documents always produce the same bytes, and a shard that is already up to date is not
rewritten, because a run can only be resumed while its input files are unchanged.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

DOCUMENTS = Path(__file__).with_name("documents.yaml")
COLUMNS = ("doc_id", "title", "text", "section", "language", "text_fr", "knowledge", "outline")
SCHEMA = pa.schema([pa.field(name, pa.string()) for name in COLUMNS])
SHARDS = 3
# Small enough that every shard has several row groups.
ROW_GROUP_ROWS = 8

Row = dict[str, str | None]


def load_documents(path: Path = DOCUMENTS) -> list[Row]:
    """Return the documents in file order, with every column present."""
    return [_row(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _row(entry: dict[str, Any]) -> Row:
    unknown = entry.keys() - {*COLUMNS, "repeat"}
    if unknown:
        raise ValueError(f"{entry.get('doc_id')}: unknown fields {sorted(unknown)}")
    row: Row = {name: entry.get(name) for name in COLUMNS}
    if "repeat" in entry:
        row["text"] = " ".join([entry["text"]] * entry["repeat"])
    return row


def build(output: Path) -> list[Path]:
    """Write the shards to the folder `output` and return their paths in order."""
    rows = load_documents()
    size = -(-len(rows) // SHARDS)
    output.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(SHARDS):
        path = output / f"part-{number:03d}.parquet"
        _replace_if_changed(path, _parquet(rows[number * size : (number + 1) * size]))
        shards.append(path)
    return shards


def _parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def _replace_if_changed(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    # The leading dot hides the half-written file from readers that list the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Write the shards to the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Write the demo corpus as Parquet shards.")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    output: Path = parser.parse_args().output
    shards = build(output)
    documents = sum(pq.read_metadata(shard).num_rows for shard in shards)
    print(f"{documents} documents in {len(shards)} shards in {output}")


if __name__ == "__main__":
    main()
