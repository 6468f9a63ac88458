"""Splits a text between paragraphs if possible, else between sentences, else between words.

`fill_chunks` makes chunks as long as the budget allows, for a model that should see as much of a
text as possible. `split_evenly` makes each paragraph a part and halves those that are too long, for
texts whose parts are joined again. Both cut at the same boundaries.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from tokenmill.config.length import Boundary
from tokenmill.tasks.length.token_spans import TextRange, TokenSpans

_WHITESPACE = re.compile(r"\s+")
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028]")
# A run of characters is matched at most once, so that a page of dots does not take quadratic time.
# Latin, Arabic, Devanagari and Urdu full stops, and closing quotes or brackets after them.
_STOP = "[.!?\u2026\u061f\u0964\u06d4]"
_SENTENCE = (
    rf"(?<!{_STOP}){_STOP}++[\"'\u201d\u2019\u00bb)\]]*+(\s+)"
    # Chinese and Japanese full stops, which are not followed by a space.
    r"|[\u3002\uff01\uff1f]++[\u201d\u2019\u300d\u300f\uff09\u300b]*+(\s*)"
)
_LINE = r"|(?<!\s)(\s*\n\s*)"
_LIST_ITEM = r"(?=(?:[-*\u2022]|\d+[.)])\s)"
_SENTENCES_AND_LINES = re.compile(_SENTENCE + _LINE)
_SENTENCES_AND_ITEMS = re.compile(_SENTENCE + _LINE + _LIST_ITEM)
_NEVER = re.compile(r"(?!)")
_start, _end = itemgetter(0), itemgetter(1)


@dataclass(frozen=True)
class Boundaries:
    """The positions where a text may be cut.

    Each boundary is the range of the whitespace between two parts, which may be empty. With
    `line_breaks`, every line break counts as the end of a sentence. Without it, only a line break
    before a list item does.
    """

    text: str
    line_breaks: bool = True

    @cached_property
    def paragraphs(self) -> list[TextRange]:
        """Blank lines."""
        gaps = _WHITESPACE.finditer(self.text)
        return [gap.span() for gap in gaps if separates_paragraphs(gap.group())]

    @cached_property
    def sentences(self) -> list[TextRange]:
        """The ends of sentences."""
        pattern = _SENTENCES_AND_LINES if self.line_breaks else _SENTENCES_AND_ITEMS
        return [match.span(match.lastindex or 0) for match in pattern.finditer(self.text)]

    @cached_property
    def words(self) -> list[TextRange]:
        """The spaces between words."""
        return [match.span() for match in _WHITESPACE.finditer(self.text)]

    def levels(self, by: Boundary) -> Iterator[list[TextRange]]:
        """The boundaries that `by` allows, the best kind first."""
        if by == "paragraphs":
            yield self.paragraphs
        if by != "tokens":
            yield self.sentences
            yield self.words


def separates_paragraphs(whitespace: str) -> bool:
    """Whether the whitespace contains a blank line or a paragraph separator."""
    return len(_LINE_BREAK.findall(whitespace)) > 1 or "\u2029" in whitespace


def fill_chunks(text: TokenSpans, by: Boundary, num_tokens: int, overlap: int) -> list[TextRange]:
    """Ranges that cover the text, in order, each of at most `num_tokens` tokens.

    Whitespace at a boundary belongs to the chunk before it. A chunk ends at the last boundary of
    the best kind after its first quarter, or between two tokens if there is none. The next chunk
    starts up to `overlap` tokens earlier, at a boundary if there is one. A single character of
    more than `num_tokens` tokens is a chunk of its own.
    """
    boundaries = Boundaries(text.text)
    chunks = []
    start, covered = 0, 0
    while covered < len(text.text):
        limit = text.forward(start, num_tokens)
        if limit <= covered:
            start = covered
            limit = max(text.forward(start, num_tokens), start + 1)
        # Keeps a heading in the same chunk as the paragraph after it.
        earliest = max(covered, text.forward(start, num_tokens // 4))
        end = limit
        if limit < len(text.text):
            end = _last_boundary(boundaries, by, earliest, limit)
        chunks.append((start, end))
        covered = end
        earliest = text.backward(end, overlap)
        start = _first_boundary(boundaries, by, earliest, end) if overlap else end
    return chunks or [(0, 0)]


def _last_boundary(boundaries: Boundaries, by: Boundary, after: int, limit: int) -> int:
    """The end of the last boundary of the best kind in (after, limit], or the limit."""
    for gaps in boundaries.levels(by):
        position = bisect_right(gaps, limit, key=_end) - 1
        if position >= 0 and gaps[position][1] > after:
            return gaps[position][1]
    return limit


def _first_boundary(boundaries: Boundaries, by: Boundary, start: int, before: int) -> int:
    """The end of the first boundary of the best kind in [start, before), or the start."""
    for gaps in boundaries.levels(by):
        position = bisect_left(gaps, start, key=_end)
        if position < len(gaps) and gaps[position][1] < before:
            return gaps[position][1]
    return start


def split_evenly(
    text: str,
    budget: int,
    count_tokens: Callable[[str], int],
    whole: re.Pattern[str] = _NEVER,
) -> list[TextRange]:
    """Split a text into paragraphs, and halve those of more than `budget` tokens until they fit.

    Whitespace at a boundary belongs to no part. Matches of `whole` are never cut, even if they
    exceed the budget. The pattern must not match whitespace.
    """
    boundaries = Boundaries(text, line_breaks=False)
    uncut = [match.span() for match in whole.finditer(text)]
    parts = []
    pending = list(_paragraphs(boundaries))[::-1]
    while pending:
        start, end = pending.pop()
        cut = None
        if count_tokens(text[start:end]) > budget:
            cut = _middle(boundaries, start, end, uncut)
        if cut is None:
            parts.append((start, end))
        else:
            pending += [(cut[1], end), (start, cut[0])]
    return parts


def _paragraphs(boundaries: Boundaries) -> Iterator[TextRange]:
    """The paragraphs without the whitespace around them."""
    text = boundaries.text
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    for gap_start, gap_end in boundaries.paragraphs:
        if start < gap_start and gap_end < end:
            yield start, gap_start
            start = gap_end
    if start < end:
        yield start, end


def _middle(
    boundaries: Boundaries, start: int, end: int, uncut: Sequence[TextRange]
) -> TextRange | None:
    """The boundary nearest to the middle of a part. None if the part cannot be cut."""
    for gaps in (boundaries.sentences, boundaries.words):
        first, stop = bisect_right(gaps, start, key=_start), bisect_left(gaps, end, key=_end)
        if first < stop:
            after = bisect_left(gaps, start + end, first, stop, key=sum)
            nearest = gaps[max(first, after - 1) : min(stop, after + 1)]
            return min(nearest, key=lambda gap: abs(sum(gap) - start - end))
    middle = (start + end) // 2
    index = bisect_left(uncut, middle, key=_end)
    if index < len(uncut) and uncut[index][0] < middle < uncut[index][1]:
        middle = uncut[index][1] if uncut[index][1] < end else uncut[index][0]
    return (middle, middle) if start < middle < end else None
