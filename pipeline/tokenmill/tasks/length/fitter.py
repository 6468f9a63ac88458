"""Finds prompts that exceed the context, and shortens one column of their rows until they fit.

The needed tokens are those of the first requests of the row's dialogue, which is started and then
closed. They include what the task appends to the prompt, and the longest answer.
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

# Each attempt narrows the search range. Most prompts take three.
_MAX_ATTEMPTS = 12
# The length of the first attempt, which shows roughly what the prompt needs without its text.
_PROBE_TOKENS = 16
# The search stops if at most this many tokens of the context are unused.
_SLACK_TOKENS = 4
#: The number of tokens of a text that fit, and the entry of the row with them.
Fit = tuple[int, PreparedRow | Reject]


@dataclass(frozen=True, slots=True)
class LongText:
    """A row whose column must be shortened. `excess` is `Fitter.excess` of the whole row."""

    row: Row
    text: TokenSpans
    excess: int | None


class Fitter:
    """Prepares rows with shorter texts in one column until their prompts fit."""

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
                    f"{step.key_prefix}length: without a limit the text leaves no room for the "
                    "answer; set one of sampling.max_tokens and length.max_tokens"
                )
        elif policy.max_tokens + longest_answer(step) >= context.max_model_len:
            raise UserError(
                f"{step.key_prefix}length.max_tokens: {policy.max_tokens} and the answer leave "
                f"nothing of the context of {context.max_model_len} for the rest of the prompt; "
                "lower it"
            )

    def measure(self, texts: Sequence[str]) -> list[TokenSpans]:
        """Tokenize the texts."""
        spans = self._context.tokenizer.token_spans(texts)
        return [TokenSpans.of(text, ranges) for text, ranges in zip(texts, spans, strict=True)]

    def excess(self, entry: PreparedRow | Reject) -> int | None:
        """By how many tokens the entry exceeds the context. None if that is unknown.

        At most 0 if the entry fits, or is rejected for a reason other than its length.
        """
        if isinstance(entry, Reject):
            return None if entry.reject_class is RejectClass.PROMPT_TOO_LONG else 0
        return max(map(self._contexts.excess, first_round(self._task, entry)), default=0)

    def fits(self, entry: PreparedRow | Reject) -> bool:
        """Whether the entry need not be shortened: it fits, or is rejected for another reason."""
        return _fits(self.excess(entry))

    def share_that_fits(self, entry: PreparedRow | Reject) -> float:
        """Estimate the share of the text that fits, assuming that the prompt is nothing else."""
        excess = self.excess(entry)
        if excess is None:
            return 0.5
        limit = self._context.max_model_len
        return 1.0 if excess <= 0 else min(0.9, limit / (limit + excess))

    def long_texts(
        self, rows: Sequence[Row], entries: Sequence[PreparedRow | Reject]
    ) -> dict[int, LongText | Reject]:
        """The rows that do not fit or exceed the policy's `max_tokens`, by position.

        A row whose column has no text to shorten gets a reject.
        """
        outcomes: dict[int, LongText | Reject] = {}
        candidates = {}
        for position, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            excess = self.excess(entry)
            if isinstance(row[self._column], str):
                if not _fits(excess) or self._may_exceed(entry):
                    candidates[position] = excess
            elif not _fits(excess):
                outcomes[position] = _no_text(self._column)
        texts = self.measure([rows[position][self._column] for position in candidates])
        for (position, excess), text in zip(candidates.items(), texts, strict=True):
            if not _fits(excess) or text.num_tokens > (self._max_tokens or 0):
                outcomes[position] = LongText(rows[position], text, excess)
        return outcomes

    def _may_exceed(self, entry: PreparedRow | Reject) -> bool:
        """Whether the column may exceed `max_tokens`. A prompt has at least its text's tokens."""
        if self._max_tokens is None or isinstance(entry, Reject):
            return False
        return sum(map(len, entry.prompts)) > self._max_tokens

    def with_texts(self, rows: Sequence[Row], texts: Sequence[str]) -> list[PreparedRow | Reject]:
        """Prepare the rows with other texts in the column."""
        return self._task.prepare(
            [{**row, self._column: text} for row, text in zip(rows, texts, strict=True)]
        )

    def shorten(
        self,
        long_texts: Sequence[LongText],
        cut: Callable[[TokenSpans, int], str],
        max_tokens: int | None,
    ) -> list[Fit | Reject]:
        """Find the longest cut of each text that fits, of at most `max_tokens` tokens.

        `cut` shortens a text to a number of tokens. A row gets a reject if no cut fits.
        """
        searches = [_search(long, max_tokens) for long in long_texts]
        for _ in range(_MAX_ATTEMPTS):
            active = [search for search in searches if not search.is_done]
            if not active:
                break
            lengths = [search.next() for search in active]
            entries = self.with_texts(
                [search.long.row for search in active],
                [
                    cut(search.long.text, tokens)
                    for search, tokens in zip(active, lengths, strict=True)
                ],
            )
            for search, tokens, entry in zip(active, lengths, entries, strict=True):
                search.record(tokens, entry, self.excess(entry))
        return [_nothing_fits(self._column) if s.best is None else s.best for s in searches]


@dataclass(slots=True)
class _Search:
    """Searches for the largest number of tokens that fits, between `best` and `too_many`.

    With nearly all templates a prompt grows linearly with the text, so linear interpolation
    between two attempts finds the number.
    """

    long: LongText
    first: int
    too_many: int
    excess_of_too_many: int | None
    best: Fit | None = None
    excess_of_best: int = 0
    num_attempts: int = 0

    @property
    def is_done(self) -> bool:
        if self.best is None:
            return self.too_many <= 1
        return self.too_many - self.best[0] <= 1 or self.excess_of_best >= -_SLACK_TOKENS

    def next(self) -> int:
        """The number of tokens to try next."""
        if self.num_attempts == 0:
            return self.first
        if self.best is None:
            return min(_PROBE_TOKENS, self.too_many // 2)
        low, high = self.best[0], self.too_many
        if self.excess_of_too_many is None:
            return (low + high) // 2
        slope = (self.excess_of_too_many - self.excess_of_best) / (high - low)
        return min(high - 1, max(low + 1, low + int(-self.excess_of_best / slope)))

    def record(self, tokens: int, entry: PreparedRow | Reject, excess: int | None) -> None:
        """Record the result of an attempt."""
        self.num_attempts += 1
        if excess is not None and excess <= 0:
            self.best, self.excess_of_best = (tokens, entry), excess
        else:
            self.too_many, self.excess_of_too_many = tokens, excess


def _search(long: LongText, max_tokens: int | None) -> _Search:
    num_tokens = long.text.num_tokens
    if max_tokens is not None and max_tokens < num_tokens:
        return _Search(long, max_tokens, max_tokens + 1, None)
    # The whole text does not fit.
    return _Search(long, min(_PROBE_TOKENS, num_tokens // 2), num_tokens, long.excess)


def _fits(excess: int | None) -> bool:
    return excess is not None and excess <= 0


def without_note(notes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The notes without the one called `name`."""
    return {key: value for key, value in notes.items() if key != name}


def _no_text(column: str) -> Reject:
    """The reject for a row that is too long and whose column has no text to shorten."""
    return Reject(
        RejectClass.PROMPT_TOO_LONG,
        f"the prompt exceeds the context, and the column {column} holds no text to cut",
    )


def _nothing_fits(column: str) -> Reject:
    """The reject for a row whose prompt is too long even without its column."""
    return Reject(
        RejectClass.PROMPT_TOO_LONG,
        f"the prompt exceeds the context even with almost no text in the column {column}",
    )
