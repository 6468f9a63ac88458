"""Masking personal data: what is masked, what is not, and what a second pass finds."""

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.prompt.cleaning.pii import pii

REAL = [
    "a.b+c@mail.example.org",
    "+49 (30) 123-4567",
    "0033 1 23 45 67 89",
    "030 1234567",
    "(555) 123-4567",
    "10.0.0.255",
    "2001:db8::8a2e:370:7334",
    "DE89 3704 0044 0532 0130 00",
    "4111 1111 1111 1111",
]
ORDINARY = ["order", "63-4408", "2024-01-15", "1,234,567.00", "12:30:45", "01.08.2005", "v1.2.3"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("To a.b+c@mail.example.org, or ü@bücher.example.", "To [EMAIL], or [EMAIL]."),
        ("user@localhost and @name", "user@localhost and @name"),
        ("10.0.0.255, not 10.0.0.256 or 1.2.3.4.5", "[IP], not 10.0.0.256 or 1.2.3.4.5"),
        ("::1 2001:db8::8a2e:370:7334 fe80::1%eth0 ::ffff:1.2.3.4", "[IP] [IP] [IP] [IP]"),
        ("at 12:30:45 std::vector a::b ::", "at 12:30:45 std::vector a::b ::"),
        (
            "order 63-4408 of 2024-01-15 for 1,234,567.00",
            "order 63-4408 of 2024-01-15 for 1,234,567.00",
        ),
    ],
)
def test_addresses_are_masked_and_ordinary_numbers_are_not(text: str, masked: str) -> None:
    """E-mail and IP addresses are found by pattern; times, prices and C++ names are not masked."""
    assert pii(text) == (masked, masked.count("["))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("DE89 3704 0044 0532 0130 00 BITTE", "[IBAN] BITTE"),
        ("NO9386011117947.", "[IBAN]."),
        ("GB82WEST12345698765432, GB82WEST12345698765431", "[IBAN], GB82WEST12345698765431"),
        # The checksum is right, but German account numbers have no letters.
        ("DE03WEST12345698765432", "DE03WEST12345698765432"),
        ("4111 1111 1111 1111, 4111111111111112", "[CARD], 4111111111111112"),
        ("5555-5555-5555-4444 and 0000000000000000", "[CARD] and 0000000000000000"),
        ("3782 822463 10005 and 4111 1111 1111 1111 123", "[CARD] and [CARD] 123"),
    ],
)
def test_ibans_and_cards_are_masked_if_their_checksum_is_right(text: str, masked: str) -> None:
    """One wrong digit makes it an ordinary number; so does a format that the country doesn't have.

    Digits after the number, such as a security code, are not part of it.
    """
    assert pii(text) == (masked, masked.count("["))


@pytest.mark.parametrize(
    "text",
    [
        # Each passes the Luhn check.
        "1-6 7-12 13 14 15 16 17 18",
        "ISBN 9780306406263",
        "ISBN 978-0-306-40626-3",
    ],
)
def test_page_ranges_and_isbns_are_no_cards(text: str) -> None:
    """A card number has the groups of a card, and is not a valid ISBN."""
    assert pii(text) == (text, 0)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+49 (30) 123-4567, (555) 123-4567, 030 1234567", "[PHONE], [PHONE], [PHONE]"),
        ("0033 1 23 45 67 89 or +1-800-555-0199", "[PHONE] or [PHONE]"),
        ("+49 (0)171 2345678 (0171) 23 45 67 0171/234567", "[PHONE] [PHONE] [PHONE]"),
        ("tel:+12015550123;ext=5", "tel:[PHONE];ext=5"),
        # Fictitious numbers have a possible length, but no subscriber.
        ("+1 555 123 4567", "[PHONE]"),
        # A French number has nine digits: the last group is not part of it.
        ("+33 1 23 45 67 89 12", "[PHONE] 12"),
        ("0033 1 23 45 67 89 0033 1 23 45 67 88", "[PHONE] [PHONE]"),
    ],
)
def test_telephone_numbers_are_masked(text: str, masked: str) -> None:
    """With a country code by that country's number plan, otherwise by their form."""
    assert pii(text) == (masked, masked.count("["))


@pytest.mark.parametrize(
    "text",
    [
        "since 01/08/2005, 01.08.2005, 05-03-2003 and 01.08.2005 12 Uhr",
        "JIS X 0208-1990 and GSM 06.60",
        "doi:10.1080/00401706.2012.727746",
        "wraps around to 00:00:00.000000000 or 0001-01-01",
        # No country has the code 999, and these are too short for theirs.
        "+999 123 456 789, +2024-01-15, +12.345.678",
    ],
)
def test_dates_standards_and_numbers_are_no_telephone_numbers(text: str) -> None:
    """What real corpora contain and looks like a number that can be dialed."""
    assert pii(text) == (text, 0)


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS))
def test_every_countrys_international_numbers_are_masked(region: str) -> None:
    """The library's example of the region's numbers, written with the country code."""
    example = phonenumbers.example_number(region)
    assert example is not None
    number = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    assert pii(f"Call {number}, now") == ("Call [PHONE], now", 1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(REAL + ORDINARY), max_size=8))
def test_a_masked_text_has_nothing_more_to_mask(words: list[str]) -> None:
    """A second pass finds nothing, and the count is the number of masks."""
    masked, count = pii(" and ".join(words))
    assert count == masked.count("[") == sum(word in REAL for word in words)
    assert pii(masked) == (masked, 0)
