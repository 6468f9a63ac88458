"""Counts the tokens of a text, and truncates it to a number of tokens. Pure functions.

A text comes with the character spans of its tokens. A cut is always between two characters, even
if one character consists of several tokens. A token that is cut counts on both sides.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenmill.config.length import Keep

TextRange = tuple[int, int]


@dataclass(frozen=True)
class TokenSpans:
    """A text, and the character positions where its tokens start and end, in ascending order."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str, spans: Sequence[TextRange]) -> "TokenSpans":
        """Build from the spans of a tokenizer, which need not be in ascending order."""
        starts = list(accumulate((start for start, _ in spans), max))
        return cls(text, starts, list(accumulate((end for _, end in spans), max)))

    @property
    def num_tokens(self) -> int:
        return len(self.starts)

    def count(self, start: int, end: int) -> int:
        """The number of tokens that overlap the characters from `start` to `end`."""
        if start >= end:
            return 0
        return bisect_left(self.starts, end) - bisect_right(self.ends, start)

    def forward(self, start: int, num_tokens: int) -> int:
        """The last position such that at most `num_tokens` tokens are between it and `start`."""
        following = bisect_right(self.ends, start) + num_tokens
        return (
            len(self.text) if following >= self.num_tokens else max(start, self.starts[following])
        )

    def backward(self, end: int, num_tokens: int) -> int:
        """The first position such that at most `num_tokens` tokens are between it and `end`."""
        preceding = bisect_left(self.starts, end) - 1 - num_tokens
        return 0 if preceding < 0 else min(end, self.ends[preceding])


def truncate_text(spans: TokenSpans, keep: Keep, marker: str, num_tokens: int) -> str:
    """Keep at most `num_tokens` tokens of the text, and put the marker in place of the rest."""
    if num_tokens >= spans.num_tokens:
        return spans.text
    text = spans.text
    if keep == "head":
        return text[: spans.forward(0, num_tokens)] + marker
    if keep == "tail":
        return marker + text[spans.backward(len(text), num_tokens) :]
    num_tail_tokens = num_tokens // 2
    head = text[: spans.forward(0, num_tokens - num_tail_tokens)]
    return head + marker + text[spans.backward(len(text), num_tail_tokens) :]
