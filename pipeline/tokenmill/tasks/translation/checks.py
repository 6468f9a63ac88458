"""Checks that find bad translations without knowing the right one.

They compare the source text with its translation. All are pure functions of strings.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenmill.tasks.translation.languages import DetectedLanguage, detect_language
from tokenmill.tasks.translation.numbers import numbers_kept
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
# Scripts written without spaces, where a character carries about as much as two alphabetic ones.
_WIDE = r"\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60"
_WIDE_CHARACTER = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]")
_WORD = re.compile(f"[{_WIDE}\U00020000-\U0003fffd]|[^\\W{_WIDE}]+")


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
