"""A text in pieces that fit a budget, and together again: nothing between them is lost.

By paragraphs; one that is too long by sentences, then by words, at last by characters. The
whitespace between pieces stays as it is and belongs to none of them. Knows nothing of models: the
caller counts.
"""

# ruff: noqa: RUF001 - the full stops of other scripts look like ours

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_WHITESPACE = re.compile(r"\s+")
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028]")
# Behind a full stop and what closes with it, where whitespace follows; the scripts that write none
# between sentences have full stops of their own. A line that begins a list's item is one, too.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’»)\]]*(\s+)|(?<=[。！？])[」』”）]*(\s*)|(?<!\s)(\s*\n\s*)(?=(?:[-*•]|\d+[.)])\s)"
)
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text, and the whitespace before it; only a last piece may have no text."""

    before: str
    text: str


def split_segments(
    text: str,
    budget: int,
    count_tokens: Callable[[str], int],
    whole: re.Pattern[str] = _NEVER,
) -> list[Segment]:
    """The text's pieces, each within the budget of tokens, as far as it can be cut.

    What `whole` matches is never cut; it holds no whitespace.
    """
    pieces = []
    for paragraph in _paragraphs(text):
        pieces += _fitting(paragraph, budget, count_tokens, whole)
    return pieces


def join_segments(pieces: Sequence[Segment], texts: Sequence[str]) -> str:
    """The whole text, with other texts in the places of the pieces' own."""
    return "".join(piece.before + text for piece, text in zip(pieces, texts, strict=True))


def one_paragraph(text: str) -> str:
    """The text without blank lines, so that it can stand in a piece's place."""

    def narrow(gap: re.Match[str]) -> str:
        return "\n" if _parts_paragraphs(gap.group()) else gap.group()

    return _WHITESPACE.sub(narrow, text.strip())


def _parts_paragraphs(gap: str) -> bool:
    return len(_LINE_END.findall(gap)) > 1 or "\u2029" in gap


def _paragraphs(text: str) -> Iterator[Segment]:
    """What blank lines part; the last has no text where the text ends with whitespace."""
    body = text.strip()
    start = text.index(body) if body else len(text)
    before, begin, end = text[:start], start, start + len(body)
    for gap in _WHITESPACE.finditer(text, start, end):
        if _parts_paragraphs(gap.group()):
            yield Segment(before, text[begin : gap.start()])
            before, begin = gap.group(), gap.end()
    if body:
        yield Segment(before, text[begin:end])
        before = ""
    if before or text[end:]:
        yield Segment(before + text[end:], "")


def _fitting(
    piece: Segment, budget: int, count_tokens: Callable[[str], int], whole: re.Pattern[str]
) -> list[Segment]:
    """Halves of halves until they fit: even pieces, and few texts to count."""
    pending, fitting = [piece], []
    while pending:
        piece = pending.pop()
        cut = None if count_tokens(piece.text) <= budget else _cut(piece.text, whole)
        if cut is None:
            fitting.append(piece)
        else:
            end, start = cut
            second = Segment(piece.text[end:start], piece.text[start:])
            pending += [second, Segment(piece.before, piece.text[:end])]
    return fitting


def _cut(text: str, whole: re.Pattern[str]) -> tuple[int, int] | None:
    """The end of the first half and the start of the second; None for what cannot be cut."""
    middle = len(text) / 2
    for gaps in (_sentence_gaps(text), _spans(_WHITESPACE, text)):
        inner = [gap for gap in gaps if gap[0] > 0 and gap[1] < len(text)]
        if inner:
            return min(inner, key=lambda gap: abs((gap[0] + gap[1]) / 2 - middle))
    place = len(text) // 2
    for start, end in _spans(whole, text):
        if start < place < end:
            place = end if end < len(text) else start
    return (place, place) if 0 < place < len(text) else None


def _sentence_gaps(text: str) -> list[tuple[int, int]]:
    return [match.span(match.lastindex or 0) for match in _SENTENCE_END.finditer(text)]


def _spans(pattern: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    return [match.span() for match in pattern.finditer(text)]
