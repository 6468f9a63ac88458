"""Tables in other formats hold every value, or the export ends with a one-line error."""

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
import pyarrow.parquet as pq
import pytest
from helpers.factories import strings_of_bytes
from helpers.stores import refusal
from pyiceberg.table import StaticTable
from tokenmill.errors import UserError
from tokenmill.exchange.table_formats import write_dataset, write_delta, write_iceberg

Write = Callable[[Iterator[pa.RecordBatch], pa.Schema, str], None]
WRITERS: list[Write] = [write_dataset, write_delta, write_iceberg]
#: A column of each type that the table formats lack, or call by another name.
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


def batches_of(**columns: pa.Array) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
    table = pa.table(columns)
    return iter(table.to_batches()), table.schema


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table, which has no order: the row of nulls is the last."""
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
    """A value of a type that the format lacks reads back from a wider type unchanged."""
    target = str(tmp_path / "table")
    write(iter(TABLE.to_batches(max_chunksize=1)), TABLE.schema, target)
    assert in_order(read(target)) == TABLE.to_pylist()


FAR = {
    "date": pa.array([2**31 - 1, -(2**31), None], pa.date32()),
    "at": pa.array([2**62, -(2**62), None], pa.timestamp("us")),
    "utc": pa.array([253402300800000, None, 0], pa.timestamp("ms", "UTC")),
    "zone": pa.array([0, 253402300800000, None], pa.timestamp("ms", "+05:30")),
    "nested": pa.array([{"day": 2**31 - 1}, None, None], pa.struct({"day": pa.date32()})),
    "text": strings_of_bytes([b"caf\xe9", b"ok", b""]),
    "uuid": pa.array([bytes(range(16)), None, bytes(16)], pa.uuid()),
    "json": pa.array(['{"a": 1}', None, "[]"], pa.json_()),
}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", FAR)
def test_no_single_value_makes_an_export_impossible(
    tmp_path: Path, write: Write, name: str
) -> None:
    """Dates that Python does not have, text that is not UTF-8, other time zones, UUIDs, JSON."""
    column = FAR[name]
    write(*batches_of(column=column), str(tmp_path / "table"))
    tables = [pq.read_table(path) for path in (tmp_path / "table").rglob("*.parquet")]
    (written,) = [table.column("column") for table in tables]
    if isinstance(column.type, pa.UuidType) and pa.types.is_string(written.type):
        assert written.to_pylist() == [cell and str(cell) for cell in column.to_pylist()]
    elif isinstance(column.type, pa.UuidType | pa.JsonType):
        assert written.to_pylist() == column.to_pylist()
    else:
        assert written.cast(column.type).combine_chunks().equals(column)


def test_a_dataset_is_divided_into_files(tmp_path: Path) -> None:
    """The files have about the given size, and together hold each row once, in order."""
    rows = pa.table({"x": range(2000)})
    target = tmp_path / "dataset"
    batches = iter(rows.to_batches(max_chunksize=100))
    write_dataset(batches, rows.schema, str(target), file_bytes=1000)
    assert len(list((target / "data").iterdir())) > 1
    datasets.disable_progress_bars()
    cache = str(tmp_path / "cache")
    dataset = datasets.load_dataset(str(target), split="train", cache_dir=cache)
    assert dataset["x"][:] == list(range(2000))


@pytest.mark.parametrize("write", WRITERS)
def test_a_table_can_be_named_by_a_file_url(tmp_path: Path, write: Write) -> None:
    """`file://` names the same folder as its path; the error names an unknown scheme."""
    write(iter(()), pa.schema([pa.field("text", pa.string())]), f"file://{tmp_path}/table")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    table = partial(write, *batches_of(x=pa.array([1])), "gs://bucket/table")
    assert "gs://" in refusal(UserError, table)


@pytest.mark.parametrize("write", WRITERS)
def test_a_table_can_be_empty(tmp_path: Path, write: Write) -> None:
    """If all rows are filtered out or rejected, the table has columns and no rows."""
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
    """The error names the column and its type before anything is written."""
    message = refusal(UserError, lambda: write(*batches_of(odd=column), str(tmp_path / "table")))
    assert message.startswith("column odd: ")
    assert str(column.type) in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_delta, write_iceberg])
def test_nanoseconds_are_not_lost_silently(tmp_path: Path, write: Write) -> None:
    """A time between two microseconds ends the export, which leaves nothing."""
    at = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    message = refusal(UserError, lambda: write(*batches_of(at=at), str(tmp_path / "table")))
    assert message.startswith("column at: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_an_existing_folder_is_not_overwritten(tmp_path: Path, write: Write) -> None:
    """An existing target is an error, and so is a target in a missing folder."""
    target = tmp_path / "table"
    target.mkdir()
    message = refusal(UserError, lambda: write(*batches_of(x=pa.array([1])), str(target)))
    assert message.startswith(str(target))
    assert list(tmp_path.rglob("*")) == [target]
    refusal(UserError, lambda: write(*batches_of(x=pa.array([1])), str(tmp_path / "no" / "table")))
    assert list(tmp_path.rglob("*")) == [target]


@pytest.mark.parametrize(
    ("write", "module"), [(write_delta, "deltalake"), (write_iceberg, "pyiceberg.catalog.memory")]
)
def test_the_error_for_a_missing_library_names_the_extra(
    tmp_path: Path, write: Write, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra the error says how to install it."""
    monkeypatch.setitem(sys.modules, module, None)
    target = str(tmp_path / "table")
    message = refusal(UserError, lambda: write(*batches_of(x=pa.array([1])), target))
    assert "tokenmill[export]" in message
    assert list(tmp_path.iterdir()) == []


def failing() -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"x": pa.array([1])})
    raise UserError("the second batch cannot be read")


@pytest.mark.integration
def test_tables_can_be_in_s3(s3_bucket: str) -> None:
    """Both table formats are written and read there; a prefix with objects is an error."""
    root = f"s3://{s3_bucket}"
    for name, write in (("delta", write_delta), ("iceberg", write_iceberg)):
        write(iter(TABLE.to_batches()), TABLE.schema, f"{root}/{name}")
        again = partial(write, iter(()), TABLE.schema, f"{root}/{name}")
        assert refusal(UserError, again).startswith(f"{root}/{name} ")
        broken = partial(
            write, failing(), pa.schema([pa.field("x", pa.int64())]), f"{root}/no/{name}"
        )
        assert refusal(UserError, broken).startswith("the second batch cannot be read")
    assert in_order(delta_rows(f"{root}/delta", AWS_ALLOW_HTTP="true")) == TABLE.to_pylist()
    options = {"s3.endpoint": os.environ["AWS_ENDPOINT_URL"], "s3.region": "us-east-1"}
    assert in_order(iceberg_rows(f"{root}/iceberg", **options)) == TABLE.to_pylist()
    dataset = partial(write_dataset, *batches_of(x=pa.array([1])), f"{root}/dataset")
    assert "export to a local folder" in refusal(UserError, dataset)
