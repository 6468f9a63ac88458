"""`clean`: clean a row's texts before they are put into prompts, and count the changes.

Each step is a pure function from a text to the cleaned text and the number of changes.
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
#: The output column: how often each step changed something in the row's texts.
CLEANED_FIELD = pa.field("cleaned", pa.map_(pa.string(), pa.int32()))


class Clean(Section):
    """Which columns are cleaned before the prompt is rendered, and by which steps, in order."""

    columns: tuple[str, ...] = Field(min_length=1)
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _without_duplicates(self) -> "Clean":
        for key, names in (("columns", self.columns), ("steps", self.steps)):
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: a name is repeated")
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


# ANSI sequences are removed whole; otherwise their letters and digits would remain as text.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*+[ -/]*+[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]"
)
_LINE_END = re.compile(r"\r\n?|\x85")
_SPACE = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_TRAILING = re.compile(rf"(?<!{_SPACE}){_SPACE}++(?=\n|\Z)")
_RUN = re.compile(rf"{_SPACE}{{2,}}")
_NEWLINES = re.compile(r"\n{3,}")


def nfc(text: str) -> tuple[str, int]:
    """Compose characters (Unicode's NFC); counts those, with their marks, that were changed."""
    if unicodedata.is_normalized("NFC", text):
        return text, 0
    changed = sum(not unicodedata.is_normalized("NFC", part) for part in _with_marks(text))
    # Some characters compose with a neighbor that is not a mark.
    return unicodedata.normalize("NFC", text), max(1, changed)


def control(text: str) -> tuple[str, int]:
    r"""Remove control characters and terminal colors, keep `\t`, and end all lines with `\n`."""
    text, ends = _LINE_END.subn("\n", text)
    text, removed = _CONTROL.subn("", text)
    return text, ends + removed


def whitespace(text: str) -> tuple[str, int]:
    """One space for each run of blanks, none at the end of a line, at most one blank line."""
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
    """Each character with the combining marks, or parts of a Hangul syllable, that follow it."""
    start = 0
    for index, character in enumerate(text):
        if not (unicodedata.combining(character) or "\u1160" <= character <= "\u11ff"):
            if index > start:
                yield text[start:index]
            start = index
    yield text[start:]
