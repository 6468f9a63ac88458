"""Sampling parameters and LoRA adapters from a row's columns, for any task.

Wraps a task: the row's values are checked before its prompt is made, and the task's requests are
changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.config.sampling import OVERRIDABLE
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext

# The wrapper's note among those of the task; absent in a row without overrides.
_NOTE = "row_overrides"
_OVERRIDES = "overrides"
_ADAPTER = "adapter"


def with_row_overrides(step: TaskStep[Any], context: TaskContext) -> Task:
    """Build the step's task, wrapped if it has columns for overrides or adapters.

    Raises `UserError`.
    """
    task = step.build(context)
    if step.section.overrides is None and step.section.adapter is None:
        return task
    return WithRowOverrides(task, step, context.adapters)


class WithRowOverrides:
    """A task whose rows set some of their sampling parameters, or their adapter."""

    def __init__(self, task: Task, step: TaskStep[Any], adapters: Sequence[str]) -> None:
        self._task = task
        self._kind = step.kind
        self._section = step.section
        self._adapters = frozenset(adapters)
        self._sampling = step.sampling.values if step.kind.writes_text else {}

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        notes = [self._note(row) for row in rows]
        valid = [row for row, note in zip(rows, notes, strict=True) if not isinstance(note, Reject)]
        prepared = iter(self._task.prepare(valid))
        return [
            note if isinstance(note, Reject) else _with_note(next(prepared), note) for note in notes
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        dialogue = self._task.answer(prepared)
        note = prepared.notes.get(_NOTE)
        if note is None:
            return (yield from dialogue)
        try:
            requests = next(dialogue)
            while True:
                answers = yield [self._overridden(request, note) for request in requests]
                requests = dialogue.send(answers)
        except StopIteration as end:
            result: Cells | Reject = end.value
            return result

    def _note(self, row: Row) -> Mapping[str, Any] | Reject:
        """The row's overrides and adapter, without those that are null."""
        overrides: dict[str, Any] = {}
        for name, column in (self._section.overrides or {}).items():
            value = row[column]
            if value is None:
                continue
            try:
                overrides[name] = OVERRIDABLE[name](value)
            except ValueError as error:
                return _bad_override(f"the column {column} is {value!r:.100}: {name} {error}")
        problem = self._kind.override_problem(self._section, overrides)
        if problem is not None:
            return _bad_override(problem)
        note: dict[str, Any] = {_OVERRIDES: overrides} if overrides else {}
        if self._section.adapter is not None:
            name = row[self._section.adapter]
            if name is not None and (not isinstance(name, str) or name not in self._adapters):
                return Reject(
                    RejectClass.UNKNOWN_ADAPTER,
                    f"the column {self._section.adapter} is {name!r:.100}, which is not in "
                    "model.adapters",
                )
            note |= {} if name is None else {_ADAPTER: name}
        return note

    def _overridden(self, request: Request, note: Mapping[str, Any]) -> Request:
        if request.model is not None:
            # The request is for an auxiliary model, such as a judge.
            return request
        request = replace(request, adapter=note.get(_ADAPTER))
        overrides = note.get(_OVERRIDES)
        if not overrides or not isinstance(request.params, Sampling):
            return request
        return replace(request, params=Sampling(self._values(request.params.values, overrides)))

    def _values(self, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The request's sampling with the row's values, except what the task itself has changed.

        The differences between seeds are kept, so that samples and second tries still differ.
        """
        overridden = dict(values)
        for name, value in overrides.items():
            configured, requested = self._sampling.get(name), values.get(name)
            if name == "seed" and configured is not None and requested is not None:
                overridden[name] = value + requested - configured
            elif requested == configured:
                overridden[name] = value
        return overridden


def _bad_override(message: str) -> Reject:
    return Reject(RejectClass.BAD_OVERRIDE, message)


def _with_note(prepared: PreparedRow | Reject, note: Mapping[str, Any]) -> PreparedRow | Reject:
    if isinstance(prepared, Reject) or not note:
        return prepared
    return replace(prepared, notes={**prepared.notes, _NOTE: note})
