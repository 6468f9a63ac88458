"""The policy `truncate`: where a prompt is too long, a part of one column is left out."""

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.fit import Measured, cut
from pipeline.length import Truncate
from pipeline.schema import Reject
from pipeline.tasks.base import Cells, Dialogue, Prepared, Row, Task, TaskSection, Tools
from pipeline.tasks.fitting import Fit, Fitter, LongText, without

#: The note of a row that was cut: how many tokens of its column are left out.
TRUNCATED_NOTE = "truncated_tokens"


class Truncated:
    """A task whose prompts always fit, if any part of the column does."""

    def __init__(self, task: Task, section: TaskSection, policy: Truncate, tools: Tools) -> None:
        self._task = task
        self._policy = policy
        self._fitter = Fitter(task, section, policy, tools)
        (marker,) = self._fitter.measure([policy.marker])
        self._most = None if policy.max_tokens is None else policy.max_tokens - marker.num_tokens
        if self._most is not None and self._most < 1:
            raise UserError(
                f"{section.place}length.max_tokens: {policy.max_tokens} has no room for text "
                f"beside the marker's {marker.num_tokens} tokens"
            )

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | Reject]:
        entries = self._task.prepare(rows)
        found = self._fitter.long_texts(rows, entries)
        longs = [long for long in found.values() if isinstance(long, LongText)]
        fits = iter(self._fitter.shorten(longs, self._cut, self._most))
        for position, long in found.items():
            entries[position] = (
                long if isinstance(long, Reject) else _shortened(long.text, next(fits))
            )
        return entries

    def answer(self, prepared: Prepared, row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG002
        truncated = prepared.notes.get(TRUNCATED_NOTE, 0)
        own = (
            Prepared(prepared.prompts, without(prepared.notes, TRUNCATED_NOTE))
            if truncated
            else prepared
        )
        cells = yield from self._task.answer(own)
        if isinstance(cells, Reject):
            return cells
        return {**cells, "truncated_tokens": truncated, "num_chunks": 1}

    def _cut(self, text: Measured, num_tokens: int) -> str:
        return cut(text, self._policy.keep, self._policy.marker, num_tokens)


def _shortened(text: Measured, fit: Fit | Reject) -> Prepared | Reject:
    if isinstance(fit, Reject):
        return fit
    num_tokens, entry = fit
    if isinstance(entry, Reject):
        return entry
    return Prepared(entry.prompts, {**entry.notes, TRUNCATED_NOTE: text.num_tokens - num_tokens})
