"""The rendered table returns what the tasks prepared, row by row."""

from typing import Any

import pyarrow as pa
import pytest
from helpers.factories import rendered_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Media
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.tasks.task import PreparedRow
from tokenmill.tasks.unit_tables import (
    NOTES_COLUMN,
    Entries,
    RenderedRows,
    rendered_table,
    without_internal_columns,
)

TEXTS = st.text(max_size=6)
# Lone surrogates too: JSON holds them, and a message may quote what it complains about.
ANY_TEXTS = st.text(st.characters(), max_size=6)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | ANY_TEXTS
)
NOTES = st.dictionaries(
    ANY_TEXTS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)
PROMPTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=3)
MEDIA = st.lists(
    st.builds(Media, st.sampled_from(["image", "audio"]), st.binary(max_size=4)), max_size=2
).map(tuple)
ENTRIES = st.one_of(
    st.none(),
    st.builds(PreparedRow, PROMPTS),
    st.builds(PreparedRow, PROMPTS, NOTES),
    st.builds(PreparedRow, PROMPTS, NOTES, MEDIA),
    st.builds(Reject, st.sampled_from(RejectClass), ANY_TEXTS, st.integers(0, 3)),
)
ROWS = st.integers(1, 3).flatmap(
    lambda num_tasks: st.lists(
        st.lists(ENTRIES, min_size=num_tasks, max_size=num_tasks), max_size=8
    )
)


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, chunk=st.integers(1, 8), start=st.integers(0, 3))
@example(rows=[[PreparedRow([[1]])], [PreparedRow([])], [PreparedRow([[]])]], chunk=1, start=1)
@example(rows=[[None, PreparedRow([[1], [2]]), None]], chunk=8, start=0)
def test_a_table_returns_the_entries(rows: list[Entries], chunk: int, start: int) -> None:
    """Prompts, notes, media, rejects and waiting tasks, in any chunks and slices of the table."""
    table = rendered_rows(rows)
    pieces = [table.slice(at, chunk) for at in range(start, len(rows), chunk)]
    found = RenderedRows(pa.concat_tables([table.slice(0, 0), *pieces]))
    assert len(found) == len(rows[start:])
    assert [found.entries(row) for row in range(len(found))] == rows[start:]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | TEXTS, st.none() | st.integers(-9, 9)), max_size=6))
def test_a_table_returns_late_values(rows: list[tuple[str | None, int | None]]) -> None:
    """The input values of late columns, by row and column; nulls are None."""
    late = pa.table(
        {
            "text": pa.array([text for text, _ in rows], pa.string()),
            "a.b": pa.array([number for _, number in rows], pa.int8()),
        }
    )
    found = RenderedRows(rendered_rows([[PreparedRow([[1]]), None] for _ in rows], late))
    assert [found.late(row) for row in range(len(rows))] == [
        {"text": text, "a.b": number} for text, number in rows
    ]


def test_without_late_columns_there_are_no_late_values() -> None:
    """A job whose tasks are independent carries nothing for them."""
    table = rendered_rows([[PreparedRow([[1]])]])
    assert RenderedRows(table).late(0) == {}
    assert [name for name in table.schema.names if "late" in name] == []


@pytest.mark.parametrize(
    ("entries", "has_notes"),
    [
        ([PreparedRow([[1, 2]])], False),
        ([PreparedRow([])], True),
        ([PreparedRow([[1], [2]])], True),
        ([PreparedRow([[1]], {"k": 1})], True),
        ([PreparedRow([[1]]), PreparedRow([[2]])], True),
        ([Reject(RejectClass.EMPTY_INPUT, "empty")], True),
    ],
    ids=["one prompt", "none", "two", "notes", "two tasks", "reject"],
)
def test_a_row_with_one_prompt_needs_no_json(entries: Entries, *, has_notes: bool) -> None:
    """JSON is only written for several tasks or prompts, notes or media."""
    (notes,) = rendered_rows([entries]).column(NOTES_COLUMN).to_pylist()
    assert (notes is not None) == has_notes


def test_notes_that_are_not_json_are_an_error() -> None:
    """It is a bug of the task."""
    with pytest.raises(TypeError, match="set"):
        rendered_rows([[PreparedRow([[1]], {"k": {1}})]])


@pytest.mark.parametrize("late", [{}, {"x": pa.array([1, 2])}], ids=["alone", "late values"])
def test_a_table_returns_the_kept_columns(late: dict[str, Any]) -> None:
    """Without internal columns, a table has the kept columns and the rows' positions."""
    kept = pa.table({"id": pa.array(["a", None], pa.large_string()), ROW_COLUMN: [7, 9]})
    entries: list[Entries] = [[PreparedRow([[1]])], [Reject(RejectClass.BAD_TEXT, "bad")]]
    table = rendered_table(kept, entries, pa.table(late) if late else kept.select([]))
    assert without_internal_columns(table).equals(kept)


def test_a_unit_without_rows_has_a_table() -> None:
    """A unit whose rows are all filtered out has the same columns."""
    table = rendered_rows([])
    assert table.schema.equals(rendered_rows([[PreparedRow([[1]])]]).schema)
    assert len(RenderedRows(table)) == 0
