"""Splits a text into segments to translate, and joins them without losing what is between."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenmill.tasks.length.splitter import separates_paragraphs, split_evenly

_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text, and the whitespace before it. Only the last segment may have no text."""

    before: str
    text: str


def split_segments(
    text: str, budget: int, count_tokens: Callable[[str], int], whole: re.Pattern[str]
) -> list[Segment]:
    """Split a text with `split_evenly`, and keep the whitespace before each segment.

    A segment has at most `budget` tokens. Matches of `whole` are never cut.
    """
    segments, end = [], 0
    for start, stop in split_evenly(text, budget, count_tokens, whole):
        segments.append(Segment(text[end:start], text[start:stop]))
        end = stop
    return segments if end == len(text) else [*segments, Segment(text[end:], "")]


def join_segments(segments: Sequence[Segment], texts: Sequence[str]) -> str:
    """The whole text, with `texts` in place of the segments' texts."""
    pairs = zip(segments, texts, strict=True)
    return "".join(segment.before + text for segment, text in pairs)


def one_paragraph(text: str) -> str:
    """The text without blank lines, so that it can replace a single segment."""

    def without_blank_line(gap: re.Match[str]) -> str:
        return "\n" if separates_paragraphs(gap.group()) else gap.group()

    return _WHITESPACE.sub(without_blank_line, text.strip())
