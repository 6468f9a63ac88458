"""The table of a rendered unit, which crosses from rendering processes to those with an engine.

It has the kept columns, `ROW_COLUMN`, and each row's prompts as token ids, media and notes. Nearly
all rows have one task, one prompt and no notes; for those, no JSON is written or parsed.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from tokenmill.reject import Reject, RejectClass, error_array, reject_from_cell
from tokenmill.request import Media
from tokenmill.row_columns import ERROR, INTERNAL_PREFIX, PROVENANCE_FIELDS, TOKEN_FIELDS
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult
from tokenmill.tasks.task import PreparedRow

PROMPTS_COLUMN = f"{INTERNAL_PREFIX}prompts"
NOTES_COLUMN = f"{INTERNAL_PREFIX}notes"
#: A struct of the input values that a task reads after the answer of an earlier one.
LATE_COLUMN = f"{INTERNAL_PREFIX}late"
#: Only in units with media.
MEDIA_COLUMN = f"{INTERNAL_PREFIX}media"
_INTERNAL_COLUMNS = (PROMPTS_COLUMN, NOTES_COLUMN, LATE_COLUMN, MEDIA_COLUMN)
# Large: a unit's media may exceed the 2 GiB of a plain binary column.
_MEDIA_TYPE = pa.list_(
    pa.struct([pa.field("kind", pa.string()), pa.field("data", pa.large_binary())])
)
#: A row's entries, one a task; None for a task that waits for another's answer.
Entries = Sequence[PreparedRow | Reject | None]
# Some errors of Arrow are also ValueErrors or TypeErrors; others are not.
_UNSTORABLE = (ValueError, TypeError, OverflowError, pa.ArrowException)
_PROVENANCE = pa.schema(PROVENANCE_FIELDS)


def answered_table(
    rendered: pa.Table, answers: Sequence[AnsweredRow], fields: Sequence[pa.Field]
) -> pa.Table:
    """A rendered unit with answers, token counts and `error` in place of its prompts.

    An answer that its column cannot hold, such as half of a surrogate pair, becomes a reject.
    """
    try:
        return _answered_table(rendered, answers, fields)
    except _UNSTORABLE:
        checked = [replace(answer, result=_storable(answer.result, fields)) for answer in answers]
        return _answered_table(rendered, checked, fields)


def _answered_table(
    rendered: pa.Table, answers: Sequence[AnsweredRow], fields: Sequence[pa.Field]
) -> pa.Table:
    table = without_internal_columns(rendered)
    results = [answer.result for answer in answers]
    for field in fields:
        values = pa.array([result.cells.get(field.name) for result in results], field.type)
        table = table.append_column(field, values)
    for field in TOKEN_FIELDS:
        counts = [answer.token_counts and answer.token_counts[field.name] for answer in answers]
        table = table.append_column(field, pa.array(counts, field.type))
    rejects = [result.reject for result in results]
    return table.append_column(_PROVENANCE.field(ERROR), error_array(rejects))


def _storable(result: RowResult, fields: Sequence[pa.Field]) -> RowResult:
    """The result, or a reject with the name of the column that cannot hold its cell."""
    for field in fields:
        try:
            pa.array([result.cells.get(field.name)], field.type)
        except _UNSTORABLE as error:
            reason = f"the column {field.name} cannot hold the answer: {error}"
            return RowResult({}, Reject(RejectClass.TASK_ERROR, " ".join(reason.split()), 1))
    return result


def rendered_table(kept: pa.Table, rows: Sequence[Entries], late: pa.Table) -> pa.Table:
    """A unit's table. `kept` has the kept columns and `ROW_COLUMN`, `late` the late columns."""
    notes = [_notes(entries) for entries in rows]
    table = kept.append_column(PROMPTS_COLUMN, _prompts_array(rows))
    table = table.append_column(NOTES_COLUMN, pa.array(notes, pa.string()))
    media_cells = [
        [
            asdict(media)
            for entry in entries
            if isinstance(entry, PreparedRow)
            for media in entry.media
        ]
        for entries in rows
    ]
    if any(media_cells):
        table = table.append_column(MEDIA_COLUMN, pa.array(media_cells, _MEDIA_TYPE))
    if late.num_columns:
        table = table.append_column(LATE_COLUMN, late.to_struct_array())
    return table


def _prompts_array(rows: Sequence[Entries]) -> pa.ListArray:
    """Each row's prompts, built from buffers: twice as fast as `pa.array`."""
    tokens = array("i")
    prompt_ends, row_ends = [0], [0]
    for entries in rows:
        for entry in entries:
            if isinstance(entry, PreparedRow):
                for prompt in entry.prompts:
                    tokens.fromlist(prompt if isinstance(prompt, list) else list(prompt))
                    prompt_ends.append(len(tokens))
        row_ends.append(len(prompt_ends) - 1)
    numbers = pa.Array.from_buffers(pa.int32(), len(tokens), [None, pa.py_buffer(tokens)])
    prompts = pa.ListArray.from_arrays(pa.array(prompt_ends, pa.int32()), numbers)
    return pa.ListArray.from_arrays(pa.array(row_ends, pa.int32()), prompts)


def without_internal_columns(table: pa.Table) -> pa.Table:
    """The table with the kept columns and `ROW_COLUMN` only."""
    return table.drop_columns([name for name in _INTERNAL_COLUMNS if name in table.schema.names])


class RenderedRows:
    """Random access to the rows of a rendered table. Rows are unpacked on access."""

    def __init__(self, table: pa.Table) -> None:
        rows = table.column(PROMPTS_COLUMN).combine_chunks()
        prompts = rows.values
        # Python integers and a NumPy view: slicing Arrow arrays takes ten times as long.
        self._row_ends: list[int] = rows.offsets.to_pylist()
        self._prompt_ends: list[int] = prompts.offsets.to_pylist()
        self._tokens = prompts.values.to_numpy()
        self._notes: list[str | None] = table.column(NOTES_COLUMN).to_pylist()
        self._late = table.column(LATE_COLUMN) if LATE_COLUMN in table.schema.names else None
        self._media = table.column(MEDIA_COLUMN) if MEDIA_COLUMN in table.schema.names else None

    def __len__(self) -> int:
        return len(self._notes)

    def entries(self, row: int) -> list[PreparedRow | Reject | None]:
        """The row's entries, as the tasks prepared them."""
        prompts = self._prompts(row)
        notes = self._notes[row]
        if notes is None:
            return [PreparedRow(list(prompts))]
        media = self._row_media(row)
        return [_entry(cell, prompts, media) for cell in json.loads(notes)]

    def late(self, row: int) -> Mapping[str, Any]:
        """The row's values of the late columns."""
        return {} if self._late is None else dict(self._late[row].as_py())

    def _row_media(self, row: int) -> Iterator[Media]:
        cells = () if self._media is None else self._media[row].as_py()
        return (Media(**cell) for cell in cells)

    def _prompts(self, row: int) -> Iterator[list[int]]:
        for prompt in range(self._row_ends[row], self._row_ends[row + 1]):
            start, end = self._prompt_ends[prompt], self._prompt_ends[prompt + 1]
            yield self._tokens[start:end].tolist()


def _notes(entries: Entries) -> str | None:
    match entries:
        case [PreparedRow(prompts=[_], notes=notes, media=media)] if not notes and not media:
            return None
    return json.dumps([_cell(entry) for entry in entries])


def _cell(entry: PreparedRow | Reject | None) -> dict[str, Any] | None:
    match entry:
        case PreparedRow(prompts=prompts, notes=notes, media=media):
            counts = {"num_prompts": len(prompts), "num_media": len(media)}
            return {**counts, "notes": dict(notes)}
        case Reject():
            cell = asdict(entry)
            return {"reject": {"class": cell.pop("reject_class"), **cell}}
        case None:
            return None


def _entry(
    cell: Mapping[str, Any] | None, prompts: Iterator[Sequence[int]], media: Iterator[Media]
) -> PreparedRow | Reject | None:
    if cell is None:
        return None
    if "reject" in cell:
        return reject_from_cell(cell["reject"])
    return PreparedRow(
        [next(prompts) for _ in range(cell["num_prompts"])],
        cell["notes"],
        tuple(next(media) for _ in range(cell["num_media"])),
    )
