"""A task's prompts held against the context: what is too long, and how much of a text fits.

What a prompt needs is read off the first round of its dialogue, which is begun and dropped: it
holds whatever the task puts behind the prompt, and how long the answer may be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.config.length import Chunk, Truncate
from tokenmill.errors import UserError
from tokenmill.reject import Reject, RejectClass
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.reject import contexts_of, first_round, longest_answer
from tokenmill.tasks.length.token_spans import TokenSpans
from tokenmill.tasks.task import PreparedRow, Row, Task, TaskContext

# Each halves what is unknown at least; the usual prompt takes three.
_TRIES = 12
# The first try: what the prompt needs without its text, nearly.
_PROBE_TOKENS = 16
# So near to the context a further try gains nothing.
_SLACK_TOKENS = 4
#: A text's entry once it fits, and how many of its tokens that took.
Fit = tuple[int, PreparedRow | Reject]


@dataclass(frozen=True, slots=True)
class LongText:
    """A row whose column is to be cut; `excess` as `Fitter.excess` says of the whole."""

    row: Row
    text: TokenSpans
    excess: int | None


class Fitter:
    """Prepares rows with less and less of one column, until their prompts fit."""

    def __init__(
        self, task: Task, step: TaskStep[Any], policy: Truncate | Chunk, context: TaskContext
    ) -> None:
        self._task = task
        self._column = policy.column
        self._max_tokens = policy.max_tokens
        self._context = context
        self._contexts = contexts_of(step, context)
        if policy.max_tokens is None:
            if any(params.max_tokens is None for params in step.params):
                raise UserError(
                    f"{step.key_prefix}length: with sampling.max_tokens null an answer takes what "
                    "the text leaves; set one of sampling.max_tokens and length.max_tokens"
                )
        elif policy.max_tokens + longest_answer(step) >= context.max_model_len:
            raise UserError(
                f"{step.key_prefix}length.max_tokens: {policy.max_tokens} and the answer leave "
                f"nothing of the context of {context.max_model_len} for the rest of the prompt"
            )

    def measure(self, texts: Sequence[str]) -> list[TokenSpans]:
        """The texts with their tokens."""
        spans = self._context.tokenizer.token_spans(texts)
        return [TokenSpans.of(text, own) for text, own in zip(texts, spans, strict=True)]

    def excess(self, entry: PreparedRow | Reject) -> int | None:
        """By how many tokens the entry exceeds the context; None where the task does not say.

        At most 0 for what fits, and for what is rejected whatever its length.
        """
        if isinstance(entry, Reject):
            return None if entry.reject_class is RejectClass.PROMPT_TOO_LONG else 0
        return max(map(self._contexts.excess, first_round(self._task, entry)), default=0)

    def fits(self, entry: PreparedRow | Reject) -> bool:
        """Whether a shorter text would not help the entry."""
        return _fits(self.excess(entry))

    def share_that_fits(self, entry: PreparedRow | Reject) -> float:
        """About how much of the entry's text would fit, if all of the prompt were text."""
        excess = self.excess(entry)
        if excess is None:
            return 0.5
        limit = self._context.max_model_len
        return 1.0 if excess <= 0 else min(0.9, limit / (limit + excess))

    def long_texts(
        self, rows: Sequence[Row], entries: Sequence[PreparedRow | Reject]
    ) -> dict[int, LongText | Reject]:
        """The rows that do not fit, or exceed the policy's `max_tokens`, by their positions.

        A reject where the column holds no text that could be cut.
        """
        found: dict[int, LongText | Reject] = {}
        suspects = {}
        for position, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            excess = self.excess(entry)
            if isinstance(row[self._column], str):
                if not _fits(excess) or self._may_exceed(entry):
                    suspects[position] = excess
            elif not _fits(excess):
                found[position] = _no_text(self._column)
        texts = self.measure([rows[position][self._column] for position in suspects])
        for (position, excess), text in zip(suspects.items(), texts, strict=True):
            if not _fits(excess) or text.num_tokens > (self._max_tokens or 0):
                found[position] = LongText(rows[position], text, excess)
        return found

    def _may_exceed(self, entry: PreparedRow | Reject) -> bool:
        """Whether the column may exceed `max_tokens`; prompts have no fewer than their text."""
        if self._max_tokens is None or isinstance(entry, Reject):
            return False
        return sum(map(len, entry.prompts)) > self._max_tokens

    def with_texts(self, rows: Sequence[Row], texts: Sequence[str]) -> list[PreparedRow | Reject]:
        """The rows' entries with other texts in the column."""
        return self._task.prepare(
            [{**row, self._column: text} for row, text in zip(rows, texts, strict=True)]
        )

    def shorten(
        self, longs: Sequence[LongText], cut: Callable[[TokenSpans, int], str], most: int | None
    ) -> list[Fit | Reject]:
        """As much of each text as fits, at most `most` tokens; a reject where nothing does."""
        searches = [_search(long, most) for long in longs]
        for _ in range(_TRIES):
            under_way = [search for search in searches if not search.is_done]
            if not under_way:
                break
            wanted = [search.next() for search in under_way]
            entries = self.with_texts(
                [search.long.row for search in under_way],
                [
                    cut(search.long.text, tokens)
                    for search, tokens in zip(under_way, wanted, strict=True)
                ],
            )
            for search, tokens, entry in zip(under_way, wanted, entries, strict=True):
                search.see(tokens, entry, self.excess(entry))
        return [_nothing_fits(self._column) if s.best is None else s.best for s in searches]


@dataclass(slots=True)
class _Search:
    """The most tokens that fit lie between those of `best` and `too_many`.

    In nearly all templates a prompt grows evenly with the text, so that a straight line through
    two tries finds it.
    """

    long: LongText
    first: int
    too_many: int
    excess_of_too_many: int | None
    best: Fit | None = None
    excess_of_best: int = 0
    num_tries: int = 0

    @property
    def is_done(self) -> bool:
        if self.best is None:
            return self.too_many <= 1
        return self.too_many - self.best[0] <= 1 or self.excess_of_best >= -_SLACK_TOKENS

    def next(self) -> int:
        """How many tokens to try."""
        if self.num_tries == 0:
            return self.first
        if self.best is None:
            return min(_PROBE_TOKENS, self.too_many // 2)
        low, high = self.best[0], self.too_many
        if self.excess_of_too_many is None:
            return (low + high) // 2
        slope = (self.excess_of_too_many - self.excess_of_best) / (high - low)
        return min(high - 1, max(low + 1, low + int(-self.excess_of_best / slope)))

    def see(self, tokens: int, entry: PreparedRow | Reject, excess: int | None) -> None:
        """Take in how a try came out."""
        self.num_tries += 1
        if excess is not None and excess <= 0:
            self.best, self.excess_of_best = (tokens, entry), excess
        else:
            self.too_many, self.excess_of_too_many = tokens, excess


def _search(long: LongText, most: int | None) -> _Search:
    num_tokens = long.text.num_tokens
    if most is not None and most < num_tokens:
        return _Search(long, most, most + 1, None)
    # The whole text is known not to fit.
    return _Search(long, min(_PROBE_TOKENS, num_tokens // 2), num_tokens, long.excess)


def _fits(excess: int | None) -> bool:
    return excess is not None and excess <= 0


def without(notes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A task's own notes, without that of its policy."""
    return {key: value for key, value in notes.items() if key != name}


def _no_text(column: str) -> Reject:
    """The reject of a row that is too long and whose column cannot be cut."""
    return Reject(
        RejectClass.PROMPT_TOO_LONG,
        f"the prompt exceeds the context, and the column {column} holds no text to cut",
    )


def _nothing_fits(column: str) -> Reject:
    """The reject of a row whose prompt is too long without its column."""
    return Reject(
        RejectClass.PROMPT_TOO_LONG,
        f"the prompt exceeds the context even with next to nothing of the column {column}",
    )
