"""`clean`: a row's texts made cleaner before they are put into prompts, step by step, and counted.

Every step is a pure function from a text to the cleaned text and the number of changes.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.section import Section
from tokenmill.prompt.cleaning.html import html
from tokenmill.prompt.cleaning.pii import pii

Step = Literal["nfc", "control", "whitespace", "html", "pii"]
#: How often each step changed something in the row's texts.
CLEANED_FIELD = pa.field("cleaned", pa.map_(pa.string(), pa.int32()))


class Clean(Section):
    """Which columns are cleaned before the prompt is made, and how, in order."""

    columns: tuple[str, ...] = Field(min_length=1)
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "Clean":
        for key, names in (("columns", self.columns), ("steps", self.steps)):
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: one stands twice")
        return self

    def apply(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """The row with its texts cleaned, and the number of changes by step."""
        cleaned, counts = dict(row), dict.fromkeys(map(str, self.steps), 0)
        for column in self.columns:
            value = row.get(column)
            if not isinstance(value, str):
                continue
            for step in self.steps:
                value, count = _STEPS[step](value)
                counts[step] += count
            cleaned[column] = value
        return cleaned, counts


# An ANSI sequence is taken out whole, or its letters and digits would stay as text.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*+[ -/]*+[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]"
)
_LINE_END = re.compile(r"\r\n?|\x85")
_SPACE = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_TRAILING = re.compile(rf"(?<!{_SPACE}){_SPACE}++(?=\n|\Z)")
_RUN = re.compile(rf"{_SPACE}{{2,}}")
_NEWLINES = re.compile(r"\n{3,}")


def nfc(text: str) -> tuple[str, int]:
    """Unicode's composed form; counts the characters, with their marks, that it writes anew."""
    if unicodedata.is_normalized("NFC", text):
        return text, 0
    changed = sum(not unicodedata.is_normalized("NFC", part) for part in _with_marks(text))
    # Some characters compose with a neighbour that is no mark.
    return unicodedata.normalize("NFC", text), max(1, changed)


def control(text: str) -> tuple[str, int]:
    r"""Without control characters and terminal colours; `\n` for all line ends. Keeps `\t`."""
    text, ends = _LINE_END.subn("\n", text)
    text, removed = _CONTROL.subn("", text)
    return text, ends + removed


def whitespace(text: str) -> tuple[str, int]:
    """One space for a run of them, none at a line's end, at most one blank line."""
    text, trailing = _TRAILING.subn("", text)
    text, runs = _RUN.subn(" ", text)
    text, newlines = _NEWLINES.subn("\n\n", text)
    return text, trailing + runs + newlines


_STEPS: Mapping[Step, Callable[[str], tuple[str, int]]] = {
    "nfc": nfc,
    "control": control,
    "whitespace": whitespace,
    "html": html,
    "pii": pii,
}


def _with_marks(text: str) -> Iterator[str]:
    """Each character with the combining marks, or the parts of a Hangul syllable, behind it."""
    start = 0
    for at, character in enumerate(text):
        if not (unicodedata.combining(character) or "\u1160" <= character <= "\u11ff"):
            if at > start:
                yield text[start:at]
            start = at
    yield text[start:]
