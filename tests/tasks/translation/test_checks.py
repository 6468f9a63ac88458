"""The checks of a translation: what passes, and what each of them finds."""

# ruff: noqa: RUF001 - the separators of other languages' numbers look like ours

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.tasks.translation.checks import (
    Check,
    CheckLimits,
    check,
    check_whole,
    length_ratio,
    numbers_kept,
    repeated_share,
)

FRENCH = CheckLimits("fr", 0.5, 2.5)
SOURCE = "The invoice of 12 March says 1,234.50 euros, and ⟦1⟧ was charged twice for it."
GOOD = "La facture du 12 mars indique 1 234,50 euros, et ⟦1⟧ a été débité deux fois pour cela."


@pytest.mark.parametrize(
    ("translation", "is_cut", "failed"),
    [
        (GOOD, False, set()),
        ("", False, {Check.EMPTY, Check.LENGTH, Check.NUMBERS, Check.PLACEHOLDERS}),
        (GOOD, True, {Check.CUT}),
        (SOURCE, False, {Check.LANGUAGE}),
        (f"{GOOD} Et cela continue sans fin, car {'beaucoup de mots suivent ici '*7}", False,
         {Check.LENGTH, Check.REPETITION}),
        (GOOD.replace("234", "243"), False, {Check.NUMBERS}),
        (GOOD.replace("⟦1⟧", "il"), False, {Check.PLACEHOLDERS}),
        (GOOD.replace("⟦1⟧", "⟦1⟧ ⟦1⟧"), False, {Check.PLACEHOLDERS}),
        (GOOD.replace("⟦1⟧", "⟦1⟧ ⟦2⟧"), False, {Check.PLACEHOLDERS}),
    ],
    ids=["good", "empty", "cut", "not translated", "loops", "other number", "span lost",
         "span doubled", "span invented"],
)  # fmt: skip
def test_a_check_finds_its_fault(translation: str, is_cut: bool, failed: set[Check]) -> None:
    """A good translation passes them all; each fault is found under its name, and only there."""
    assert check(SOURCE, translation, is_cut, FRENCH).failed == failed


@pytest.mark.parametrize(
    ("source", "translation", "kept"),
    [
        ("1,234.5", "1 234,5", True),
        ("1,234.5", "1\u202f234,5", True),
        ("1,234.5", "1.234,5", True),
        ("1,234.5", "1’234.5", True),
        ("1,234.5", "12 345", False),
        ("1,234.5", "1 234", False),
        ("1,234", "1.234", True),
        ("1,234", "1234", True),
        ("1.234", "1,234", True),
        ("12.5", "12,5", True),
        ("12.50", "12,5", True),
        ("12.5", "125", False),
        ("0.125", "0,125", True),
        ("0.125", "125", False),
        ("1,234,567", "1 234 567", True),
        ("12,34,567", "1 234 567", True),
        ("1234567", "1.234.567", True),
        ("2.6.32", "2.6.32", True),
        ("2.6.32", "2.6.31", False),
        ("12/05/2024", "12.05.2024", True),
        ("14:12", "14 h 12", True),
        ("€18.90", "18,90 €", True),
        ("the 2nd of 13", "le 2 des 13", True),
        ("3 days", "trois jours", True),
        ("12 days", "douze jours", True),
        ("30 days", "trente jours", False),
        ("Windows 3 500 users", "500 utilisateurs de Windows 3", True),
        ("version 13 and 500 users", "la 13 500 utilisateurs", True),
        ("3,500", "3 500", True),
        ("41 and 41", "41", True),
        ("41 and 42", "41", False),
        ("no digits", "rien", True),
        ("thirty-one", "31", True),
        ("in 1234", "١٢٣٤", True),
        ("1234.5", "١٬٢٣٤٫٥", True),
        ("version 4", "version ４", True),
    ],
)
def test_numbers_are_kept_in_any_writing(source: str, translation: str, kept: bool) -> None:
    """Groups and decimals as either language writes them; another value is no number kept."""
    assert numbers_kept(source, translation) is kept


@given(st.text(st.sampled_from("0123456789 .,'’٫\u202fab-")))
def test_a_texts_numbers_are_kept_in_itself(text: str) -> None:
    """However strange a text's numbers are, they are those of the same text."""
    assert numbers_kept(text, text)


@given(st.integers(1000, 10**12), st.sampled_from([",", ".", " ", "\u202f", "'", ""]))
def test_a_number_is_kept_with_any_separator_of_thousands(number: int, separator: str) -> None:
    """English 1,234,567 is 1.234.567, 1 234 567 or 1'234'567 elsewhere."""
    assert numbers_kept(f"{number:,} sold", f"{number:,} vendus".replace(",", separator))
    assert not numbers_kept(f"{number:,}", f"{number + 1:,}".replace(",", separator))


def test_a_source_that_repeats_itself_may_be_repeated() -> None:
    """Only what the translation repeats beyond its source is held against it."""
    line = "the same line of words again and again, and "
    ligne = "la même ligne de mots encore et encore, et "
    assert check(line * 9, ligne * 9, False, FRENCH).repetition < 0.1
    assert check(line, ligne * 2, False, FRENCH).repetition > 0.3


def test_repetition_is_seen_in_scripts_without_spaces() -> None:
    """A loop in Japanese is one of characters; five words in a row are none."""
    assert repeated_share("とても良いです" * 9) > 0.8
    assert repeated_share("これは長い文ではありません") == 0
    assert repeated_share("one two three four five") == 0


def test_lengths_of_scripts_are_comparable() -> None:
    """A character of Japanese counts as two of an alphabet."""
    assert length_ratio("abcd", "日本") == 1
    assert length_ratio("", "a") is None


def test_a_short_text_may_be_twice_as_long() -> None:
    """The ratio of short texts says little: « OK » may be « D'accord »."""
    assert Check.LENGTH not in check("OK", "D'accord", False, FRENCH).failed
    assert Check.LENGTH in check("OK " * 20, "D'accord " * 30, False, FRENCH).failed


def test_a_short_text_of_no_clear_language_passes() -> None:
    """Names are the same everywhere; what is not surely another language is not held against it."""
    assert check("Lumen Notebook", "Lumen Notebook", False, FRENCH).failed == set()


def test_a_whole_fails_where_a_part_does() -> None:
    """One paragraph that stayed English is found in a text that is French on the whole."""
    good, bad = check(SOURCE, GOOD, False, FRENCH), check(SOURCE, SOURCE, False, FRENCH)
    whole = check_whole(f"{SOURCE}\n\n" * 5, f"{GOOD}\n\n" * 4 + SOURCE, [good] * 4 + [bad], FRENCH)
    assert whole.failed == {Check.LANGUAGE}
    assert whole.language is not None and whole.language.code == "fr"
