"""The first stage: a unit's rows made ready for the engine by the job's tasks.

A row with a value that Python cannot hold is a reject; the others go to the tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.rendered import rendered_table
from pipeline.schema import Reject, RejectClass
from pipeline.source import ROW_COLUMN
from pipeline.tasks.base import Prepared
from pipeline.tasks.row import RowTasks


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders rows for one job: its tasks, and the columns to keep."""

    tasks: RowTasks
    keep: Sequence[str]

    def render(self, rows: pa.Table) -> pa.Table:
        """The unit as `rendered` describes it."""
        kept = rows.select([*self.keep, ROW_COLUMN])
        late = rows.select(list(self.tasks.late_columns))
        return rendered_table(kept, self._entries(rows), late)

    def _entries(self, rows: pa.Table) -> list[list[Prepared | Reject | None]]:
        names = list(self.tasks.columns)
        columns = [_cells(name, rows.column(name)) for name in names]
        values = [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
        unreadable = [_first_reject(row) for row in values]
        readable = (row for row, reject in zip(values, unreadable, strict=True) if reject is None)
        prepared = iter(self.tasks.prepare(list(readable)))
        return [
            next(prepared) if reject is None else [reject] * len(self.tasks)
            for reject in unreadable
        ]


def _first_reject(row: dict[str, Any]) -> Reject | None:
    return next((value for value in row.values() if isinstance(value, Reject)), None)


def _cells(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The column's values; a `Reject` for one that Python cannot hold."""
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
        # A date beyond the year 9999, say.
        reason = " ".join(str(error).split())
        return Reject(
            RejectClass.TEMPLATE_ERROR, f"the column {name} holds an unreadable value: {reason}"
        )
