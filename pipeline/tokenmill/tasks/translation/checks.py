"""Checks that find bad translations without knowing the right one.

They compare the source text with its translation. All are pure functions of strings.
"""

# ruff: noqa: RUF001 - number separators of other languages look like ASCII ones

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenmill.tasks.translation.languages import DetectedLanguage, detect_language
from tokenmill.tasks.translation.placeholders import placeholder_counts, without_placeholders


class Check(StrEnum):
    """The checks, by the names in `failed_checks`. Users filter on them, so they never change."""

    EMPTY = "empty"
    CUT = "cut"
    LANGUAGE = "language"
    LENGTH = "length"
    NUMBERS = "numbers"
    PLACEHOLDERS = "placeholders"
    REPETITION = "repetition"


# Measured on human translations of short texts into French, German, Italian and Japanese: at higher
# scores, 1 in 400 correct translations is detected as another language; at lower scores, a third.
_MIN_LANGUAGE_SCORE = 0.5
# Characters added to both length limits, because the ratio means little for short texts.
_LENGTH_SLACK = 10
# One of 12,000 human translations repeats more. A loop soon makes up half of the text or more.
_MAX_REPETITION = 0.3
_NGRAM_WORDS = 4
# Small numbers are often spelled out: "3 days", « trois jours ».
_MAX_SPELLED_OUT = 12
# Scripts written without spaces, where a character carries about as much as two alphabetic ones.
_WIDE = r"\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60"
_WIDE_CHARACTER = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]")
_WORD = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]|[^\\W{_WIDE}]+")
# Groups of digits, separated by periods, commas or apostrophes, or by a space before three digits.
_NARROW_SPACES = "\u00a0\u2009\u202f"
_WITH_SPACES = re.compile(
    rf"(?<!\d)\d{{1,3}}(?:[ {_NARROW_SPACES}]\d{{3}}(?!\d))+(?:[.,٫]\d+)?|\d+(?:[.,'’٫٬]\d+)*"
)
_WITHOUT_SPACES = re.compile(r"\d+(?:[.,'’٫٬]\d+)*")
_SEPARATOR = re.compile(r"\D")


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """The expected language, and the allowed ratios of the translation's length to the source's."""

    to: str
    min_ratio: float
    max_ratio: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of the checks of a translation. `language` is None for a text without letters."""

    failed: frozenset[Check]
    language: DetectedLanguage | None
    length_ratio: float | None
    repetition: float


def check_translation(
    source: str, translation: str, is_cut: bool, limits: CheckLimits
) -> CheckReport:
    """Run all checks. Both texts contain the marks of their protected spans.

    `is_cut` means that the model reached its token limit.
    """
    plain_source, plain = without_placeholders(source), without_placeholders(translation)
    language = detect_language(plain)
    repetition = repeated_share(plain)
    if repetition:
        repetition = max(0.0, repetition - repeated_share(plain_source))
    failures = {
        Check.EMPTY: not translation.strip(),
        Check.CUT: is_cut,
        Check.LANGUAGE: _is_wrong_language(language, limits),
        Check.LENGTH: not _is_length_allowed(plain_source, plain, limits),
        Check.NUMBERS: not numbers_kept(plain_source, plain),
        Check.PLACEHOLDERS: placeholder_counts(source) != placeholder_counts(translation),
        Check.REPETITION: repetition > _MAX_REPETITION,
    }
    return CheckReport(
        frozenset(name for name, has_failed in failures.items() if has_failed),
        language,
        length_ratio(plain_source, plain),
        repetition,
    )


def check_document(
    source: str, translation: str, segments: Sequence[CheckReport], limits: CheckLimits
) -> CheckReport:
    """Combine the reports of a text's segments, and check language and length of the whole text."""
    if len(segments) == 1:
        return segments[0]
    plain_source, plain = without_placeholders(source), without_placeholders(translation)
    language = detect_language(plain)
    failed = set[Check]().union(*(report.failed for report in segments))
    if _is_wrong_language(language, limits):
        failed.add(Check.LANGUAGE)
    if not _is_length_allowed(plain_source, plain, limits):
        failed.add(Check.LENGTH)
    return CheckReport(
        frozenset(failed),
        language,
        length_ratio(plain_source, plain),
        max(report.repetition for report in segments),
    )


def _is_wrong_language(language: DetectedLanguage | None, limits: CheckLimits) -> bool:
    return (
        language is not None
        and language.score >= _MIN_LANGUAGE_SCORE
        and not language.matches(limits.to)
    )


def weighted_length(text: str) -> int:
    """The number of characters; Chinese, Japanese and Korean ones count twice."""
    return len(text) + len(_WIDE_CHARACTER.findall(text))


def length_ratio(source: str, translation: str) -> float | None:
    """The translation's weighted length divided by the source's. None if the source is empty."""
    return weighted_length(translation) / weighted_length(source) if source else None


def _is_length_allowed(source: str, translation: str, limits: CheckLimits) -> bool:
    source_length = weighted_length(source)
    shortest = limits.min_ratio * source_length - _LENGTH_SLACK
    longest = limits.max_ratio * source_length + _LENGTH_SLACK
    return shortest <= weighted_length(translation) <= longest


def repeated_share(text: str) -> float:
    """The share of four-word sequences that occurred earlier in the text. Near 1 for a loop."""
    words = _WORD.findall(text.casefold())
    ngrams = [tuple(words[i : i + _NGRAM_WORDS]) for i in range(len(words) - _NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


@dataclass(frozen=True, slots=True)
class Number:
    """A number's digits, and how many of them are decimals.

    `decimals` is None if the text is ambiguous: 1,234 is above a thousand in English, and between
    one and two in French.
    """

    digits: str
    decimals: int | None

    def may_equal(self, other: "Number") -> bool:
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
        _contains_all(numbers(translation, target_pattern), numbers(source, source_pattern))
        for source_pattern in (_WITH_SPACES, _WITHOUT_SPACES)
        for target_pattern in (_WITH_SPACES, _WITHOUT_SPACES)
    )


def _contains_all(translated: Iterable[Number], expected: Iterable[Number]) -> bool:
    candidates = set(translated)
    return all(
        number in candidates
        or number.is_often_spelled_out
        or any(map(number.may_equal, candidates))
        for number in set(expected)
    )


def numbers(text: str, pattern: re.Pattern[str] = _WITH_SPACES) -> Iterator[Number]:
    """The numbers of a text, in order. Each part of a date or version is a number of its own."""
    for match in pattern.finditer(text):
        yield from _parse(match.group())


def _parse(written: str) -> Iterator[Number]:
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


def _number(groups: Sequence[str], decimals: int | None) -> Number:
    digits = "".join(groups)
    if decimals:
        # 1.50 equals 1.5.
        num_trailing_zeros = len(digits) - len(digits.rstrip("0"))
        num_dropped = min(decimals, num_trailing_zeros)
        digits, decimals = digits[: len(digits) - num_dropped], decimals - num_dropped
    return Number(digits.lstrip("0") or "0", decimals)


def _ascii(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)
