"""All tasks of a job as one: rows are prepared for all of them, and have one dialogue.

The requests of all tasks are in the same round, so that the prefixes they share are in the engine's
cache. A task that reads a column of an earlier task waits for its answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.reject import Reject, RejectClass
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.policy import columns_of, fields_of, fitted, joining_columns
from tokenmill.tasks.length.reject import FittedTask
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext, gather, routed_to


@dataclass(frozen=True, slots=True)
class RowResult:
    """The cells of the tasks that succeeded, and the reject of the first task that did not."""

    cells: Cells
    reject: Reject | None


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row's result, and the tokens of all its requests, by the names of `TOKEN_FIELDS`.

    `token_counts` is None if no request was answered.
    """

    result: RowResult
    token_counts: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _RowTask:
    """One of a row's tasks.

    `model` is the key of its own model, or None for the job's model. `columns` maps its cells to
    output columns. `follows` are the positions of the tasks whose columns it reads.
    """

    name: str | None
    task: FittedTask
    model: str | None
    columns: Mapping[str, str]
    follows: Sequence[int]


class RowTasks:
    """All tasks of a job.

    `fields` are the output columns; `renames` gives some of them other names than the tasks do.
    `columns` maps the input columns that the tasks read to the job keys that name them.
    `late_columns` are those that are read in the engine's process, after the answers of an earlier
    task or of all chunks.
    """

    def __init__(
        self,
        steps: Sequence[TaskStep[Any]],
        context: TaskContext,
        renames: Mapping[str, str] | None = None,
    ) -> None:
        self._renames = renames or {}
        self.fields = renamed(answer_fields(steps), self._renames)
        self.columns = input_columns(steps)
        self._tasks = [
            _row_task(step, context, follows)
            for step, follows in zip(steps, _follows(steps), strict=True)
        ]
        late = {
            name
            for step, task in zip(steps, self._tasks, strict=True)
            for name in (columns_of if task.follows else joining_columns)(step)
        }
        self.late_columns = sorted(late & self.columns.keys())

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def waiting(self) -> list[bool]:
        """For each task, whether it waits for the answer of another."""
        return [bool(task.follows) for task in self._tasks]

    def prepare(self, rows: Sequence[Row]) -> list[list[PreparedRow | Reject | None]]:
        """Prepare rows. Returns for each row one entry a task, None for a task that waits."""
        columns = [
            [None] * len(rows) if task.follows else task.task.prepare(rows) for task in self._tasks
        ]
        return [list(entries) for entries in zip(*columns, strict=True)]

    def answer(
        self, entries: Sequence[PreparedRow | Reject | None], late: Row
    ) -> Dialogue[RowResult]:
        """The row's dialogue; `late` has its values of `late_columns`."""
        outcomes: dict[int, Cells | Reject] = {}
        while len(outcomes) < len(self._tasks):
            ready = [
                position
                for position, task in enumerate(self._tasks)
                if position not in outcomes and outcomes.keys() >= set(task.follows)
            ]
            results = yield from gather(
                [
                    self._dialogue(self._tasks[position], entries[position], late, outcomes)
                    for position in ready
                ]
            )
            outcomes.update(zip(ready, results, strict=True))
        return self._result([outcomes[position] for position in range(len(self._tasks))])

    def _dialogue(
        self,
        task: _RowTask,
        entry: PreparedRow | Reject | None,
        late: Row,
        outcomes: Mapping[int, Cells | Reject],
    ) -> Dialogue[Cells | Reject]:
        """One task's dialogue. It returns cells by output column."""
        try:
            row = _with_earlier(late, [outcomes[position] for position in task.follows])
            if isinstance(row, Reject):
                return row
            if entry is None:
                (entry,) = task.task.prepare([row])
            if isinstance(entry, Reject):
                return entry
            outcome = yield from routed_to(task.model, task.task.answer(entry, row))
            if isinstance(outcome, Reject):
                return outcome
            return {task.columns[name]: cell for name, cell in outcome.items()}
        except Exception as error:  # noqa: BLE001 - a bug in a task rejects the row for that task
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Reject(RejectClass.TASK_ERROR, reason, attempts=int(entry is not None))

    def _result(self, outcomes: Sequence[Cells | Reject]) -> RowResult:
        cells: dict[str, Any] = {}
        first: Reject | None = None
        for task, outcome in zip(self._tasks, outcomes, strict=True):
            if not isinstance(outcome, Reject):
                cells |= outcome
            elif first is None:
                first = _named(task, outcome)
        if self._renames:
            cells = {self._renames.get(name, name): cell for name, cell in cells.items()}
        return RowResult(cells, first)


def _with_earlier(late: Row, earlier: Sequence[Cells | Reject]) -> Row | Reject:
    """The values that a waiting task reads, or the reject of a task that it follows."""
    values = dict(late)
    for outcome in earlier:
        if isinstance(outcome, Reject):
            return outcome
        values |= outcome
    return values


def _named(task: _RowTask, reject: Reject) -> Reject:
    if task.name is None:
        return reject
    return Reject(reject.reject_class, f"{task.name}: {reject.message}", reject.attempts)


def _row_task(step: TaskStep[Any], context: TaskContext, follows: Sequence[int]) -> _RowTask:
    key = step.model_key
    if key is not None:
        own = context.auxiliary[key]
        context = replace(own, auxiliary=context.auxiliary, storage=context.storage)
    return _RowTask(step.section.name, fitted(step, context), key, _column_names(step), follows)


def input_columns(steps: Sequence[TaskStep[Any]]) -> dict[str, str]:
    """The input's columns that the tasks read, each with the first job key that names it."""
    made: set[str] = set()
    columns: dict[str, str] = {}
    for step in steps:
        for name, key in columns_of(step).items():
            if name not in made:
                columns.setdefault(name, key)
        made.update(_column_names(step).values())
    return columns


def _follows(steps: Sequence[TaskStep[Any]]) -> list[list[int]]:
    """For each task the positions of the earlier ones whose columns it reads."""
    made = [set(_column_names(step).values()) for step in steps]
    return [
        [earlier for earlier in range(position) if made[earlier] & columns_of(step).keys()]
        for position, step in enumerate(steps)
    ]


def answer_fields(steps: Sequence[TaskStep[Any]]) -> tuple[pa.Field, ...]:
    """The columns of a job's tasks, with the names that later tasks read them by.

    Raises `UserError` if two have the same name.
    """
    fields: dict[str, pa.Field] = {}
    for step in steps:
        names = _column_names(step)
        if len(names) < len(fields_of(step)):
            raise UserError(_policy_column_problem(step))
        for field in fields_of(step):
            name = names[field.name]
            if name in fields:
                raise UserError(
                    f"{step.key_prefix}name: two tasks have the output column {name}; rename one"
                )
            fields[name] = field.with_name(name)
    return tuple(fields.values())


def _policy_column_problem(step: TaskStep[Any]) -> str:
    """The message for a task with a column of the name that its length policy gives to its own."""
    names = [field.name for field in fields_of(step)]
    name = next(name for name in names if names.count(name) > 1)
    return (
        f"{step.key_prefix}length: the policy adds a column {name}, and the task has one of the "
        "same name; rename the property or column of the task"
    )


def renamed(fields: Sequence[pa.Field], renames: Mapping[str, str]) -> tuple[pa.Field, ...]:
    """The fields, with the new names of those in `renames`."""
    return tuple(field.with_name(renames.get(field.name, field.name)) for field in fields)


def _column_names(step: TaskStep[Any]) -> dict[str, str]:
    """The output column of each of a task's fields: with the task's name before it, if any."""
    name = step.section.name
    prefix = "" if name is None else f"{name}_"
    return {field.name: prefix + field.name for field in fields_of(step)}
