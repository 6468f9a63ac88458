"""The tokens of a text, and cutting it to a number of them. Pure functions.

A text comes with the character spans of its tokens. Cuts are between characters, never inside one
whose bytes are several tokens. A token that a cut divides counts on both sides.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenmill.config.length import Keep

TextRange = tuple[int, int]


@dataclass(frozen=True)
class TokenSpans:
    """A text, and where its tokens begin and end in characters, in ascending order."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str, spans: Sequence[TextRange]) -> "TokenSpans":
        """Make it from the spans that a tokenizer returns, which may go back."""
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
        """The last position that at most `num_tokens` tokens after `start` reach."""
        behind = bisect_right(self.ends, start) + num_tokens
        return len(self.text) if behind >= self.num_tokens else max(start, self.starts[behind])

    def backward(self, end: int, num_tokens: int) -> int:
        """The first position that at most `num_tokens` tokens before `end` reach."""
        before = bisect_left(self.starts, end) - 1 - num_tokens
        return 0 if before < 0 else min(end, self.ends[before])


def truncate_text(spans: TokenSpans, keep: Keep, marker: str, num_tokens: int) -> str:
    """At most `num_tokens` tokens of the text, with the marker in place of the others."""
    if num_tokens >= spans.num_tokens:
        return spans.text
    text = spans.text
    if keep == "head":
        return text[: spans.forward(0, num_tokens)] + marker
    if keep == "tail":
        return marker + text[spans.backward(len(text), num_tokens) :]
    in_tail = num_tokens // 2
    head = text[: spans.forward(0, num_tokens - in_tail)]
    return head + marker + text[spans.backward(len(text), in_tail) :]
