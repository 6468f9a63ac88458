"""Cutting a text to tokens: its head, tail or both ends, or chunks of it. Pure functions.

A text is known by the character spans of its tokens. Cuts stand between characters, never inside
of one whose bytes are several tokens; a token that a cut divides counts on both sides.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from tokenmill.config.length import Boundary, Keep

TextRange = tuple[int, int]
# Each matches what stands before a boundary. A run begins once, or a page of dots costs its square.
_PARAGRAPH = re.compile(r"\n\s*\n\s*|\u2029\s*")
_SENTENCE = re.compile(
    # Latin, Arabic, Devanagari and Urdu full stops, and the quotes that close behind them.
    r"(?<![.!?\u2026])[.!?\u2026\u061f\u0964\u06d4]++[\"'\u201d\u2019\u00bb)\]]*+\s+"
    # Chinese and Japanese ones, behind which no blank stands.
    r"|[\u3002\uff01\uff1f]++[\u201d\u2019\u300d\u300f\uff09\u300b]*+\s*"
    r"|\n\s*"
)
_WORD = re.compile(r"\s+")


@dataclass(frozen=True)
class TokenSpans:
    """A text and where its tokens begin and end, in characters; neither ever goes back."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str, spans: Sequence[TextRange]) -> "TokenSpans":
        """From the tokens' spans as a tokenizer gives them."""
        starts = list(accumulate((start for start, _ in spans), max))
        return cls(text, starts, list(accumulate((end for _, end in spans), max)))

    @property
    def num_tokens(self) -> int:
        return len(self.starts)

    def count(self, start: int, end: int) -> int:
        """How many tokens have a part in the characters from `start` to `end`."""
        if start >= end:
            return 0
        return bisect_left(self.starts, end) - bisect_right(self.ends, start)

    def forward(self, start: int, num_tokens: int) -> int:
        """The farthest position to which at most so many tokens lead from `start`."""
        behind = bisect_right(self.ends, start) + num_tokens
        return len(self.text) if behind >= self.num_tokens else max(start, self.starts[behind])

    def backward(self, end: int, num_tokens: int) -> int:
        """The farthest position back to which at most so many tokens lead from `end`."""
        before = bisect_left(self.starts, end) - 1 - num_tokens
        return 0 if before < 0 else min(end, self.ends[before])

    @cached_property
    def paragraphs(self) -> list[int]:
        """Where paragraphs begin."""
        return [match.end() for match in _PARAGRAPH.finditer(self.text)]

    @cached_property
    def sentences(self) -> list[int]:
        """Where sentences and lines begin."""
        return [match.end() for match in _SENTENCE.finditer(self.text)]

    @cached_property
    def words(self) -> list[int]:
        """Where words begin, in scripts that write spaces."""
        return [match.end() for match in _WORD.finditer(self.text)]

    def boundaries(self, by: Boundary) -> Iterator[list[int]]:
        """Where a chunk may end, the best kind first."""
        if by == "paragraphs":
            yield self.paragraphs
        if by != "tokens":
            yield self.sentences
            yield self.words


def truncate_text(measured: TokenSpans, keep: Keep, marker: str, num_tokens: int) -> str:
    """At most so many of the text's tokens, and the marker where the others were."""
    if num_tokens >= measured.num_tokens:
        return measured.text
    text = measured.text
    if keep == "head":
        return text[: measured.forward(0, num_tokens)] + marker
    if keep == "tail":
        return marker + text[measured.backward(len(text), num_tokens) :]
    in_tail = num_tokens // 2
    head = text[: measured.forward(0, num_tokens - in_tail)]
    return head + marker + text[measured.backward(len(text), in_tail) :]


def chunks(measured: TokenSpans, by: Boundary, num_tokens: int, overlap: int) -> list[TextRange]:
    """Spans of the text, in order, that cover it: each of at most so many tokens.

    A chunk ends at the last boundary of the wanted kind behind its first quarter; where there is
    none, at a sentence's or word's end, or between two tokens. The next one begins up to `overlap`
    tokens earlier, at a boundary where there is one. A single character of more tokens than
    `num_tokens` is a chunk all the same.
    """
    spans = []
    start, covered = 0, 0
    while covered < len(measured.text):
        limit = measured.forward(start, num_tokens)
        if limit <= covered:
            start = covered
            limit = max(measured.forward(start, num_tokens), start + 1)
        # A heading before a long paragraph is no chunk of its own.
        least = max(covered, measured.forward(start, num_tokens // 4))
        end = limit if limit == len(measured.text) else _end(measured, by, least, limit)
        spans.append((start, end))
        covered = end
        start = _begin(measured, by, end, overlap)
    return spans or [(0, 0)]


def _end(measured: TokenSpans, by: Boundary, least: int, limit: int) -> int:
    """The last boundary of the best kind that lies behind `least`; else the limit itself."""
    return _first_of(measured, by, lambda places: _last(places, least, limit), limit)


def _begin(measured: TokenSpans, by: Boundary, end: int, overlap: int) -> int:
    """Where the chunk behind `end` begins."""
    if overlap == 0:
        return end
    limit = measured.backward(end, overlap)
    return _first_of(measured, by, lambda places: _next(places, limit, end), limit)


def _first_of(
    measured: TokenSpans, by: Boundary, choose: Callable[[list[int]], int | None], otherwise: int
) -> int:
    for places in measured.boundaries(by):
        place = choose(places)
        if place is not None:
            return place
    return otherwise


def _last(places: Sequence[int], after: int, upto: int) -> int | None:
    """The last of the ordered places in (after, upto]."""
    position = bisect_right(places, upto) - 1
    return places[position] if position >= 0 and places[position] > after else None


def _next(places: Sequence[int], since: int, before: int) -> int | None:
    """The first of the ordered places in [since, before)."""
    position = bisect_left(places, since)
    return places[position] if position < len(places) and places[position] < before else None
