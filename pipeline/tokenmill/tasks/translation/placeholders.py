"""Replaces spans that a model must not change with numbered marks like ⟦1⟧, and restores them.

Marks that the text already contains are masked as well, so that every text can be restored.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: A mark. Models sometimes add spaces inside it. Its number is that of the span, from 1.
PLACEHOLDER = re.compile(r"⟦\s*(\d{1,9})\s*⟧")


class Protected(StrEnum):
    """The kinds of spans that can be protected."""

    CODE = "code"
    URLS = "urls"
    PLACEHOLDERS = "placeholders"
    MARKUP = "markup"


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text with marks, and the spans that they replace."""

    text: str
    spans: tuple[str, ...]


# Every repetition is bounded, or ends at the character that starts the next attempt, so that even
# hostile texts take linear time.
_PATTERNS = {
    Protected.CODE: (
        # As in Markdown, a fence that is never closed extends to the end of the text.
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
        # Not in "5%de", where % means percent.
        r"(?<![\d%])%(?:\(\w{1,100}\)|\d\$)?[-+#0]?\d{0,4}(?:\.\d{1,4})?l{0,2}[sdifgeuxXcra@](?![A-Za-z])",
        r"</?\d{1,9}/?>",
    ),
    Protected.MARKUP: (
        r"</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>",
        # Control tokens of chat models, which mark turns.
        r"<\|[^<>|\s]{1,50}\|>|\[/?INST\]",
        r"<!--(?:[^-<]|-(?!->)|<(?!!--))*-->",
        r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]\w{1,30});",
    ),
}
_EXISTING_MARKS = r"⟦\s*\d{1,9}\s*⟧|[⟦⟧]"


class PlaceholderMask:
    """Masks the given kinds of spans."""

    def __init__(self, kinds: Iterable[Protected]) -> None:
        patterns = [
            pattern for kind in Protected if kind in set(kinds) for pattern in _PATTERNS[kind]
        ]
        # Adjacent spans share a mark, because models lose fewer marks if there are fewer.
        self._spans = re.compile(f"(?:{'|'.join([*patterns, _EXISTING_MARKS])})+", re.MULTILINE)

    def mask(self, text: str) -> MaskedText:
        """Replace each protected span with a mark."""
        spans: list[str] = []

        def mark(match: re.Match[str]) -> str:
            spans.append(match.group())
            return f"⟦{len(spans)}⟧"

        return MaskedText(self._spans.sub(mark, text), tuple(spans))


def restore_placeholders(text: str, spans: Sequence[str]) -> str:
    """Replace each mark with its span. Marks with an unknown number stay."""

    def span(match: re.Match[str]) -> str:
        number = int(match.group(1))
        return spans[number - 1] if 1 <= number <= len(spans) else match.group()

    return PLACEHOLDER.sub(span, text)


def placeholder_counts(text: str) -> Counter[int]:
    """How often each mark occurs in the text, by number."""
    return Counter(int(number) for number in PLACEHOLDER.findall(text))


def without_placeholders(text: str) -> str:
    """The text with a space in place of each mark."""
    return PLACEHOLDER.sub(" ", text)
