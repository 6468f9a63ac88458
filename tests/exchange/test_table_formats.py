"""Tables of other formats: every value that the format can hold, and a line for those it cannot."""

import datetime as dt
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import deltalake
import pyarrow as pa
import pytest
from helpers.stores import refusal
from pyiceberg.table import StaticTable
from tokenmill.errors import UserError
from tokenmill.exchange import table_formats
from tokenmill.exchange.table_formats import write_dataset, write_delta, write_iceberg

Write = Callable[[Iterator[pa.RecordBatch], pa.Schema, str], None]
WRITERS: list[Write] = [write_dataset, write_delta, write_iceberg]
#: One column of each type that neither table format has, or has by another name.
COLUMNS: dict[str, tuple[list[Any], pa.DataType]] = {
    "half": ([1.5, None], pa.float16()),
    "vector": ([[1.5, -2.0], None], pa.list_(pa.float16(), 2)),
    "byte": ([255, None], pa.uint8()),
    "large": ([2**32 - 1, None], pa.uint32()),
    "largest": ([2**63 - 1, None], pa.uint64()),
    "day": ([dt.date(2024, 5, 6), None], pa.date64()),
    "at": ([dt.datetime(2024, 5, 6, 7, tzinfo=dt.UTC), None], pa.timestamp("ns", "UTC")),
    "label": (["a", None], pa.dictionary(pa.int32(), pa.string())),
    "view": (["b", None], pa.string_view()),
    "scores": ([[("a", 0.25), ("b", None)], None], pa.map_(pa.string(), pa.float16())),
    "nested": (
        [{"values": [{"x": 7}]}, None],
        pa.struct({"values": pa.list_(pa.struct({"x": pa.uint8()}))}),
    ),
}
TABLE = pa.table({name: pa.array(*column) for name, column in COLUMNS.items()})


def of(**columns: pa.Array) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
    table = pa.table(columns)
    return iter(table.to_batches()), table.schema


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A table has no order of its own; the row of nulls is the last."""
    return sorted(rows, key=lambda row: row["half"] is None)


def delta_rows(target: str, **options: str) -> list[dict[str, Any]]:
    table = deltalake.DeltaTable(target, storage_options=options)
    return list(table.to_pyarrow_table().to_pylist())


def iceberg_rows(target: str, **options: str) -> list[dict[str, Any]]:
    return list(StaticTable.from_metadata(target, options).scan().to_arrow().to_pylist())


@pytest.mark.parametrize(
    ("write", "read"), [(write_delta, delta_rows), (write_iceberg, iceberg_rows)]
)
def test_wider_types_hold_the_same_values(
    tmp_path: Path, write: Write, read: Callable[[str], list[dict[str, Any]]]
) -> None:
    """What a format has no type for comes back, value by value, from one that it has."""
    target = str(tmp_path / "table")
    write(iter(TABLE.to_batches(max_chunksize=1)), TABLE.schema, target)
    assert in_order(read(target)) == TABLE.to_pylist()


def test_a_dataset_has_files_of_some_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows are divided among files, which together hold each row once, in order."""
    monkeypatch.setattr(table_formats, "_FILE_BYTES", 1000)
    rows = pa.table({"x": range(2000)})
    target = tmp_path / "dataset"
    write_dataset(iter(rows.to_batches(max_chunksize=100)), rows.schema, str(target))
    assert len(list((target / "data").iterdir())) > 1
    datasets.disable_progress_bars()
    cache = str(tmp_path / "cache")
    found = datasets.load_dataset(str(target), split="train", cache_dir=cache)
    assert found["x"][:] == list(range(2000))


@pytest.mark.parametrize("write", WRITERS)
def test_a_table_may_be_named_by_a_file_url(tmp_path: Path, write: Write) -> None:
    """`file://` names the same folder as its path, and another scheme is refused by name."""
    write(iter(()), pa.schema([pa.field("text", pa.string())]), f"file://{tmp_path}/table")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    table = partial(write, *of(x=pa.array([1])), "gs://bucket/table")
    assert "gs://" in refusal(UserError, table)


@pytest.mark.parametrize("write", WRITERS)
def test_no_rows_are_a_table_too(tmp_path: Path, write: Write) -> None:
    """An output whose rows are all filtered out or rejected has a table with its columns."""
    write(iter(()), pa.schema([pa.field("text", pa.string())]), str(tmp_path / "table"))
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize(
    ("write", "column"),
    [
        (write_delta, pa.array([1], pa.time64("us"))),
        (write_delta, pa.array([1], pa.duration("s"))),
        (write_iceberg, pa.array([1], pa.duration("s"))),
        (write_iceberg, pa.nulls(1)),
        (write_delta, pa.array([Decimal(1)], pa.decimal256(60, 0))),
    ],
)
def test_a_type_that_the_format_lacks_is_named(
    tmp_path: Path, write: Write, column: pa.Array
) -> None:
    """The column and its type are told before anything is written."""
    said = refusal(UserError, lambda: write(*of(odd=column), str(tmp_path / "table")))
    assert said.startswith("the column odd: ")
    assert str(column.type) in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_delta, write_iceberg])
def test_nanoseconds_are_not_lost_in_silence(tmp_path: Path, write: Write) -> None:
    """A time that microseconds cannot tell ends the export, and leaves nothing."""
    at = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    said = refusal(UserError, lambda: write(*of(at=at), str(tmp_path / "table")))
    assert said.startswith("the column at: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_is_there_stays(tmp_path: Path, write: Write) -> None:
    """A taken name is refused, and a folder in no folder too."""
    target = tmp_path / "table"
    target.mkdir()
    said = refusal(UserError, lambda: write(*of(x=pa.array([1])), str(target)))
    assert "already exists" in said
    assert list(tmp_path.rglob("*")) == [target]
    refusal(UserError, lambda: write(*of(x=pa.array([1])), str(tmp_path / "no" / "table")))
    assert list(tmp_path.rglob("*")) == [target]


@pytest.mark.parametrize(
    ("write", "module"), [(write_delta, "deltalake"), (write_iceberg, "pyiceberg.catalog.memory")]
)
def test_a_library_that_is_missing_is_told_with_its_extra(
    tmp_path: Path, write: Write, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra the line says how to get it."""
    monkeypatch.setitem(sys.modules, module, None)
    said = refusal(UserError, lambda: write(*of(x=pa.array([1])), str(tmp_path / "table")))
    assert "tokenmill[export]" in said
    assert list(tmp_path.iterdir()) == []


def failing() -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"x": pa.array([1])})
    raise UserError("the second batch cannot be read")


@pytest.mark.integration
def test_tables_stand_in_s3(s3_bucket: str) -> None:
    """Both table formats are written and read there; a prefix that holds something is refused."""
    root = f"s3://{s3_bucket}"
    for name, write in (("delta", write_delta), ("iceberg", write_iceberg)):
        write(iter(TABLE.to_batches()), TABLE.schema, f"{root}/{name}")
        again = partial(write, iter(()), TABLE.schema, f"{root}/{name}")
        assert refusal(UserError, again).startswith(f"{root}/{name} already exists")
        broken = partial(
            write, failing(), pa.schema([pa.field("x", pa.int64())]), f"{root}/no/{name}"
        )
        assert refusal(UserError, broken).startswith("the second batch cannot be read")
    assert in_order(delta_rows(f"{root}/delta", AWS_ALLOW_HTTP="true")) == TABLE.to_pylist()
    place = {"s3.endpoint": os.environ["AWS_ENDPOINT_URL"], "s3.region": "us-east-1"}
    assert in_order(iceberg_rows(f"{root}/iceberg", **place)) == TABLE.to_pylist()
    dataset = partial(write_dataset, *of(x=pa.array([1])), f"{root}/dataset")
    assert "export to a folder" in refusal(UserError, dataset)
