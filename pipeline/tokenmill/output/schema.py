"""The output's columns: kept columns, answers and provenance. Their types follow from the job.

`output_schema` is the only place that puts them together, and it refuses names that occur twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.job.job import Job
from tokenmill.prompt.cleaning.clean import CLEANED_FIELD
from tokenmill.row_columns import (
    INTERNAL_PREFIX,
    PROVENANCE_FIELDS,
    ROW_COLUMN,
    SOURCE_FILE,
    SOURCE_ROW,
)
from tokenmill.tasks.length.policy import fields_of
from tokenmill.tasks.row_tasks import answer_fields, renamed


@dataclass(frozen=True, slots=True)
class _Column:
    """An output column: its name, the job key that it comes from, and what it is, in words.

    `renamable` is the name for it in `output.columns`; None if it can have no other name.
    """

    name: str
    key: str
    what: str
    renamable: str | None = None


def added_fields(job: Job) -> tuple[pa.Field, ...]:
    """The columns that a job adds to the kept ones, without the provenance."""
    return renamed(_own_fields(job), job.output.columns or {})


def task_names(job: Job) -> dict[str, str]:
    """For each of `added_fields`, the name before `output.columns` changes it."""
    stored = [field.name for field in added_fields(job)]
    return dict(zip(stored, [field.name for field in _own_fields(job)], strict=True))


def task_columns(job: Job) -> list[dict[str, str]]:
    """For each of the job's tasks, the output's columns by the names of the task's fields."""
    # The counts of `clean` come last and are no task's.
    names = iter([field.name for field in added_fields(job)])
    return [{field.name: next(names) for field in fields_of(step)} for step in job.steps]


def counts_column(job: Job) -> str:
    """The name of the column with the counts of `clean`."""
    (field,) = renamed([CLEANED_FIELD], job.output.columns or {})
    return str(field.name)


def output_schema(job: Job, kept: pa.Schema) -> pa.Schema:
    """The columns of every output file of a job, in order. Raises as `check_columns`."""
    check_columns(job, kept.names)
    return pa.schema([*kept, *added_fields(job), *PROVENANCE_FIELDS])


def check_columns(job: Job, kept: Sequence[str]) -> None:
    """Raise `UserError` if two columns of the output would have the same name.

    `kept` are the names of the kept input columns. Names that tokenmill reserves, and names in
    `output.columns` that no column has, are errors too.
    """
    own = [field.name for field in _own_fields(job)]
    for name in job.output.columns or {}:
        if name not in own:
            raise UserError(f"output.columns: {name}: {did_you_mean(name, own, 'column')}")
    seen: dict[str, _Column] = {}
    for column in _columns(job, kept):
        if column.name.startswith(INTERNAL_PREFIX):
            raise UserError(
                f"{column.key}: {column.name} begins with {INTERNAL_PREFIX}, which tokenmill "
                "reserves for its own columns; rename it"
            )
        if column.name in seen:
            raise UserError(_problem(job, seen[column.name], column))
        seen[column.name] = column


def _columns(job: Job, kept: Sequence[str]) -> Iterator[_Column]:
    """All columns of the output, in the order in which a clash is blamed on the later one."""
    for field in PROVENANCE_FIELDS:
        yield _Column(field.name, "", "a column that every output has")
    for name in kept:
        yield _Column(name, "input.keep", "a column of the input")
    renames: Mapping[str, str] = job.output.columns or {}
    for name in (field.name for field in answer_fields(job.steps)):
        key, what = ("task", "an answer") if job.tasks is None else ("tasks", "a task's answer")
        key = "output.columns" if name in renames else key
        yield _Column(renames.get(name, name), key, what, name)
    if job.clean is not None:
        name = CLEANED_FIELD.name
        key = "output.columns" if name in renames else "clean"
        yield _Column(renames.get(name, name), key, "the counts of clean", name)


def _problem(job: Job, first: _Column, second: _Column) -> str:
    """What is wrong with two columns of the same name, and what to do about it."""
    name = second.name
    if first.key == second.key == "input.keep":
        return f"input.keep: {name} is listed twice; remove one"
    remedies = []
    if second.key == "output.columns":
        remedies.append("choose another name")
    elif second.renamable is not None and second.renamable != first.renamable:
        remedies.append(f"set output.columns: {{{second.renamable}: NEW_NAME}}")
    if job.tasks is None and job.steps[0].section.name is None and second.renamable is not None:
        remedies.append("give the task a name, which prefixes its columns")
    if first.key == "input.keep" or second.key == "input.keep":
        instead = "list the columns to keep" if job.input.keeps_all else "do not keep it"
        remedies.append(f"{instead}, or rename the column in the input")
    key = "input.keep" if first.key == "input.keep" else second.key
    return (
        f"{key}: two columns of the output would be called {name}: {first.what} and {second.what}; "
        f"{'; or '.join(remedies)}"
    )


def _own_fields(job: Job) -> tuple[pa.Field, ...]:
    """The added columns with the names that the tasks give them."""
    fields = answer_fields(job.steps)
    return fields if job.clean is None else (*fields, CLEANED_FIELD)


def output_rows(answered: pa.Table, shard: str, schema: pa.Schema) -> pa.Table:
    """An answered unit as it is stored, with the columns of `output_schema` in order."""
    rows = answered.column(ROW_COLUMN)
    answered = answered.drop_columns([ROW_COLUMN])
    answered = answered.append_column(
        SOURCE_FILE, pa.array([shard] * answered.num_rows, pa.string())
    )
    answered = answered.append_column(SOURCE_ROW, rows)
    return answered.select(schema.names).cast(schema)
