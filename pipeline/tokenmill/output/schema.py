"""The output's columns: kept columns, answers and provenance. Their types follow from the job."""

from collections.abc import Sequence

import pyarrow as pa

from tokenmill.job.job import Job
from tokenmill.prompt.cleaning.clean import CLEANED_FIELD
from tokenmill.row_columns import PROVENANCE_FIELDS, ROW_COLUMN, SOURCE_FILE, SOURCE_ROW
from tokenmill.tasks.row_tasks import answer_fields


def added_fields(job: Job) -> tuple[pa.Field, ...]:
    """The columns that a job adds to the kept ones, without the provenance."""
    fields = answer_fields(job.steps)
    return fields if job.clean is None else (*fields, CLEANED_FIELD)


def output_schema(kept: pa.Schema, answers: Sequence[pa.Field]) -> pa.Schema:
    """The columns of every output file of a job, in order."""
    return pa.schema([*kept, *answers, *PROVENANCE_FIELDS])


def output_rows(answered: pa.Table, shard: str, schema: pa.Schema) -> pa.Table:
    """An answered unit as it is stored, with the columns of `output_schema` in order."""
    rows = answered.column(ROW_COLUMN)
    answered = answered.drop_columns([ROW_COLUMN])
    answered = answered.append_column(
        SOURCE_FILE, pa.array([shard] * answered.num_rows, pa.string())
    )
    answered = answered.append_column(SOURCE_ROW, rows)
    return answered.select(schema.names).cast(schema)
