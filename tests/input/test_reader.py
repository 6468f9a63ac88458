"""Reading a unit: exactly its rows, filtered, and little more is read from the shard."""

import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.errors import RunFailed, UserError
from tokenmill.input.footers import read_shared_columns
from tokenmill.input.listing import list_input
from tokenmill.input.reader import Source
from tokenmill.input.where import where_expression
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.storage.local import LocalStore

KEY = "day=1/a.parquet"


def write(folder: Path, table: pa.Table, groups: list[int] | None = None) -> Unit:
    """Write the table as the shard `KEY`, with these row groups. Returns a unit of all rows."""
    path = folder / KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    # With short pages, parts of a large row group can be read.
    with pq.ParquetWriter(path, table.schema, data_page_size=1024) as writer:
        start = 0
        for rows in groups or [table.num_rows]:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
    info = LocalStore(str(folder)).info(KEY)
    return Unit(KEY, info.size, info.version, 0, table.num_rows, 0)


def part(unit: Unit, first: int, end: int) -> Unit:
    return replace(unit, first_row=first, num_rows=end - first)


def source(folder: Path, schema: pa.Schema, where: str | None = None) -> Source:
    return Source(LocalStore(str(folder)), schema, where)


def with_rows(table: pa.Table) -> pa.Table:
    """The table as it should be read, with each row's position in the shard."""
    field = pa.field(ROW_COLUMN, pa.int64(), nullable=False)
    return table.append_column(field, pa.array(range(table.num_rows), pa.int64()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


GROUPS = st.lists(st.one_of(st.integers(0, 9), st.sampled_from([4095, 4096, 4097])), max_size=5)
BORDERS = st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)).map(sorted)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, borders=BORDERS)
@example(groups=[4096, 0, 4096], borders=[4096, 8192])
@example(groups=[9000], borders=[4095, 4097])
def test_a_unit_has_exactly_its_rows_in_any_layout(
    folder: Path, groups: list[int], borders: list[int]
) -> None:
    """With any row groups and borders, a unit has each of its rows once, in order."""
    total = sum(groups)
    first, end = (border % (total + 1) for border in borders)
    first, end = min(first, end), max(first, end)
    table = pa.table({"n": pa.array(range(total), pa.int64())})
    whole = write(folder, table, groups)
    read = source(folder, table.schema).read(part(whole, first, end))
    assert read.equals(with_rows(table).slice(first, end - first))
    assert all(column.num_chunks <= 1 for column in read.columns)


# Runs of equal values, so that row groups can be skipped, with nulls among them.
RUNS = st.lists(
    st.tuples(st.none() | st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=12
).map(lambda runs: [value for value, times in runs for _ in range(times)])
LISTED = ", ".join(str(number) for number in range(200))
WHERES = st.sampled_from(
    [
        "n = 3",
        "n <> 3",
        "n > 2.5",
        "n < 300",
        "n > -1000",
        "n IS NULL",
        "n IS NOT NULL AND n < 2",
        "n IN (1, 4)",
        "n NOT IN (1, 4)",
        f"n IN ({LISTED})",
        f"n NOT IN (2, {LISTED})",
        "NOT (n = 1 OR s = '3')",
        "s = '2'",
        "s LIKE '2%'",
        "s NOT LIKE '2%'",
        "x >= 0.1 AND x < 3",
        "d = '4'",
        "TRUE",
        "FALSE",
    ]
)
NARROW = pa.schema(
    [
        ("n", pa.int8()),
        ("s", pa.string()),
        ("x", pa.float32()),
        ("d", pa.dictionary(pa.int32(), pa.string())),
    ]
)
WIDE = pa.schema(
    [("n", pa.int64()), ("s", pa.large_string()), ("x", pa.float64()), NARROW.field("d")]
)
NULLS = pa.schema([(name, pa.null()) for name in NARROW.names])


@settings(max_examples=150, deadline=None)
@given(
    values=RUNS,
    layout=st.tuples(st.integers(1, 7), st.integers(0, 20)),
    where=WHERES,
    kinds=st.sampled_from(
        [(NARROW, NARROW), (NARROW, WIDE), (WIDE, WIDE), (NULLS, NARROW), (NULLS, WIDE)]
    ),
)
def test_skipping_row_groups_changes_no_result(
    folder: Path,
    values: list[int | None],
    layout: tuple[int, int],
    where: str,
    kinds: tuple[pa.Schema, pa.Schema],
) -> None:
    """The rows are those of a filter in memory, also if the shard's types are narrower."""
    stored, common = kinds
    rows, border = layout
    texts = [None if value is None else str(value) for value in values]
    whole = pa.table({"n": values, "s": texts, "x": values, "d": texts})
    columns = [
        pa.nulls(len(values), field.type) if stored is NULLS else pa.array(data, field.type)
        for data, field in zip(whole.to_pydict().values(), stored, strict=True)
    ]
    table = pa.table(columns, schema=stored)
    unit = write(folder, table, [rows] * (len(values) // rows + 1))
    border = min(border, len(values))
    expected = with_rows(table.cast(common)).filter(where_expression(where, common))
    read = [
        source(folder, common, where).read(part(unit, *ends))
        for ends in ((0, border), (border, len(values)))
    ]
    assert pa.concat_tables(read).to_pylist() == expected.to_pylist()
    assert read[0].schema == with_rows(table.cast(common)).schema


class CountingStore(LocalStore):
    """A store that counts the bytes that are read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.num_bytes = 0

    def open(self, key: str) -> BinaryIO:
        return CountingFile(self, super().open(key))  # type: ignore[return-value]


class CountingFile:
    def __init__(self, store: CountingStore, file: BinaryIO) -> None:
        self._store = store
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._store.num_bytes += len(data)
        return data


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Unit, pa.Table]:
    """A shard with ten row groups, whose column `big` is a hundred times larger than `n`."""
    noise = [os.urandom(400) for _ in range(10_000)]
    table = pa.table({"big": noise, "n": pa.array(range(10_000), pa.int64())})
    return tmp_path, write(tmp_path, table, [1000] * 10), table


@pytest.mark.parametrize(
    ("columns", "where", "rows", "max_bytes"),
    [
        (["n"], None, (0, 10_000), 200_000),
        (["big", "n"], None, (2_100, 2_200), 600_000),
        (["big", "n"], "n >= 4500 AND n < 4600", (0, 10_000), 600_000),
        (["big", "n"], "n < 0", (0, 10_000), 140_000),
    ],
    ids=["one column", "one row group", "filter in one row group", "filter that no row passes"],
)
def test_only_what_is_needed_is_read(
    corpus: tuple[Path, Unit, pa.Table],
    columns: list[str],
    where: str | None,
    rows: tuple[int, int],
    max_bytes: int,
) -> None:
    """Of four megabytes, only the needed columns in the unit's row groups are read."""
    folder, unit, table = corpus
    store = CountingStore(str(folder))
    Source(store, table.select(columns).schema, where).read(part(unit, *rows))
    assert 0 < store.num_bytes < max_bytes


def test_memory_is_that_of_the_unit(tmp_path: Path) -> None:
    """A unit at the end of a huge row group takes the memory of its own rows only."""
    table = pa.table({"text": ["x" * 1000] * 20_000})
    unit = write(tmp_path, table)
    before = pa.total_allocated_bytes()
    read = source(tmp_path, table.schema).read(part(unit, 19_990, 20_000))
    assert read.num_rows == 10
    assert pa.total_allocated_bytes() - before < 100_000


def test_columns_are_in_the_order_of_the_schema(tmp_path: Path) -> None:
    """The order in the shard does not matter, nor do dots in names."""
    table = pa.table({"c": [1], "a": [{"b": 2, "c": 3}], "a.b": ["x"], "b": [True]})
    unit = write(tmp_path, table)
    selected = table.select(["b", "a.b", "c", "a"])
    assert source(tmp_path, selected.schema).read(unit).equals(with_rows(selected))


def test_types_are_widened_to_the_common_ones(tmp_path: Path) -> None:
    """A shard with narrower types than others is read with the common types, also nested ones."""
    unit = write(tmp_path, pa.table({"n": pa.array([1], pa.int32()), "l": [[1, None]], "s": ["a"]}))
    common = pa.schema([("n", pa.int64()), ("l", pa.list_(pa.float64())), ("s", pa.large_string())])
    read = source(tmp_path, common).read(unit)
    assert read.equals(with_rows(pa.table([[1], [[1.0, None]], ["a"]], schema=common)))


def test_a_field_of_nulls_is_read_in_each_unit(tmp_path: Path) -> None:
    """Polars and DuckDB write such a type for a struct's field without values."""
    fields = [("tags", pa.list_(pa.int32())), ("note", pa.null())]
    cells = [{"tags": [number], "note": None} for number in range(400)]
    table = pa.table({"meta": pa.array(cells, pa.struct(fields))})
    unit = part(write(tmp_path, table), 100, 200)
    wide = pa.struct([("tags", pa.large_list(pa.int32())), ("note", pa.string())])
    for type_ in (pa.struct(fields), wide):
        read = source(tmp_path, pa.schema([("meta", type_)])).read(unit)
        read.validate(full=True)
        assert read.column("meta").type == type_
        assert read.column("meta").to_pylist() == cells[100:200]


@pytest.mark.parametrize("what", ["size", "version"])
def test_a_changed_shard_is_refused(tmp_path: Path, what: str) -> None:
    """The error names a shard that has changed since it was planned."""
    table = pa.table({"n": [1]})
    unit = write(tmp_path, table)
    other = replace(unit, size=unit.size + 1) if what == "size" else replace(unit, version="7")
    with pytest.raises(UserError, match="has changed since the plan") as refused:
        source(tmp_path, table.schema).read(other)
    assert str(tmp_path / KEY) in str(refused.value)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    """The error names a shard that has been deleted since it was planned."""
    table = pa.table({"n": [1]})
    unit = write(tmp_path, table)
    (tmp_path / KEY).unlink()
    with pytest.raises(UserError, match="has been deleted since the plan") as refused:
        source(tmp_path, table.schema).read(unit)
    assert str(tmp_path / KEY) in str(refused.value)


def broken(unit: Unit, folder: Path, data: bytes) -> Unit:
    """The unit after the shard was overwritten with `data`, as if planned with its new version."""
    (folder / KEY).write_bytes(data)
    info = LocalStore(str(folder)).info(KEY)
    return replace(unit, size=info.size, version=info.version)


@pytest.mark.parametrize("damage", ["cut off", "damaged page", "empty"])
def test_a_shard_that_cannot_be_read_fails_the_run(tmp_path: Path, damage: str) -> None:
    """Damage that the plan did not detect stops the run; the error names shard and rows."""
    table = pa.table({"s": [os.urandom(50).hex() for _ in range(1000)]})
    unit = write(tmp_path, table)
    data = (tmp_path / KEY).read_bytes()
    damaged = {
        "cut off": data[: len(data) // 2],
        "damaged page": data[:4] + b"\xff" * 4000 + data[4004:],
        "empty": b"",
    }
    with pytest.raises(RunFailed, match="rows 5 to 9 cannot be read") as failed:
        source(tmp_path, table.schema).read(part(broken(unit, tmp_path, damaged[damage]), 5, 9))
    assert str(tmp_path / KEY) in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_value_beyond_the_common_type_fails_the_run(tmp_path: Path) -> None:
    """A value is never truncated to fit into a type."""
    unit = write(tmp_path, pa.table({"n": pa.array([2**64 - 1], pa.uint64())}))
    with pytest.raises(RunFailed, match="rows 0 to 1 cannot be read"):
        source(tmp_path, pa.schema([("n", pa.int64())])).read(unit)


def test_a_page_with_a_wrong_checksum_fails_the_run(tmp_path: Path) -> None:
    """A changed byte in a text is an error if its page has a checksum."""
    table = pa.table({"text": ["a text to be damaged"]})
    unit = write(tmp_path, table)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    path = tmp_path / KEY
    pq.write_table(table, path, write_page_checksum=True, **options)
    assert path.read_bytes().count(b"damaged") == 1
    path.write_bytes(path.read_bytes().replace(b"damaged", b"damagee"))
    info = LocalStore(str(tmp_path)).info(KEY)
    unit = replace(unit, size=info.size, version=info.version)
    with pytest.raises(RunFailed, match="checksum"):
        source(tmp_path, table.schema).read(unit)


def test_timestamps_of_spark_keep_their_dates(folder: Path) -> None:
    """Those stored as INT96 are read as microseconds, which reach beyond the year 2262."""
    at = pa.array(["9999-12-31", "0001-01-01", None]).cast(pa.timestamp("us"))
    table = pa.table({"at": at})
    path = folder / "spark" / KEY
    path.parent.mkdir(parents=True)
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    footers = read_shared_columns(list_input(str(folder / "spark"), None))
    assert footers.schema == table.schema
    info = LocalStore(str(folder / "spark")).info(KEY)
    unit = Unit(KEY, info.size, info.version, 0, 3, 0)
    read = source(folder / "spark", footers.schema, "at >= '2026-01-01'").read(unit)
    assert read.column("at").combine_chunks().equals(at.slice(0, 1))
    assert source(folder / "spark", footers.schema).read(unit).equals(with_rows(table))
