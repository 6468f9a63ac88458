"""Numbers in translations: the format may change, the value may not."""

# ruff: noqa: RUF001 - number separators of other languages look like ASCII ones

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.tasks.translation.numbers import numbers_kept


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
def test_a_number_may_change_its_format_only(source: str, translation: str, kept: bool) -> None:
    """Separators of thousands and decimals may change with the language; the value may not."""
    assert numbers_kept(source, translation) is kept


@given(st.text(st.sampled_from("0123456789 .,'’٫\u202fab-")))
def test_an_unchanged_text_keeps_its_numbers(text: str) -> None:
    """A text always contains its own numbers, however strange they are."""
    assert numbers_kept(text, text)


@given(st.integers(1000, 10**12), st.sampled_from([",", ".", " ", "\u202f", "'", ""]))
def test_any_thousands_separator_keeps_a_number(number: int, separator: str) -> None:
    """1,234,567 in English is 1.234.567, 1 234 567 or 1'234'567 in other languages."""
    assert numbers_kept(f"{number:,} sold", f"{number:,} vendus".replace(",", separator))
    assert not numbers_kept(f"{number:,}", f"{number + 1:,}".replace(",", separator))
