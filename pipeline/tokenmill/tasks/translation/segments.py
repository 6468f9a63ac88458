"""A text as segments to translate, and together again: nothing between them is lost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenmill.tasks.length.splitter import separates_paragraphs, split_evenly

_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text, and the whitespace before it; only a last segment may have no text."""

    before: str
    text: str


def split_segments(
    text: str, budget: int, count_tokens: Callable[[str], int], whole: re.Pattern[str]
) -> list[Segment]:
    """The text's segments, as `split_evenly` cuts it, and the whitespace before each."""
    segments, end = [], 0
    for start, stop in split_evenly(text, budget, count_tokens, whole):
        segments.append(Segment(text[end:start], text[start:stop]))
        end = stop
    return segments if end == len(text) else [*segments, Segment(text[end:], "")]


def join_segments(segments: Sequence[Segment], texts: Sequence[str]) -> str:
    """The whole text, with other texts in place of the segments' own."""
    pairs = zip(segments, texts, strict=True)
    return "".join(segment.before + text for segment, text in pairs)


def one_paragraph(text: str) -> str:
    """The text without blank lines, so that it can take the place of a segment."""

    def without_blank_line(gap: re.Match[str]) -> str:
        return "\n" if separates_paragraphs(gap.group()) else gap.group()

    return _WHITESPACE.sub(without_blank_line, text.strip())
