"""What rows may vary of any task: sampling parameters and the LoRA adapter, from columns.

Stands around a task: checks the row's cells before its prompt is made, and changes the requests
that the task asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.config.sampling import OVERRIDABLE
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext

# The wrapper's place among the task's own notes; absent in a row that varies nothing.
_NOTE = "varied"
_OVERRIDES = "overrides"
_ADAPTER = "adapter"


def with_row_overrides(step: TaskStep[Any], context: TaskContext) -> Task:
    """The step's task, with its rows' overrides and adapters if it names columns for them.

    Raises `UserError`.
    """
    task = step.build(context)
    if step.section.overrides is None and step.section.adapter is None:
        return task
    return WithRowOverrides(task, step, context.adapters)


class WithRowOverrides:
    """A task whose rows choose some of their sampling parameters, or their adapter."""

    def __init__(self, task: Task, step: TaskStep[Any], adapters: Sequence[str]) -> None:
        self._task = task
        self._kind = step.kind
        self._section = step.section
        self._adapters = frozenset(adapters)
        self._sampling = step.sampling.values if step.kind.writes_text else {}

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        notes = [self._note(row) for row in rows]
        sound = [row for row, note in zip(rows, notes, strict=True) if not isinstance(note, Reject)]
        prepared = iter(self._task.prepare(sound))
        return [
            note if isinstance(note, Reject) else _noted(next(prepared), note) for note in notes
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        dialogue = self._task.answer(prepared)
        note = prepared.notes.get(_NOTE)
        if note is None:
            return (yield from dialogue)
        try:
            requests = next(dialogue)
            while True:
                answers = yield [self._varied(request, note) for request in requests]
                requests = dialogue.send(answers)
        except StopIteration as end:
            result: Cells | Reject = end.value
            return result

    def _note(self, row: Row) -> Mapping[str, Any] | Reject:
        """What the row varies; nothing for cells that are null."""
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
                    f"the column {self._section.adapter} is {name!r:.100}, which model.adapters "
                    "does not name",
                )
            note |= {} if name is None else {_ADAPTER: name}
        return note

    def _varied(self, request: Request, note: Mapping[str, Any]) -> Request:
        if request.model is not None:
            # A judge beside the task's own model: the row varies the writer alone.
            return request
        request = replace(request, adapter=note.get(_ADAPTER))
        overrides = note.get(_OVERRIDES)
        if not overrides or not isinstance(request.params, Sampling):
            return request
        return replace(request, params=Sampling(self._values(request.params.values, overrides)))

    def _values(self, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The request's sampling with the row's: what the task itself has changed stands.

        Seeds keep their distance, so that samples and second tries still differ.
        """
        varied = dict(values)
        for name, value in overrides.items():
            own, asked = self._sampling.get(name), values.get(name)
            if name == "seed" and own is not None and asked is not None:
                varied[name] = value + asked - own
            elif asked == own:
                varied[name] = value
        return varied


def _bad_override(message: str) -> Reject:
    return Reject(RejectClass.BAD_OVERRIDE, message)


def _noted(prepared: PreparedRow | Reject, note: Mapping[str, Any]) -> PreparedRow | Reject:
    if isinstance(prepared, Reject) or not note:
        return prepared
    return replace(prepared, notes={**prepared.notes, _NOTE: note})
