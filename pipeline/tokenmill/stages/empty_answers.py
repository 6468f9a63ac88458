"""Counts answers that say nothing: null, an empty text, an empty list.

One such answer is nothing unusual. If all of a task's answers are empty, the job is likely to be
wrong.
"""

from collections.abc import Iterable
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.job.job import Job
from tokenmill.output.schema import task_columns
from tokenmill.row_columns import ERROR


def count_empty(job: Job, answered: pa.Table) -> dict[str, int]:
    """By task, the rows of an answered unit without a reject whose answer is empty."""
    rows = answered.filter(pc.is_null(answered.column(ERROR)))
    counts = {}
    for step, columns in zip(job.steps, task_columns(job), strict=True):
        is_empty = _all_empty(rows.column(columns[name]) for name in step.answer_names)
        counts[step.name] = pc.sum(is_empty, min_count=0).as_py()
    return counts


def _all_empty(columns: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    return reduce(pc.and_, map(_is_empty, columns))


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_struct(kind):
        # The fields of a null are null.
        return _all_empty(pc.struct_field(column, [i]) for i in range(kind.num_fields))
    if pa.types.is_string(kind):
        return pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
    if pa.types.is_list(kind):
        return pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)
    return pc.is_null(column)
