"""The length policy `truncate`: removes a part of one column if the prompt is too long."""

from collections.abc import Sequence
from typing import Any

from tokenmill.config.length import Truncate
from tokenmill.errors import UserError
from tokenmill.reject import Reject
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.fitter import Fit, Fitter, LongText, without_note
from tokenmill.tasks.length.token_spans import TokenSpans, truncate_text
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext

#: The note of a truncated row that holds the number of tokens removed from its column.
TRUNCATED_NOTE = "truncated_tokens"


class TruncatingTask:
    """A task that shortens a column until its prompts fit."""

    def __init__(
        self, task: Task, step: TaskStep[Any], policy: Truncate, context: TaskContext
    ) -> None:
        self._task = task
        self._policy = policy
        self._fitter = Fitter(task, step, policy, context)
        (marker,) = self._fitter.measure([policy.marker])
        self._max_text_tokens = (
            None if policy.max_tokens is None else policy.max_tokens - marker.num_tokens
        )
        if self._max_text_tokens is not None and self._max_text_tokens < 1:
            raise UserError(
                f"{step.key_prefix}length.max_tokens: {policy.max_tokens} leaves no room for "
                f"text next to the marker of {marker.num_tokens} tokens; raise it"
            )

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        entries = self._task.prepare(rows)
        outcomes = self._fitter.long_texts(rows, entries)
        long_texts = [long for long in outcomes.values() if isinstance(long, LongText)]
        fits = iter(self._fitter.shorten(long_texts, self._cut, self._max_text_tokens))
        for position, long in outcomes.items():
            entries[position] = (
                long if isinstance(long, Reject) else _shortened(long.text, next(fits))
            )
        return entries

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG002
        truncated = prepared.notes.get(TRUNCATED_NOTE, 0)
        if truncated:
            prepared = PreparedRow(prepared.prompts, without_note(prepared.notes, TRUNCATED_NOTE))
        cells = yield from self._task.answer(prepared)
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
