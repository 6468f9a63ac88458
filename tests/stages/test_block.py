"""Units on their way between processes: what is packed comes out, whatever it is."""

import pyarrow as pa
import pytest
from helpers.factories import strings_of_bytes
from tokenmill.stages.block import from_block, to_block

TABLES = {
    "rows": pa.table({"n": [1, None], "s": ["a", None], "x": [float("nan"), 0.5]}),
    "no rows": pa.table({"n": pa.array([], pa.int64())}),
    "no columns": pa.table({}),
    "chunks": pa.concat_tables([pa.table({"n": [1]}), pa.table({"n": [2, 3]})]),
    "slice": pa.table({"n": range(100)}).slice(40, 5),
    "nested": pa.table({"l": [[{"k": ["a"]}], [], None], "m": [None, {"v": 1}, {"v": None}]}),
    "dictionary": pa.table({"d": pa.array(["a", "b", None, "a"]).dictionary_encode()}),
    "views": pa.table({"v": pa.array(["short", "longer than twelve bytes"], pa.string_view())}),
    "not UTF-8": pa.table({"s": strings_of_bytes([b"\xff", b"ok"])}),
    "metadata": pa.table(
        [[1]],
        schema=pa.schema(
            [pa.field("n", pa.int64(), nullable=False, metadata={"of": "field"})],
            metadata={"of": "schema"},
        ),
    ),
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_a_unit_comes_out_as_it_was_packed(rows: pa.Table) -> None:
    """Rows, types, nulls and metadata of a unit are kept, and so is its position."""
    parcel = to_block(7, rows)
    assert parcel.num_rows == 1
    ((unit, again),) = from_block(parcel)
    assert unit == 7
    assert again.schema.equals(rows.schema, check_metadata=True)
    assert again.num_rows == rows.num_rows
    # By their bytes: NaN equals nothing, and text that is not UTF-8 has no value in Python.
    assert to_block(7, again).equals(to_block(7, rows.combine_chunks())) or again.equals(rows)


def test_several_units_in_one_block_stay_apart() -> None:
    """Parcels that were put into one block come out one by one, in their order."""
    parcels = [to_block(unit, rows) for unit, rows in enumerate(TABLES.values())]
    found = from_block(pa.concat_tables(parcels))
    assert [unit for unit, _ in found] == list(range(len(TABLES)))
    assert [rows.schema for _, rows in found] == [rows.schema for rows in TABLES.values()]
    sliced = from_block(pa.concat_tables(parcels).combine_chunks().slice(1, 1))
    assert [(unit, rows.num_rows) for unit, rows in sliced] == [(1, 0)]


def test_parcels_look_alike() -> None:
    """All parcels have one schema, so that blocks of different jobs' columns can be joined."""
    assert len({to_block(0, rows).schema.to_string() for rows in TABLES.values()}) == 1
    assert from_block(to_block(0, TABLES["rows"]).slice(0, 0)) == []


def test_a_unit_is_unpacked_without_a_copy() -> None:
    """The rows that come out lie in the parcel's own memory."""
    parcel = to_block(0, pa.table({"n": range(100_000)}))
    before = pa.total_allocated_bytes()
    unpacked = from_block(parcel)
    assert unpacked[0][1].num_rows == 100_000
    assert pa.total_allocated_bytes() - before < 100_000
