"""The checks of a translation: which translations pass, and which faults each check finds."""

import pytest
from tokenmill.tasks.translation.checks import (
    Check,
    CheckLimits,
    check_document,
    check_translation,
    length_ratio,
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
    ids=["good", "empty", "cut", "not translated", "loop", "changed number", "lost span",
         "doubled span", "invented span"],
)  # fmt: skip
def test_each_fault_fails_its_check(translation: str, is_cut: bool, failed: set[Check]) -> None:
    """A good translation passes all checks, and each fault fails exactly the expected ones."""
    assert check_translation(SOURCE, translation, is_cut, FRENCH).failed == failed


def test_repetition_in_the_source_is_subtracted() -> None:
    """Only repetition that the source does not have counts."""
    line = "the same line of words again and again, and "
    ligne = "la même ligne de mots encore et encore, et "
    assert check_translation(line * 9, ligne * 9, False, FRENCH).repetition < 0.1
    assert check_translation(line, ligne * 2, False, FRENCH).repetition > 0.3


def test_repetition_is_measured_in_scripts_without_spaces() -> None:
    """In Japanese each character counts as a word."""
    assert repeated_share("とても良いです" * 9) > 0.8
    assert repeated_share("これは長い文ではありません") == 0
    assert repeated_share("one two three four five") == 0


def test_a_japanese_character_counts_twice() -> None:
    """Lengths are comparable between scripts, and an empty source has no ratio."""
    assert length_ratio("abcd", "日本") == 1
    assert length_ratio("", "a") is None


def test_short_texts_may_exceed_the_length_ratio() -> None:
    """A short translation may be several times as long: "OK" becomes « D'accord »."""
    assert Check.LENGTH not in check_translation("OK", "D'accord", False, FRENCH).failed
    assert Check.LENGTH in check_translation("OK " * 20, "D'accord " * 30, False, FRENCH).failed


def test_a_text_without_a_clear_language_passes() -> None:
    """Product names are the same in every language, so an uncertain detection is ignored."""
    assert check_translation("Lumen Notebook", "Lumen Notebook", False, FRENCH).failed == set()


def test_a_document_fails_the_checks_of_its_segments() -> None:
    """One paragraph that is still English fails a document that is French on the whole."""
    good = check_translation(SOURCE, GOOD, False, FRENCH)
    untranslated = check_translation(SOURCE, SOURCE, False, FRENCH)
    whole = check_document(
        f"{SOURCE}\n\n" * 5, f"{GOOD}\n\n" * 4 + SOURCE, [good] * 4 + [untranslated], FRENCH
    )
    assert whole.failed == {Check.LANGUAGE}
    assert whole.language is not None and whole.language.code == "fr"
