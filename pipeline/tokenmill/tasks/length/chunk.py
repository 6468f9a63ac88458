"""The length policy `chunk`: runs the task on each chunk of a long text and joins the answers.

A row with a single chunk is prepared and answered as without a policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tokenmill.config.length import PARTS, Chunk, JoinPrompt
from tokenmill.errors import UserError
from tokenmill.reject import Reject, RejectClass
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.fitter import Fit, Fitter, LongText
from tokenmill.tasks.length.reject import RejectingTask
from tokenmill.tasks.length.splitter import fill_chunks
from tokenmill.tasks.length.token_spans import TokenSpans
from tokenmill.tasks.row_overrides import with_row_overrides
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext, gather

# How often a text is cut into smaller chunks before its row is rejected.
_MAX_ATTEMPTS = 8
#: The note of a row that was split into chunks.
CHUNKS_NOTE = "chunks"


class ChunkJoin(Protocol):
    """Combines the cells of a row's chunks into the row's cells."""

    def __call__(self, parts: Sequence[Cells], row: Row) -> Dialogue[Cells | Reject]:
        """The dialogue that ends with the row's cells."""


@dataclass(frozen=True, slots=True)
class _Split:
    """A row's text in chunks of at most `num_tokens` tokens."""

    long: LongText
    num_tokens: int
    texts: tuple[str, ...]


class ChunkingTask:
    """A task that splits long texts into chunks."""

    def __init__(
        self, task: Task, step: TaskStep[Any], policy: Chunk, context: TaskContext
    ) -> None:
        self._task = task
        self._policy = policy
        self._fitter = Fitter(task, step, policy, context)
        self._join = _join(step, policy, context)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        entries = self._task.prepare(rows)
        outcomes = self._fitter.long_texts(rows, entries)
        long_texts = [long for long in outcomes.values() if isinstance(long, LongText)]
        fits = self._fitter.shorten(long_texts, _head, self._policy.max_tokens)
        chunked = iter(self._chunk(long_texts, fits))
        for position, long in outcomes.items():
            entries[position] = long if isinstance(long, Reject) else next(chunked)
        return entries

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:
        chunks = _unpacked(prepared)
        parts = yield from gather([self._task.answer(chunk) for chunk in chunks])
        reject = _first_reject(parts)
        if reject is not None:
            return reject
        cells: Cells | Reject
        answered = [part for part in parts if not isinstance(part, Reject)]
        if len(answered) == 1:
            (cells,) = answered
        else:
            cells = yield from self._join(answered, row)
        if isinstance(cells, Reject):
            return cells
        return {**cells, "truncated_tokens": 0, "num_chunks": len(parts)}

    def _chunk(
        self, long_texts: Sequence[LongText], fits: Sequence[Fit | Reject]
    ) -> list[PreparedRow | Reject]:
        """One entry per long text, with its chunks. All chunks are prepared together."""
        entries: list[PreparedRow | Reject | None] = [
            fit if isinstance(fit, Reject) else None for fit in fits
        ]
        splits = {
            position: self._split(long_texts[position], fit[0])
            for position, fit in enumerate(fits)
            if not isinstance(fit, Reject)
        }
        for _ in range(_MAX_ATTEMPTS):
            prepared = self._prepare_chunks(list(splits.values()))
            smaller = {}
            for (position, split), chunk_entries in zip(splits.items(), prepared, strict=True):
                if all(self._fitter.fits(entry) for entry in chunk_entries):
                    entries[position] = _packed(chunk_entries)
                else:
                    share = min(map(self._fitter.share_that_fits, chunk_entries))
                    smaller[position] = self._split(split.long, int(split.num_tokens * share))
            splits = smaller
            if not splits:
                break
        return [_too_dense(self._policy.column) if entry is None else entry for entry in entries]

    def _split(self, long: LongText, num_tokens: int) -> _Split:
        num_tokens = max(1, num_tokens)
        overlap = min(self._policy.overlap, num_tokens // 2)
        text = long.text
        spans = fill_chunks(text, self._policy.by, num_tokens, overlap)
        texts = [text.text[start:end] for start, end in spans]
        # Blank chunks are dropped. If the whole text is blank, the task decides what to do.
        return _Split(long, num_tokens, tuple(filter(str.strip, texts)) or (text.text[:1],))

    def _prepare_chunks(self, splits: Sequence[_Split]) -> list[list[PreparedRow | Reject]]:
        rows = [split.long.row for split in splits for _ in split.texts]
        texts = [text for split in splits for text in split.texts]
        entries = iter(self._fitter.with_texts(rows, texts))
        return [[next(entries) for _ in split.texts] for split in splits]


def _head(text: TokenSpans, num_tokens: int) -> str:
    return text.text[: text.forward(0, num_tokens)]


def _packed(entries: Sequence[PreparedRow | Reject]) -> PreparedRow | Reject:
    """Combine the entries of a row's chunks into one. Its note has each chunk's prompt count."""
    reject = _first_reject(entries)
    if reject is not None:
        return reject
    prepared = [entry for entry in entries if isinstance(entry, PreparedRow)]
    if len(prepared) == 1:
        return prepared[0]
    notes = [{"num_prompts": len(entry.prompts), "notes": dict(entry.notes)} for entry in prepared]
    return PreparedRow(
        [prompt for entry in prepared for prompt in entry.prompts], {CHUNKS_NOTE: notes}
    )


def _unpacked(prepared: PreparedRow) -> list[PreparedRow]:
    notes: Sequence[Mapping[str, Any]] | None = prepared.notes.get(CHUNKS_NOTE)
    if notes is None:
        return [prepared]
    prompts = iter(prepared.prompts)
    return [
        PreparedRow([next(prompts) for _ in range(note["num_prompts"])], note["notes"])
        for note in notes
    ]


def _first_reject(parts: Sequence[PreparedRow | Cells | Reject]) -> Reject | None:
    """The reject of the first failed chunk, with the chunk's number, from 1."""
    for number, part in enumerate(parts, start=1):
        if isinstance(part, Reject):
            where = f"chunk {number} of {len(parts)}: " if len(parts) > 1 else ""
            return replace(part, message=f"{where}{part.message}")
    return None


def _too_dense(column: str) -> Reject:
    return Reject(
        RejectClass.PROMPT_TOO_LONG,
        f"could not split the column {column} into chunks whose prompts fit the context",
    )


def _join(step: TaskStep[Any], policy: Chunk, context: TaskContext) -> ChunkJoin:
    """The join that the policy asks for. Raises `UserError` if the task cannot join chunks."""
    if isinstance(policy.join, JoinPrompt):
        return _JoinByPrompt(step, context)
    join = step.join
    if join is None:
        raise UserError(
            f"{step.key_prefix}length.join: this {step.kind.name} task cannot join chunks"
        )
    separator = "\n\n" if policy.separator is None else policy.separator
    text_column = step.fields[0].name if policy.join == "concatenate" else None

    def joined(parts: Sequence[Cells], row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG001
        yield from ()
        cells = join.cells(parts)
        if text_column is None or isinstance(cells, Reject):
            return cells
        texts = [part[text_column] for part in parts if part[text_column] is not None]
        return {**cells, text_column: separator.join(texts)}

    return joined


class _JoinByPrompt:
    """Joins by a second prompt, which sees the first output column of each chunk's answer."""

    def __init__(self, step: TaskStep[Any], context: TaskContext) -> None:
        final = step.final
        if final is None:
            raise ValueError("the task has no second prompt")
        self._column = step.fields[0].name
        self._final = RejectingTask(with_row_overrides(final, context), final, context)

    def __call__(self, parts: Sequence[Cells], row: Row) -> Dialogue[Cells | Reject]:
        texts = [part[self._column] for part in parts]
        (entry,) = self._final.prepare([{**row, PARTS: texts}])
        if isinstance(entry, Reject):
            return replace(entry, message=f"joining {len(parts)} chunks: {entry.message}")
        cells = yield from self._final.answer(entry, row)
        if isinstance(cells, Reject):
            return replace(cells, message=f"joining {len(parts)} chunks: {cells.message}")
        return cells
