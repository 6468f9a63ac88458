"""Plans: every row is in exactly one unit, and a plan's file gives back the plan."""

import io
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.factories import shard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.errors import UserError
from tokenmill.plan.keys import UNIT_KEY, output_folder
from tokenmill.plan.plan import (
    BadShard,
    Plan,
    RowGroup,
    Shard,
    Unit,
    plan_from_bytes,
    plan_to_bytes,
)
from tokenmill.plan.units import UnitSize, cut_shard, first_rows, plan_units, units_in_flight

MOST_ROWS = 100_000
FEW_ROWS = st.integers(0, 200)
ANY_ROWS = st.one_of(st.just(0), FEW_ROWS, st.integers(MOST_ROWS - 1, 3 * MOST_ROWS))
LAYOUTS = [
    (),
    (0,),
    (0, 0, 5, 0),
    (1,) * 500,
    (250_000,),
    (3, 250_000, 3),
    (MOST_ROWS, MOST_ROWS),
    (60_000, 60_000, 60_000),
]


def num_tokens(group: RowGroup, overhead: int) -> int:
    """The tokens of a row group: four bytes per token, and the overhead of each row."""
    return group.num_bytes // 4 + group.num_rows * overhead


@st.composite
def layouts(draw: st.DrawFn, num_rows: st.SearchStrategy[int] = ANY_ROWS) -> Shard:
    """A shard with any row groups; a group without rows has no text."""
    groups = [
        RowGroup(rows, draw(st.integers(0, 40 * rows)))
        for rows in draw(st.lists(num_rows, max_size=8))
    ]
    return Shard("a/b.parquet", 1000, "v1", tuple(groups))


@st.composite
def cuts_by_tokens(
    draw: st.DrawFn, num_rows: st.SearchStrategy[int] = ANY_ROWS
) -> tuple[Shard, int, int]:
    """A shard, a unit size in tokens that gives at most some hundred units, an overhead per row."""
    cut_shard = draw(layouts(num_rows))
    overhead = draw(st.integers(0, 50))
    total = sum(num_tokens(group, overhead) for group in cut_shard.row_groups)
    return cut_shard, draw(st.integers(total // 300 + 1, total + 2)), overhead


def assert_covers(units: list[Unit], whole: Shard) -> None:
    """The units are not empty, in order, and contain each row of the shard exactly once."""
    borders = [0, *accumulate(unit.num_rows for unit in units)]
    assert [(unit.first_row, unit.end_row) for unit in units] == list(pairwise(borders))
    assert all(unit.num_rows > 0 for unit in units)
    assert borders[-1] == sum(group.num_rows for group in whole.row_groups)
    assert {(unit.shard, unit.size, unit.version) for unit in units} <= {
        (whole.path, whole.size, whole.version)
    }


@settings(max_examples=60, deadline=None)
@given(layouts(FEW_ROWS), st.integers(1, 300), st.integers(0, 50))
def test_units_by_rows_have_equal_size_and_cover_every_row(
    whole: Shard, rows: int, overhead: int
) -> None:
    """All units have the given number of rows, except the last one of a shard."""
    units = list(cut_shard(whole, UnitSize(rows=rows), overhead))
    assert_covers(units, whole)
    assert all(unit.num_rows == rows for unit in units[:-1])
    assert all(unit.num_rows <= rows for unit in units)


@settings(max_examples=100, deadline=None)
@given(cuts_by_tokens())
def test_units_by_tokens_cover_every_row(given_cut: tuple[Shard, int, int]) -> None:
    """With any row groups, every row is in one unit, and no unit has too many rows."""
    whole, tokens, overhead = given_cut
    units = list(cut_shard(whole, UnitSize(tokens=tokens), overhead))
    assert_covers(units, whole)
    assert all(unit.num_rows <= MOST_ROWS for unit in units)


@pytest.mark.parametrize("rows", LAYOUTS, ids=lambda rows: f"{len(rows)} groups of {sum(rows)}")
@pytest.mark.parametrize(
    "size",
    [
        UnitSize(rows=1000),
        UnitSize(rows=10**9),
        UnitSize(tokens=997),
        UnitSize(tokens=50_000),
        UnitSize(tokens=10**12),
    ],
    ids=str,
)
def test_units_cover_unusual_layouts(rows: tuple[int, ...], size: UnitSize) -> None:
    """No row groups, empty ones, hundreds of small ones, a huge one: every row is in one unit."""
    whole = shard("a.parquet", *rows, num_bytes=4000)
    assert_covers(list(cut_shard(whole, size, overhead_tokens=1)), whole)


@settings(max_examples=60, deadline=None)
@given(layouts(FEW_ROWS), st.integers(0, 50))
def test_a_unit_has_at_least_one_row(whole: Shard, overhead: int) -> None:
    """A unit size below the tokens of one row gives no empty units."""
    assert_covers(list(cut_shard(whole, UnitSize(tokens=1), overhead)), whole)


@settings(max_examples=100, deadline=None)
@given(cuts_by_tokens())
def test_only_large_row_groups_are_split(given_cut: tuple[Shard, int, int]) -> None:
    """A row group is split only if it is larger than a unit."""
    whole, tokens, overhead = given_cut
    borders = [0, *accumulate(group.num_rows for group in whole.row_groups)]
    for unit in cut_shard(whole, UnitSize(tokens=tokens), overhead):
        for group, start, end in zip(whole.row_groups, borders, borders[1:], strict=False):
            if start < unit.first_row < end:
                large = num_tokens(group, overhead) > tokens or group.num_rows > MOST_ROWS
                assert large, f"{unit} begins inside of the small {group}"


@settings(max_examples=100, deadline=None)
@given(cuts_by_tokens(FEW_ROWS))
def test_small_row_groups_are_joined(given_cut: tuple[Shard, int, int]) -> None:
    """Row groups that are smaller than a unit are joined while they fit."""
    whole, tokens, overhead = given_cut
    largest = max((num_tokens(group, overhead) for group in whole.row_groups), default=0)
    size = max(tokens, largest)
    units = list(cut_shard(whole, UnitSize(tokens=size), overhead))
    assert all(unit.estimated_tokens <= size for unit in units)
    for unit, following in pairwise(units):
        assert unit.estimated_tokens + following.estimated_tokens > size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300_000), st.integers(1, 400))
def test_a_large_row_group_is_split_evenly(num_rows: int, parts: int) -> None:
    """The units of a large row group differ by at most one row."""
    whole = Shard("a.parquet", 1, "v1", (RowGroup(num_rows, 40 * num_rows),))
    units = list(cut_shard(whole, UnitSize(tokens=10 * num_rows // parts + 1), 0))
    sizes = [unit.num_rows for unit in units]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(cuts_by_tokens(), st.integers(1000, 5000))
def test_estimates_add_up(given_cut: tuple[Shard, int, int], rows: int) -> None:
    """The units' estimates sum up to that of the shard, except for rounding down in each unit."""
    whole, tokens, overhead = given_cut
    total = sum(num_tokens(group, overhead) for group in whole.row_groups)
    for size in (UnitSize(tokens=tokens), UnitSize(rows=rows)):
        units = list(cut_shard(whole, size, overhead))
        estimated = sum(unit.estimated_tokens for unit in units)
        assert total - len(units) <= estimated <= total


@settings(max_examples=40, deadline=None)
@given(st.lists(layouts(FEW_ROWS), max_size=5), st.integers(1, 300))
def test_units_of_several_shards_have_different_keys(several: list[Shard], rows: int) -> None:
    """Units are ordered by shard, and no two have the same key."""
    shards = [replace(one, path=f"{number}.parquet") for number, one in enumerate(several)]
    units = plan_units(shards, UnitSize(rows=rows), 0)
    assert len({unit.key for unit in units}) == len(units)
    for one in shards:
        assert_covers([unit for unit in units if unit.shard == one.path], one)
    assert [unit.shard for unit in units] == sorted(unit.shard for unit in units)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.parquet", "a.pq"),
        ("a.parquet", "a.PARQUET"),
        ("a.parquet", "a"),
        ("day=1/a.parq", "day=1/a.parquet"),
    ],
)
def test_shards_that_differ_only_in_their_suffix_are_refused(one: str, other: str) -> None:
    """The error names both shards, which would be written to the same folder."""
    with pytest.raises(UserError) as refusal:
        plan_units([shard(one, 1), shard(other, 1)], UnitSize(rows=1), 0)
    assert one in str(refusal.value)
    assert other in str(refusal.value)
    assert "rename" in str(refusal.value)


def test_shards_in_two_folders_may_have_the_same_name() -> None:
    """Their outputs are in different folders."""
    units = plan_units([shard("x/a.parquet", 1), shard("y/a.parquet", 1)], UnitSize(rows=1), 0)
    assert [unit.key for unit in units] == [
        "data/x/a/rows-000000000000-000000000001.parquet",
        "data/y/a/rows-000000000000-000000000001.parquet",
    ]


# Paths with many separators, dots and characters of escapes.
PATHS = st.one_of(
    st.text(st.sampled_from("ab/._~%25EF0- "), max_size=12),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
SUFFIXES = st.sampled_from(["", ".parquet", ".pq", ".parq", ".PARQUET", ".Pq"])


@settings(max_examples=300, deadline=None)
@given(PATHS, SUFFIXES, st.integers(0, 10**11), st.integers(1, 10**6))
@example("../../etc/passwd", ".parquet", 0, 1)
@example("a//b/./.hidden/_temporary/é ü", ".parquet", 0, 1)
@example("", ".parquet", 0, 1)
def test_every_key_works_in_all_stores_and_readers(
    path: str, suffix: str, first_row: int, num_rows: int
) -> None:
    """A unit's key matches `UNIT_KEY`, stays in `data/`, and has no part that readers skip."""
    unit = Unit(path + suffix, 1, "v1", first_row, num_rows, 0)
    assert UNIT_KEY.fullmatch(unit.key)
    root, *parts = unit.key.split("/")
    assert root == "data"
    assert all(part and part[0] not in "._" for part in parts)
    assert unit.key.isascii()


@settings(max_examples=500, deadline=None)
@given(PATHS, PATHS, SUFFIXES, SUFFIXES)
@example("a/%2E", "a/.", ".parquet", ".parquet")
@example("_a", "%5Fa", ".parquet", ".parquet")
@example("a~", "a%7E", ".parquet", ".parquet")
@example("a//b", "a/%00/b", ".parquet", ".parquet")
@example("A", "a", ".parquet", ".parquet")
def test_paths_share_a_folder_only_if_they_differ_only_in_the_suffix(
    one: str, other: str, suffix: str, other_suffix: str
) -> None:
    """Output folders are equal only if the paths without their suffixes are equal."""
    same = output_folder(one + suffix) == output_folder(other + other_suffix)
    assert same == (one == other)


@pytest.mark.parametrize("letter", ["文", "é", "a", " "])
def test_a_long_name_gives_a_folder_that_a_disk_allows(letter: str) -> None:
    """Folders of shards with long names have at most 255 bytes per part, and differ."""
    stem = letter * (240 // len(letter.encode()))
    one, other = output_folder(f"{stem}b.parquet"), output_folder(f"{stem}c.parquet")
    for folder in (one, other):
        assert all(len(part) <= 255 for part in folder.split("/"))
        assert UNIT_KEY.fullmatch(f"{folder}/rows-000000000000-000000000001.parquet")
        assert folder.startswith(output_folder(letter * 5))
    assert one != other
    assert output_folder(one.removeprefix("data/")) != one


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=4), st.integers(1, 60))
def test_first_rows_are_exactly_the_first_rows(layout: list[list[int]], limit: int) -> None:
    """A limit keeps the first rows of the corpus, in order, and drops shards without rows."""
    shards = [shard(f"{number}.parquet", *rows) for number, rows in enumerate(layout)]

    def rows_of(some: list[Shard]) -> list[tuple[str, int]]:
        units = plan_units(some, UnitSize(rows=1), 0)
        return [(unit.shard, unit.first_row) for unit in units]

    kept = first_rows(shards, limit)
    assert rows_of(list(kept)) == rows_of(shards)[:limit]
    assert all(sum(group.num_rows for group in one.row_groups) for one in kept)
    assert all((one.size, one.version) == (1000, "v1") for one in kept)


AWKWARD_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.timestamp("us", "Europe/Berlin"),
    pa.decimal128(20, 3),
    pa.dictionary(pa.int16(), pa.string(), ordered=True),
    pa.list_(pa.struct([("score", pa.float32()), ("tags", pa.list_(pa.string()))])),
    pa.map_(pa.string(), pa.int64()),
    pa.binary(16),
    pa.null(),
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
COUNTS = st.integers(0, 2**62)
UNITS = st.builds(
    Unit, st.text(max_size=9), COUNTS, st.text(max_size=9), COUNTS, st.integers(1, 9), COUNTS
)
PLANS = st.builds(
    Plan,
    input_url=st.text(max_size=20),
    fingerprint=st.text(max_size=20),
    answer_fields=st.dictionaries(st.text(max_size=9), JSON_VALUES, max_size=4),
    schema=st.lists(st.sampled_from(AWKWARD_TYPES), max_size=4).map(
        lambda kinds: pa.schema([(f"column {number}", kind) for number, kind in enumerate(kinds)])
    ),
    units=st.lists(UNITS, max_size=4).map(tuple),
    skipped=st.lists(st.builds(BadShard, st.text(max_size=9), st.text(max_size=9)), max_size=2).map(
        tuple
    ),
)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    """A plan's file gives back the plan, including the Arrow types of its columns."""
    read = plan_from_bytes(plan_to_bytes(plan), "here")
    assert read == plan
    assert read.schema.equals(plan.schema, check_metadata=True)


@pytest.mark.parametrize("kind", AWKWARD_TYPES, ids=str)
def test_every_column_type_is_kept(kind: pa.DataType) -> None:
    """A plan keeps the exact type of a column."""
    schema = pa.schema([pa.field("x", kind, nullable=True)])
    plan = Plan("in", "f", {}, schema, ())
    assert plan_from_bytes(plan_to_bytes(plan), "here").schema.field("x").type.equals(kind)


@settings(max_examples=40, deadline=None)
@given(PLANS)
def test_equal_plans_have_equal_bytes(plan: Plan) -> None:
    """The order in which fields were set does not matter."""

    def reordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reordered(value[key]) for key in reversed(value)}
        return value

    other = replace(plan, answer_fields=reordered(plan.answer_fields))
    assert plan_to_bytes(other) == plan_to_bytes(plan)


def parquet_with(metadata: dict[bytes, bytes] | None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"shard": ["a"]}).replace_schema_metadata(metadata), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        b"not Parquet at all, but long enough",
        parquet_with(None),
        parquet_with({b"tokenmill": b"no json", b"tokenmill.schema": b""}),
        parquet_with({b"tokenmill": b"{}", b"tokenmill.schema": b""}),
    ],
    ids=["empty", "magic only", "text", "other Parquet", "broken metadata", "no format"],
)
def test_a_file_that_is_not_a_plan_is_refused(data: bytes) -> None:
    """The error names the file and says what to do."""
    with pytest.raises(UserError, match=r"^s3://out/plan: .*use another output"):
        plan_from_bytes(data, "s3://out/plan")


def test_a_later_format_is_refused() -> None:
    """The error names the numbers of both formats."""
    data = parquet_with({b"tokenmill": b'{"format": 99}', b"tokenmill.schema": b""})
    with pytest.raises(UserError, match=r"s3://out/plan: .*format 99.*reads format 1"):
        plan_from_bytes(data, "s3://out/plan")


@pytest.mark.parametrize(
    ("rows_per_unit", "max_num_seqs", "expected"), [(32, 64, 19), (2_000, 1_024, 8), (1, 1_024, 64)]
)
def test_a_replica_gets_eight_batches_and_three_units(
    rows_per_unit: int, max_num_seqs: int, expected: int
) -> None:
    """Eight batches of rows and three more units, but at most 64 units (a thread each)."""
    units = plan_units([shard("a.parquet", 10 * rows_per_unit)], UnitSize(rows=rows_per_unit), 0)
    assert units_in_flight(units, max_num_seqs) == expected
