"""Whether a translation can be trusted, as far as that is seen without reading it.

Checks of strings against strings; none knows the right translation.
"""

# ruff: noqa: RUF001 - the separators of other languages' numbers look like ours

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenmill.tasks.translation.languages import Detected, detect
from tokenmill.tasks.translation.placeholders import placeholder_counts, without_placeholders


class Check(StrEnum):
    """What can fail. Stable names: users filter on them."""

    EMPTY = "empty"
    CUT = "cut"
    LANGUAGE = "language"
    LENGTH = "length"
    NUMBERS = "numbers"
    PLACEHOLDERS = "placeholders"
    REPETITION = "repetition"


# Measured on human translations of short texts into French, German, Italian and Japanese: above it
# one right language in 400 is taken for another; below it a third of them are.
_SURE = 0.5
# Characters by which a length may differ whatever the ratio is: of short texts it says little.
_LENGTH_SLACK = 10
# Of 12,000 human translations one repeats more; a loop comes to half of its text, and soon to all.
_MAX_REPETITION = 0.3
_NGRAM = 4
# Small counts are often written out: "3 days", « trois jours ».
_MAX_WRITTEN_OUT = 12
# Scripts whose characters say about as much as two of an alphabet's, and part no words.
_WIDE = r"\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60"
_WIDE_CHARACTER = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]")
_WORD = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]|[^\\W{_WIDE}]+")
# Digits in groups: parted by stops, commas, apostrophes, and by spaces where three digits follow.
_NARROW_SPACES = "\u00a0\u2009\u202f"
_GROUPED = re.compile(
    rf"(?<!\d)\d{{1,3}}(?:[ {_NARROW_SPACES}]\d{{3}}(?!\d))+(?:[.,٫]\d+)?|\d+(?:[.,'’٫٬]\d+)*"
)
_NOT_SPACED = re.compile(r"\d+(?:[.,'’٫٬]\d+)*")
_SEPARATOR = re.compile(r"\D")


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """What a translation is held against: its language, and its length by that of the source."""

    to: str
    min_ratio: float
    max_ratio: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the checks say of one translation."""

    failed: frozenset[Check]
    language: Detected | None
    length_ratio: float | None
    repetition: float


def check(source: str, translation: str, is_cut: bool, limits: CheckLimits) -> CheckReport:
    """All checks of a text's translation, both with the marks of their protected spans."""
    plain_source, plain = without_placeholders(source), without_placeholders(translation)
    language = detect(plain)
    repetition = repeated_share(plain)
    if repetition:
        repetition = max(0.0, repetition - repeated_share(plain_source))
    fails = {
        Check.EMPTY: not translation.strip(),
        Check.CUT: is_cut,
        Check.LANGUAGE: _is_wrong(language, limits),
        Check.LENGTH: not _fits(length(plain_source), length(plain), limits),
        Check.NUMBERS: not numbers_kept(plain_source, plain),
        Check.PLACEHOLDERS: placeholder_counts(source) != placeholder_counts(translation),
        Check.REPETITION: repetition > _MAX_REPETITION,
    }
    return CheckReport(
        frozenset(name for name, has_failed in fails.items() if has_failed),
        language,
        length_ratio(plain_source, plain),
        repetition,
    )


def check_whole(
    source: str, translation: str, parts: Sequence[CheckReport], limits: CheckLimits
) -> CheckReport:
    """Of a text whose parts were checked: the language and the length are those of the whole."""
    if len(parts) == 1:
        return parts[0]
    plain_source, plain = without_placeholders(source), without_placeholders(translation)
    language = detect(plain)
    failed = set[Check]().union(*(part.failed for part in parts))
    if _is_wrong(language, limits):
        failed.add(Check.LANGUAGE)
    if not _fits(length(plain_source), length(plain), limits):
        failed.add(Check.LENGTH)
    return CheckReport(
        frozenset(failed),
        language,
        length_ratio(plain_source, plain),
        max(part.repetition for part in parts),
    )


def _is_wrong(language: Detected | None, limits: CheckLimits) -> bool:
    return language is not None and language.score >= _SURE and not language.is_near(limits.to)


def length(text: str) -> int:
    """Characters, those of Chinese, Japanese and Korean counted twice."""
    return len(text) + len(_WIDE_CHARACTER.findall(text))


def length_ratio(source: str, translation: str) -> float | None:
    """The translation's length by the source's; None for an empty source."""
    return length(translation) / length(source) if source else None


def _fits(source: int, translation: int, limits: CheckLimits) -> bool:
    low, high = limits.min_ratio * source, limits.max_ratio * source
    return low - _LENGTH_SLACK <= translation <= high + _LENGTH_SLACK


def repeated_share(text: str) -> float:
    """The share of a text's four-word sequences that stood in it before: a loop comes near 1."""
    words = _WORD.findall(text.casefold())
    grams = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True)
class Number:
    """A number's digits, and how many of them are decimals.

    None where both ways of reading it are right: 1,234 is a thousand and more in English, and one
    and a bit in French.
    """

    digits: str
    decimals: int | None

    def may_be(self, other: "Number") -> bool:
        """Whether both can be the same number."""
        known = {self.decimals, other.decimals} - {None}
        return self.digits == other.digits and len(known) <= 1

    @property
    def is_written_out(self) -> bool:
        """Whether people often write it in letters."""
        return not self.decimals and int(self.digits) <= _MAX_WRITTEN_OUT


def numbers_kept(source: str, translation: str) -> bool:
    """Whether each of the source's numbers is in the translation, in any language's writing.

    Small ones may be written out; new ones may come, since what was written out may be in digits;
    how often one stands there may change.
    """
    if not any(character.isdigit() for character in source):
        return True
    # "3 500" is one number or two.
    return any(
        _contains(numbers(translation, there), numbers(source, here))
        for here in (_GROUPED, _NOT_SPACED)
        for there in (_GROUPED, _NOT_SPACED)
    )


def _contains(translated: Iterable[Number], wanted: Iterable[Number]) -> bool:
    there = set(translated)
    return all(
        number in there or number.is_written_out or any(map(number.may_be, there))
        for number in set(wanted)
    )


def numbers(text: str, pattern: re.Pattern[str] = _GROUPED) -> Iterator[Number]:
    """A text's numbers, in order; the parts of a date or a version are numbers each."""
    for match in pattern.finditer(text):
        yield from _read(match.group())


def _read(written: str) -> Iterator[Number]:
    groups = [_ascii(group) for group in _SEPARATOR.split(written)]
    separators = _SEPARATOR.findall(written)
    if not separators:
        yield _number(groups, 0)
    elif _are_thousands(groups):
        # One separator, and it can be either.
        is_open = len(separators) == 1 and separators[0] in ".,"
        yield _number(groups, None if is_open else 0)
    elif len(separators) == 1 or (
        separators[-1] not in separators[:-1] and _are_thousands(groups[:-1])
    ):
        yield _number(groups, len(groups[-1]))
    else:
        yield from (_number([group], 0) for group in groups)


def _are_thousands(groups: Sequence[str]) -> bool:
    """Whether the groups can be thousands (or, as in India, hundreds of them)."""
    first, *inner = groups
    return (
        first.strip("0") != ""
        and len(first) <= 3  # noqa: PLR2004 - a group's digits
        and all(len(group) in (2, 3) for group in inner[:-1])
        and len(groups[-1]) == 3  # noqa: PLR2004
    )


def _number(groups: Sequence[str], decimals: int | None) -> Number:
    digits = "".join(groups)
    if decimals:
        # 1.50 is 1.5.
        kept = digits.rstrip("0")
        cut = min(decimals, len(digits) - len(kept))
        digits, decimals = digits[: len(digits) - cut], decimals - cut
    return Number(digits.lstrip("0") or "0", decimals)


def _ascii(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)
