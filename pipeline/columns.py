"""The output's columns: kept, answered, and where each row is from. Types follow from the job."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from pipeline.clean import CLEANED_FIELD
from pipeline.job import Job
from pipeline.rendered import without_own_columns
from pipeline.scheduler import AnsweredRow
from pipeline.schema import PROVENANCE_FIELDS, Reject, RejectClass, error_array
from pipeline.source import ROW_COLUMN
from pipeline.tasks.row import RowResult, answer_fields

# Of Arrow's errors some are one of these, and some are only Arrow's.
_UNSTORABLE = (ValueError, TypeError, OverflowError, pa.ArrowException)
_PROVENANCE = pa.schema(PROVENANCE_FIELDS)


def added_fields(job: Job) -> tuple[pa.Field, ...]:
    """The columns that a job adds to those it keeps, but for the provenance."""
    fields = answer_fields(job.steps)
    return fields if job.clean is None else (*fields, CLEANED_FIELD)


def output_schema(kept: pa.Schema, answers: Sequence[pa.Field]) -> pa.Schema:
    """The columns of every output file of a job, in their order."""
    return pa.schema([*kept, *answers, *PROVENANCE_FIELDS])


def answered_table(
    rendered: pa.Table, answers: Sequence[AnsweredRow], fields: Sequence[pa.Field]
) -> pa.Table:
    """A rendered unit with its answers' columns, cost and `error` in place of its prompts.

    An answer that a column cannot hold, such as half of a surrogate pair from JSON, becomes a
    reject.
    """
    try:
        return _answered_table(rendered, answers, fields)
    except _UNSTORABLE:
        checked = [replace(answer, result=_storable(answer.result, fields)) for answer in answers]
        return _answered_table(rendered, checked, fields)


def _answered_table(
    rendered: pa.Table, answers: Sequence[AnsweredRow], fields: Sequence[pa.Field]
) -> pa.Table:
    table = without_own_columns(rendered)
    results = [answer.result for answer in answers]
    for field in fields:
        values = pa.array([result.cells.get(field.name) for result in results], field.type)
        table = table.append_column(field, values)
    for name in ("num_input_tokens", "num_generated_tokens"):
        field = _PROVENANCE.field(name)
        values = pa.array([getattr(answer, name) for answer in answers], field.type)
        table = table.append_column(field, values)
    rejects = [result.reject for result in results]
    return table.append_column(_PROVENANCE.field("error"), error_array(rejects))


def _storable(result: RowResult, fields: Sequence[pa.Field]) -> RowResult:
    """The result, or a reject that names the column which cannot hold its cell."""
    for field in fields:
        try:
            pa.array([result.cells.get(field.name)], field.type)
        except _UNSTORABLE as error:
            reason = f"the column {field.name} cannot hold the answer: {error}"
            return RowResult({}, Reject(RejectClass.TASK_ERROR, " ".join(reason.split()), 1))
    return result


def output_rows(answered: pa.Table, shard: str, schema: pa.Schema) -> pa.Table:
    """An answered unit as it is stored: `output_schema`'s columns, in its order."""
    rows = answered.column(ROW_COLUMN)
    answered = answered.drop_columns([ROW_COLUMN])
    answered = answered.append_column(
        "source_file", pa.array([shard] * answered.num_rows, pa.string())
    )
    answered = answered.append_column("source_row", rows)
    return answered.select(schema.names).cast(schema)
