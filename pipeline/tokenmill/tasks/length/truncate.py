"""The policy `truncate`: where a prompt is too long, a part of one column is left out."""

from collections.abc import Sequence
from typing import Any

from tokenmill.config.length import Truncate
from tokenmill.errors import UserError
from tokenmill.reject import Reject
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.fitter import Fit, Fitter, LongText, without
from tokenmill.tasks.length.token_spans import TokenSpans, truncate_text
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext

#: The note of a row that was cut: how many tokens of its column are left out.
TRUNCATED_NOTE = "truncated_tokens"


class Truncated:
    """A task whose prompts always fit, if any part of the column does."""

    def __init__(
        self, task: Task, step: TaskStep[Any], policy: Truncate, context: TaskContext
    ) -> None:
        self._task = task
        self._policy = policy
        self._fitter = Fitter(task, step, policy, context)
        (marker,) = self._fitter.measure([policy.marker])
        self._most = None if policy.max_tokens is None else policy.max_tokens - marker.num_tokens
        if self._most is not None and self._most < 1:
            raise UserError(
                f"{step.key_prefix}length.max_tokens: {policy.max_tokens} has no room for text "
                f"beside the marker's {marker.num_tokens} tokens"
            )

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        entries = self._task.prepare(rows)
        found = self._fitter.long_texts(rows, entries)
        longs = [long for long in found.values() if isinstance(long, LongText)]
        fits = iter(self._fitter.shorten(longs, self._cut, self._most))
        for position, long in found.items():
            entries[position] = (
                long if isinstance(long, Reject) else _shortened(long.text, next(fits))
            )
        return entries

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG002
        truncated = prepared.notes.get(TRUNCATED_NOTE, 0)
        own = (
            PreparedRow(prepared.prompts, without(prepared.notes, TRUNCATED_NOTE))
            if truncated
            else prepared
        )
        cells = yield from self._task.answer(own)
        if isinstance(cells, Reject):
            return cells
        return {**cells, "truncated_tokens": truncated, "num_chunks": 1}

    def _cut(self, text: TokenSpans, num_tokens: int) -> str:
        return truncate_text(text, self._policy.keep, self._policy.marker, num_tokens)


def _shortened(text: TokenSpans, fit: Fit | Reject) -> PreparedRow | Reject:
    if isinstance(fit, Reject):
        return fit
    num_tokens, entry = fit
    if isinstance(entry, Reject):
        return entry
    return PreparedRow(entry.prompts, {**entry.notes, TRUNCATED_NOTE: text.num_tokens - num_tokens})
