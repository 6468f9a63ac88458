"""Whether a translation keeps the numbers of its source, in the number format of any language."""

# ruff: noqa: RUF001 - number separators of other languages look like ASCII ones

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Small numbers are often spelled out: "3 days", « trois jours ».
_MAX_SPELLED_OUT = 12
# Groups of digits, separated by periods, commas or apostrophes, or by a space before three digits.
_NARROW_SPACES = "\u00a0\u2009\u202f"
_WITH_SPACES = re.compile(
    rf"(?<!\d)\d{{1,3}}(?:[ {_NARROW_SPACES}]\d{{3}}(?!\d))+(?:[.,٫]\d+)?|\d+(?:[.,'’٫٬]\d+)*"
)
_WITHOUT_SPACES = re.compile(r"\d+(?:[.,'’٫٬]\d+)*")
_SEPARATOR = re.compile(r"\D")


@dataclass(frozen=True, slots=True)
class _Number:
    """A number's digits, and how many of them are decimals.

    `decimals` is None if the text is ambiguous: 1,234 is above a thousand in English, and between
    one and two in French.
    """

    digits: str
    decimals: int | None

    def may_equal(self, other: "_Number") -> bool:
        """Whether both can be the same number."""
        decimals = {self.decimals, other.decimals} - {None}
        return self.digits == other.digits and len(decimals) <= 1

    @property
    def is_often_spelled_out(self) -> bool:
        """Whether people often write the number as a word."""
        return not self.decimals and int(self.digits) <= _MAX_SPELLED_OUT


def numbers_kept(source: str, translation: str) -> bool:
    """Whether each number of the source is in the translation, in the format of any language.

    Small numbers may be spelled out. The translation may have more numbers, because it may write
    in digits what the source spells out. How often a number occurs is not compared.
    """
    if not any(character.isdigit() for character in source):
        return True
    # "3 500" can be one number or two, in either text.
    return any(
        _contains_all(_numbers(translation, target_pattern), _numbers(source, source_pattern))
        for source_pattern in (_WITH_SPACES, _WITHOUT_SPACES)
        for target_pattern in (_WITH_SPACES, _WITHOUT_SPACES)
    )


def _contains_all(translated: Iterable[_Number], expected: Iterable[_Number]) -> bool:
    candidates = set(translated)
    return all(
        number in candidates
        or number.is_often_spelled_out
        or any(map(number.may_equal, candidates))
        for number in set(expected)
    )


def _numbers(text: str, pattern: re.Pattern[str] = _WITH_SPACES) -> Iterator[_Number]:
    """The numbers of a text, in order. Each part of a date or version is a number of its own."""
    for match in pattern.finditer(text):
        yield from _parse(match.group())


def _parse(written: str) -> Iterator[_Number]:
    groups = [_ascii(group) for group in _SEPARATOR.split(written)]
    separators = _SEPARATOR.findall(written)
    if not separators:
        yield _number(groups, 0)
    elif _are_thousands(groups):
        # A single period or comma can separate thousands or decimals.
        is_ambiguous = len(separators) == 1 and separators[0] in ".,"
        yield _number(groups, None if is_ambiguous else 0)
    elif len(separators) == 1 or (
        separators[-1] not in separators[:-1] and _are_thousands(groups[:-1])
    ):
        yield _number(groups, len(groups[-1]))
    else:
        yield from (_number([group], 0) for group in groups)


def _are_thousands(groups: Sequence[str]) -> bool:
    """Whether the groups can be separated thousands, or lakhs as in India: 12,34,567."""
    first, *inner = groups
    return (
        first.strip("0") != ""
        and len(first) <= 3  # noqa: PLR2004 - digits of a group
        and all(len(group) in (2, 3) for group in inner[:-1])
        and len(groups[-1]) == 3  # noqa: PLR2004
    )


def _number(groups: Sequence[str], decimals: int | None) -> _Number:
    digits = "".join(groups)
    if decimals:
        # 1.50 equals 1.5.
        num_trailing_zeros = len(digits) - len(digits.rstrip("0"))
        num_dropped = min(decimals, num_trailing_zeros)
        digits, decimals = digits[: len(digits) - num_dropped], decimals - num_dropped
    return _Number(digits.lstrip("0") or "0", decimals)


def _ascii(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)
