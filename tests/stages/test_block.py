"""Units on their way between processes: every table comes out of its block unchanged."""

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
def test_a_unit_comes_out_of_its_block_unchanged(rows: pa.Table) -> None:
    """Its rows, types, nulls, metadata and position are kept."""
    block = to_block(7, rows)
    assert block.num_rows == 1
    ((unit, again),) = from_block(block)
    assert unit == 7
    assert again.schema.equals(rows.schema, check_metadata=True)
    assert again.num_rows == rows.num_rows
    # Compared as bytes: NaN is unequal to itself, and invalid UTF-8 has no Python value.
    assert to_block(7, again).equals(to_block(7, rows.combine_chunks())) or again.equals(rows)


def test_several_units_in_one_block_stay_separate() -> None:
    """Blocks that were joined come apart again, in order."""
    blocks = [to_block(unit, rows) for unit, rows in enumerate(TABLES.values())]
    units = from_block(pa.concat_tables(blocks))
    assert [unit for unit, _ in units] == list(range(len(TABLES)))
    assert [rows.schema for _, rows in units] == [rows.schema for rows in TABLES.values()]
    sliced = from_block(pa.concat_tables(blocks).combine_chunks().slice(1, 1))
    assert [(unit, rows.num_rows) for unit, rows in sliced] == [(1, 0)]


def test_all_blocks_have_the_same_schema() -> None:
    """So Ray Data can join blocks of units with different columns."""
    assert len({to_block(0, rows).schema.to_string() for rows in TABLES.values()}) == 1
    assert from_block(to_block(0, TABLES["rows"]).slice(0, 0)) == []


def test_a_unit_is_read_without_a_copy() -> None:
    """Its rows share the memory of the block."""
    block = to_block(0, pa.table({"n": range(100_000)}))
    before = pa.total_allocated_bytes()
    units = from_block(block)
    assert units[0][1].num_rows == 100_000
    assert pa.total_allocated_bytes() - before < 100_000
