"""The first stage: prepare a unit's rows for the engine with the job's tasks.

A row with a value that has no Python equivalent is rejected; the other rows go to the tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.prompt.cleaning.clean import CLEANED_FIELD, Clean
from tokenmill.reject import Reject, RejectClass
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow
from tokenmill.tasks.unit_tables import rendered_table


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders rows for one job: its tasks, the columns to keep, and how texts are cleaned.

    `counts_column` receives the counts of changes by cleaning.
    """

    tasks: RowTasks
    keep: Sequence[str]
    clean: Clean | None = None
    counts_column: str = CLEANED_FIELD.name

    def render(self, rows: pa.Table) -> pa.Table:
        """The unit as `rendered_table` describes it; kept columns are unchanged."""
        kept = rows.select([*self.keep, ROW_COLUMN])
        late = rows.select(list(self.tasks.late_columns))
        values = self._values(rows)
        if self.clean is not None:
            values, counts = _cleaned(self.clean, values)
            kept = kept.append_column(self.counts_column, pa.array(counts, CLEANED_FIELD.type))
            late = _with_cleaned(late, self.clean, values)
        return rendered_table(kept, self._entries(values), late)

    def _values(self, rows: pa.Table) -> list[dict[str, Any]]:
        names = list(self.tasks.columns)
        columns = [_cells(name, rows.column(name)) for name in names]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]

    def _entries(self, values: Sequence[dict[str, Any]]) -> list[list[PreparedRow | Reject | None]]:
        unreadable = [_first_reject(row) for row in values]
        readable = (row for row, reject in zip(values, unreadable, strict=True) if reject is None)
        prepared = iter(self.tasks.prepare(list(readable)))
        return [
            next(prepared) if reject is None else [reject] * len(self.tasks)
            for reject in unreadable
        ]


def _first_reject(row: dict[str, Any]) -> Reject | None:
    return next((value for value in row.values() if isinstance(value, Reject)), None)


def _cleaned(
    clean: Clean, rows: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[list[tuple[str, int]]]]:
    """The rows with clean texts, and the counts of changes in each, as for a map column."""
    results = [clean.apply(row) for row in rows]
    return [row for row, _ in results], [list(counts.items()) for _, counts in results]


def _with_cleaned(late: pa.Table, clean: Clean, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The columns that tasks read after the engine, with clean texts too."""
    for name in set(clean.columns).intersection(late.schema.names):
        values = [None if isinstance(row[name], Reject) else row[name] for row in rows]
        # Only texts are cleaned; a column of another type is unchanged.
        if all(value is None or isinstance(value, str) for value in values):
            position = late.schema.get_field_index(name)
            late = late.set_column(position, name, pa.array(values, pa.string()))
    return late


def _cells(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The column's values, with a `Reject` for each that has no Python equivalent."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_cell(name, cell) for cell in column]


def _cell(name: str, cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return Reject(RejectClass.BAD_TEXT, f"the column {name} holds text that is not UTF-8")
    except (ValueError, OverflowError) as error:
        # For example, a date after the year 9999.
        reason = " ".join(str(error).split())
        return Reject(
            RejectClass.TEMPLATE_ERROR, f"the column {name} holds an unreadable value: {reason}"
        )
