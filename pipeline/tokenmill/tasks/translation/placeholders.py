"""Spans that a model must not touch: marks like ⟦1⟧ in their place, and themselves back again.

Marks that a text holds itself are spans like others, so that any text comes back as it was.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: A mark, also as models write it; its number is that of the span, from 1.
PLACEHOLDER = re.compile(r"⟦\s*(\d{1,9})\s*⟧")


class Protected(StrEnum):
    """What can be protected."""

    CODE = "code"
    URLS = "urls"
    PLACEHOLDERS = "placeholders"
    MARKUP = "markup"


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with marks, and the spans that they stand for."""

    text: str
    spans: tuple[str, ...]


# Every repetition is bounded, or ends at the character that begins the next try: hostile texts
# cost no more than linear time.
_PATTERNS = {
    Protected.CODE: (
        # A fence that is never closed goes to the end, as Markdown has it.
        r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*(?:\n(?s:.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)|\Z)",
        r"(?<!`)(?P<ticks>`{1,8})(?!`)[^\n]{1,2000}?(?<!`)(?P=ticks)(?!`)",
        r"<(?P<tag>pre|code)\b[^<>]*>(?:[^<]|<(?!/?(?:pre|code)\b))*</(?P=tag)>",
    ),
    Protected.URLS: (
        r"\b(?:https?|ftp)://[^\s<>\"`⟦⟧\u3000-\u9fff\uff00-\uffef]*[^\s<>\"`⟦⟧\u3000-\u9fff\uff00-\uffef'.,;:!?)\]}*_]",
        r"\bwww\.[\w-]{1,63}(?:\.[\w-]{1,63}){1,9}(?:/[^\s<>\"`⟦⟧]*[^\s<>\"`⟦⟧'.,;:!?)\]}*_])?",
        r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,9}",
    ),
    Protected.PLACEHOLDERS: (
        r"\{\{[^{}\n]{0,200}\}\}",
        r"\{[%#][^{}\n]{0,200}[%#]\}",
        r"\$\{[^{}\s]{1,200}\}",
        r"(?<![\w$])\$[A-Za-z_]\w*",
        r"\{\d*\}|\{[A-Za-z_][\w.\[\]]{0,100}(?:![rsa])?(?::[^{}\s]{0,50})?\}",
        # Not in "5%de": there the percent sign is one.
        r"(?<![\d%])%(?:\(\w{1,100}\)|\d\$)?[-+#0]?\d{0,4}(?:\.\d{1,4})?l{0,2}[sdifgeuxXcra@](?![A-Za-z])",
        r"</?\d{1,9}/?>",
    ),
    Protected.MARKUP: (
        r"</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>",
        # What chat models take for their own turns and ends.
        r"<\|[^<>|\s]{1,50}\|>|\[/?INST\]",
        r"<!--(?:[^-<]|-(?!->)|<(?!!--))*-->",
        r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]\w{1,30});",
    ),
}
_OWN_MARKS = r"⟦\s*\d{1,9}\s*⟧|[⟦⟧]"


class PlaceholderMask:
    """Protects the given kinds of spans."""

    def __init__(self, kinds: Iterable[Protected]) -> None:
        patterns = [
            pattern for kind in Protected if kind in set(kinds) for pattern in _PATTERNS[kind]
        ]
        # Neighbours become one mark: the fewer there are, the fewer are lost.
        self._spans = re.compile(f"(?:{'|'.join([*patterns, _OWN_MARKS])})+", re.MULTILINE)

    def mask(self, text: str) -> MaskedText:
        """The text with a mark in the place of each span."""
        spans: list[str] = []

        def mark(match: re.Match[str]) -> str:
            spans.append(match.group())
            return f"⟦{len(spans)}⟧"

        return MaskedText(self._spans.sub(mark, text), tuple(spans))


def restore_placeholders(text: str, spans: Sequence[str]) -> str:
    """The text with the spans in the place of their marks; a mark of none stays."""

    def span(match: re.Match[str]) -> str:
        number = int(match.group(1))
        return spans[number - 1] if 1 <= number <= len(spans) else match.group()

    return PLACEHOLDER.sub(span, text)


def placeholder_counts(text: str) -> Counter[int]:
    """How often each mark stands in a text."""
    return Counter(int(number) for number in PLACEHOLDER.findall(text))


def without_placeholders(text: str) -> str:
    """What is left for people to read."""
    return PLACEHOLDER.sub(" ", text)
