"""The rows of an output that have no answer, or a truncated one."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.output.json_lines import json_rows, write_line
from tokenmill.output.output import OpenedOutput, committed_units
from tokenmill.output.record import read_records
from tokenmill.output.schema import added_fields, task_names
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ERROR, SOURCE_FILE, SOURCE_ROW
from tokenmill.storage.base import Store


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects rejected rows of some classes, or of all (None).

    With `truncated`, answers that stopped at their maximum length are selected too.
    """

    classes: frozenset[str] | None = None
    truncated: bool = False


def rejected_rows(opened: OpenedOutput, selection: Selection) -> Iterator[tuple[Unit, pa.Table]]:
    """The selected rows of each committed unit that has any, with the output's columns.

    Reads the footers of all units, and whole objects only where the footer shows such rows.
    """
    finish_reasons = _finish_reasons(opened.job) if selection.truncated else []
    units = committed_units(opened.store, opened.plan)
    records = read_records(opened.store, [unit.key for unit in units])
    for unit, record in zip(units, records, strict=True):
        if selection.truncated or _has_any(record.rejects, selection.classes):
            rows = _select(_read(opened.store, unit.key), selection, finish_reasons)
            if rows.num_rows:
                yield unit, rows


def example_reject(store: Store, key: str, reject_class: str) -> str | None:
    """Describe a unit's first reject of a class; None if a retry has answered it since."""
    rows = _select(_read(store, key), Selection(frozenset({reject_class})))
    return describe_reject(rows.slice(0, 1).to_pylist()[0]) if rows.num_rows else None


def describe_reject(row: Mapping[str, Any]) -> str:
    """The file and row of the input that a rejected output row is from, and the reason."""
    return f"{row[SOURCE_FILE]} row {row[SOURCE_ROW]:,}: {row[ERROR]['message']}"


def _has_any(rejects: Collection[str], classes: frozenset[str] | None) -> bool:
    return bool(rejects) if classes is None else not classes.isdisjoint(rejects)


def _read(store: Store, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(key)))


def _select(rows: pa.Table, selection: Selection, finish_reasons: Sequence[str] = ()) -> pa.Table:
    error = rows.column(ERROR)
    is_selected = error.is_valid()
    if selection.classes is not None:
        classes = pa.array(sorted(selection.classes), pa.string())
        is_selected = pc.is_in(pc.struct_field(error, "class"), classes)
    if selection.truncated:
        is_selected = pc.or_(is_selected, _is_truncated(rows, finish_reasons))
    return rows.filter(is_selected)


def _finish_reasons(job: Job) -> list[str]:
    """The output's columns with finish reasons. Raises `UserError` if there are none."""
    names = task_names(job)
    reasons = [
        field.name
        for field in added_fields(job)
        if names[field.name].endswith("finish_reason") and field.type == pa.string()
    ]
    if not reasons:
        raise UserError("--truncated: no task of this output writes a finish_reason; omit it")
    return reasons


def _is_truncated(rows: pa.Table, reasons: Sequence[str]) -> pa.ChunkedArray:
    """Whether any answer of each row stopped at its maximum length."""
    is_truncated = pc.fill_null(pc.equal(rows.column(reasons[0]), "length"), False)
    for name in reasons[1:]:
        is_other = pc.fill_null(pc.equal(rows.column(name), "length"), False)
        is_truncated = pc.or_(is_truncated, is_other)
    return is_truncated


def export_rows(tables: Sequence[pa.Table], target: Path) -> None:
    """Write rows to a `.parquet` or `.jsonl` file, by its suffix. Raises `UserError`."""
    if target.suffix not in _WRITERS:
        raise UserError(f"--export {target}: the file name must end in {' or '.join(_WRITERS)}")
    if not tables:
        raise UserError(f"--export {target}: there are no rejects to export")
    try:
        _WRITERS[target.suffix](pa.concat_tables(tables), target)
    except OSError as error:
        raise UserError(f"--export {target}: {error.strerror or error}") from error


def _write_json_lines(rows: pa.Table, target: Path) -> None:
    with target.open("wb") as file:
        for row in json_rows(rows):
            write_line(row, file)


_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": lambda rows, target: pq.write_table(rows, target, compression="zstd"),
    ".jsonl": _write_json_lines,
}
