"""`clean`: a row's texts made cleaner before they are put into prompts, step by step, and counted.

Every step is a pure function from a text to the cleaned text and the number of changes.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.prompter import is_unicode
from pipeline.section import Section

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

_MARKUP = re.compile(r"<!--|</?[A-Za-z]|<![A-Za-z]|&(?:\w{1,32}|#\d{1,8}|#[xX][0-9a-fA-F]{1,6});")
_NO_TEXT = frozenset({"script", "style", "template", "head", "noscript", "iframe", "svg"})
# Elements that stand on lines of their own, and those with a blank line around them.
_LINES = frozenset({"div", "li", "tr", "dt", "dd", "option", "hr", "caption", "figcaption"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "header", "main", "nav", "ol", "p", "pre", "section"}
    | {"table", "ul"}
)
_PRE = frozenset({"pre", "textarea"})
_BLANKS = re.compile(r"[ \t\r\n\f]+")


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


def html(text: str) -> tuple[str, int]:
    """The text that a browser would show, blocks on lines of their own.

    Counts tags, comments and character references; a text without any stays as it is.
    """
    count = sum(1 for _ in _MARKUP.finditer(text))
    if count == 0 or not is_unicode(text):
        return text, 0
    # Only jobs that name the step need the library.
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415

    root = LexborHTMLParser(text).root
    return "" if root is None else _shown(root), count


def pii(text: str) -> tuple[str, int]:
    """With masks such as `[EMAIL]` for what looks like personal data; see `MASKS`."""
    count = 0
    for mask, pattern, is_real in MASKS:

        def masked(match: re.Match[str], mask: str = mask, is_real: _Check = is_real) -> str:
            nonlocal count
            length = is_real(match.group())
            if length == 0:
                return match.group()
            count += 1
            return f"[{mask}]{match.group()[length:]}"

        text = pattern.sub(masked, text)
    return text, count


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


class _Page:
    """Text as it is shown: blanks run together, and blocks ask for the newlines between them."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 0

    def __str__(self) -> str:
        return "".join(self._parts).strip()

    def write(self, text: str) -> None:
        """Text outside of `<pre>`."""
        text = _BLANKS.sub(" ", text)
        if self._newlines or not self._parts or self._parts[-1].endswith((" ", "\n", "\t")):
            text = text.removeprefix(" ")
        self.write_as_it_is(text)

    def write_as_it_is(self, text: str) -> None:
        if not text:
            return
        if self._parts and self._newlines:
            self._parts[-1] = self._parts[-1].removesuffix(" ")
            self._parts.append("\n" * self._newlines)
        self._newlines = 0
        self._parts.append(text)

    def open(self, tag: str) -> None:
        """Begin an element."""
        if tag == "br":
            self.write_as_it_is("\n")
        elif tag in {"td", "th"} and not self._newlines:
            self.write_as_it_is("\t")
        self.close(tag)

    def close(self, tag: str) -> None:
        """End an element: between two blocks the larger distance holds."""
        self._newlines = max(self._newlines, 2 if tag in _BLOCKS else 1 if tag in _LINES else 0)


def _shown(root: Any) -> str:
    """The document's text. Without recursion: it may be nested as deeply as it is long."""
    page = _Page()
    num_pre = 0
    node, entering = root, True
    while node is not None:
        tag = node.tag
        if entering:
            num_pre += tag in _PRE
            if tag == "-text":
                write = page.write_as_it_is if num_pre else page.write
                write(node.text_content or "")
            else:
                page.open(tag)
            if tag not in _NO_TEXT and node.child is not None:
                node = node.child
                continue
        page.close(tag)
        num_pre -= tag in _PRE
        entering = node.next is not None
        node = node.next if entering else node.parent
    return str(page)


#: Says how much of a match is the real thing, from its beginning; 0 for nothing.
_Check = Callable[[str], int]

# Of the IBAN registry: the whole length by country.
_IBAN_LENGTHS = {
    "NO": 15,
    "BE": 16,
    **dict.fromkeys(["DK", "FI", "FK", "FO", "GL", "NL", "SD"], 18),
    **dict.fromkeys(["MK", "SI"], 19),
    **dict.fromkeys(["AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"], 20),
    **dict.fromkeys(["CH", "HR", "LI", "LV"], 21),
    **dict.fromkeys(["BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"], 22),
    **dict.fromkeys(["AE", "GI", "IL", "IQ", "OM", "SO", "TL"], 23),
    **dict.fromkeys(["AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"], 24),
    **dict.fromkeys(["LY", "PT", "ST"], 25),
    **dict.fromkeys(["IS", "TR"], 26),
    **dict.fromkeys(["BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"], 27),
    **dict.fromkeys(["AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"], 28),
    **dict.fromkeys(["BR", "EG", "PS", "QA", "UA"], 29),
    **dict.fromkeys(["JO", "KW", "MU", "YE"], 30),
    **dict.fromkeys(["MT", "SC"], 31),
    "LC": 32,
    "RU": 33,
}
_IBAN_REMAINDER = 1
_IBAN_MODULUS = 97
_PHONE_DIGITS = range(7, 16)


def _whole(match: str) -> int:
    return len(match)


def _iban(match: str) -> int:
    """ISO 13616: the country's length, and the checksum of its digits; letters count from 10."""
    wanted = _IBAN_LENGTHS.get(match[:2], 0)
    positions = [at for at, character in enumerate(match) if character != " "]
    if not 0 < wanted <= len(positions):
        return 0
    length = positions[wanted - 1] + 1
    code = match[:length].replace(" ", "")
    number = int("".join(str(int(character, 36)) for character in code[4:] + code[:4]))
    return length if number % _IBAN_MODULUS == _IBAN_REMAINDER else 0


def _card(match: str) -> int:
    """Luhn's checksum: every second digit from the right counts double, as the sum of its own."""
    digits = [int(character) for character in match if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(match) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits) else 0


def _ipv6(match: str) -> int:
    # `a::b` is an address too, and a name in C++: a digit is asked for.
    if not any(character.isdigit() for character in match):
        return 0
    length = len(match.rstrip(".:")) if not match.endswith("::") else len(match)
    try:
        ipaddress.IPv6Address(match[:length])
    except ValueError:
        return 0
    return length


def _phone(match: str) -> int:
    """The groups from the first on that make no more digits than a number has (E.164)."""
    ends = [group.end() for group in re.finditer(r"[0-9]+", match)]
    counts = accumulate(len(group) for group in re.findall(r"[0-9]+", match))
    return max(
        (end for end, count in zip(ends, counts, strict=True) if count in _PHONE_DIGITS), default=0
    )


#: What `pii` masks, in this order: the mask, what it looks like, and how it is checked. ASCII
#: digits only. No pattern begins inside a word, so that each costs a text's length once.
MASKS: Sequence[tuple[str, re.Pattern[str], _Check]] = (
    (
        "EMAIL",
        re.compile(
            r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}\b"
        ),
        _whole,
    ),
    ("IBAN", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"), _iban),
    ("CARD", re.compile(r"(?<![\w.-])[0-9](?:[ -]?[0-9]){12,18}(?![\w-])", re.ASCII), _card),
    (
        "IP",
        re.compile(
            r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)"
            r"(?:[0-9A-Fa-f:]{2,30}:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f:]{2,39}(?:%\w{1,16})?)"
            r"(?![\w:])",
            re.ASCII,
        ),
        _ipv6,
    ),
    (
        "IP",
        re.compile(
            r"(?<![\w.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}"
            r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?!\.?\w)",
            re.ASCII,
        ),
        _whole,
    ),
    (
        "PHONE",
        re.compile(
            r"(?<![\w+.,-])(?:"
            r"(?:\+|00)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,7}"  # +49 (30) 1234-567
            r"|\(?0[0-9]{1,5}\)?(?:[ ./-][0-9]{2,9}){1,5}"  # 030 1234567, (0171) 23 45 67
            r"|\(?[2-9][0-9]{2}\)?[ .-][0-9]{3}[.-][0-9]{4}"  # (555) 123-4567
            r")(?![\w-])",
            re.ASCII,
        ),
        _phone,
    ),
)
