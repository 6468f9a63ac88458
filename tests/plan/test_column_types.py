"""The types of columns: in shards, as they are read, and in common."""

import pyarrow as pa
import pytest
from tokenmill.plan.column_types import as_read, as_strings, common_type, fits

VIEW = pa.string_view()
LABEL = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("type_", "read"),
    [
        (VIEW, pa.string()),
        (pa.binary_view(), pa.binary()),
        (pa.list_(VIEW), pa.list_(pa.string())),
        (pa.large_list(VIEW), pa.large_list(pa.string())),
        (pa.list_(VIEW, 2), pa.list_(pa.string(), 2)),
        (pa.map_(VIEW, VIEW), pa.map_(pa.string(), pa.string())),
        (pa.struct({"a": pa.list_(VIEW)}), pa.struct({"a": pa.list_(pa.string())})),
        (pa.list_(pa.field("x", VIEW, nullable=False)), None),
        (LABEL, LABEL),
        (pa.uuid(), pa.uuid()),
        (pa.timestamp("us", "+05:30"), pa.timestamp("us", "+05:30")),
    ],
    ids=str,
)
def test_views_are_read_as_plain_types(type_: pa.DataType, read: pa.DataType | None) -> None:
    """At any depth; names and nullability stay."""
    expected = read or pa.list_(pa.field("x", pa.string(), nullable=False))
    assert as_read(type_) == expected


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (pa.binary(), pa.string()),
        (pa.binary(3), pa.string()),
        (pa.large_binary(), pa.large_string()),
        (pa.list_(pa.struct({"a": pa.binary()})), pa.list_(pa.struct({"a": pa.string()}))),
        (pa.dictionary(pa.int8(), pa.binary()), pa.string()),
        (LABEL, LABEL),
        (pa.uuid(), pa.uuid()),
        (pa.decimal128(5, 1), pa.decimal128(5, 1)),
    ],
    ids=str,
)
def test_bytes_become_strings(type_: pa.DataType, text: pa.DataType) -> None:
    """At any depth. UUIDs and decimals, which Parquet stores as bytes, are not bytes."""
    assert as_strings(type_) == text


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), LABEL, pa.string()),
        (pa.large_string(), LABEL, pa.large_string()),
        (LABEL, LABEL, LABEL),
        (pa.list_(LABEL), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.json_(), pa.string(), pa.string()),
        (pa.int64(), pa.uint64(), pa.decimal128(20, 0)),
        (pa.int8(), pa.uint64(), pa.decimal128(20, 0)),
        (pa.uint64(), pa.uint8(), pa.uint64()),
        (pa.uint64(), pa.null(), pa.uint64()),
        (pa.int8(), pa.uint32(), pa.int64()),
        (pa.string(), pa.binary(), None),
        (pa.string(), pa.int64(), None),
        (pa.dictionary(pa.int32(), pa.int64()), pa.string(), None),
        (pa.uuid(), pa.string(), None),
    ],
    ids=str,
)
def test_the_common_type_holds_both(
    one: pa.DataType, other: pa.DataType, common: pa.DataType | None
) -> None:
    """All forms of text are one kind, and so are all integers; the order does not matter."""
    assert common_type(one, other) == common_type(other, one) == common


@pytest.mark.parametrize(
    ("added", "planned", "expected"),
    [
        (pa.string(), VIEW, True),
        (LABEL, pa.string(), True),
        (pa.int32(), pa.int64(), True),
        (pa.uint64(), pa.decimal128(20, 0), True),
        (pa.uint64(), pa.int64(), False),
        (pa.int64(), pa.int32(), False),
        (pa.int64(), pa.string(), False),
    ],
    ids=str,
)
def test_a_new_shard_fits_the_plans_type(
    added: pa.DataType, planned: pa.DataType, expected: bool
) -> None:
    """If its values can be read as that type; a plan of a former version may have views."""
    assert fits(added, planned) == expected
