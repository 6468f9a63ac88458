"""Mask personal data: e-mail and IP addresses, IBANs, payment cards, telephone numbers.

A regular expression finds candidates. Libraries then check what can be checked: python-stdnum IBANs
and card numbers, phonenumbers the telephone numbers that carry a country code. A national number
has no region to be checked against and is recognized by its form alone.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Digits of a national number that begins with the trunk prefix 0: 98 % of the example numbers in
# phonenumbers are in this range. Shorter sequences are mostly standards, versions and fractions.
_NATIONAL_DIGITS = range(8, 14)
_MAX_INTERNATIONAL_DIGITS = 15  # E.164, with the country code
_MIN_CARD_DIGITS = 13
_ISBN_DIGITS = 13
_MIN_IBAN_LENGTH = 15  # Norway's


@dataclass(frozen=True, slots=True)
class PiiPattern:
    """One form of personal data, replaced by `[mask]`.

    `real_length` returns how many characters of a match are the real thing, counted from its start;
    0 if none are.
    """

    mask: str
    regex: re.Pattern[str]
    real_length: Callable[[str], int] = len


def pii(text: str) -> tuple[str, int]:
    """Replace what looks like personal data with masks such as `[EMAIL]`.

    A telephone number with a country code (`+49 …`, `0049 …`) is masked if phonenumbers accepts it.
    A national number is masked in two forms only: with the trunk prefix 0 and separated groups
    (`030 1234567`), and as written in North America (`(555) 123-4567`).
    """
    count = 0
    for pattern in PII_PATTERNS:
        text, num_masked = _mask(text, pattern)
        count += num_masked
    return text, count


def _mask(text: str, pattern: PiiPattern) -> tuple[str, int]:
    kept: list[str] = []
    end = position = 0
    while (match := pattern.regex.search(text, position)) is not None:
        length = pattern.real_length(match[0])
        position = match.end() if length == 0 else match.start() + length
        if length:
            kept.append(text[end : match.start()])
            end = position
    return f"[{pattern.mask}]".join([*kept, text[end:]]), len(kept)


def _iban_length(match: str) -> int:
    from stdnum import iban  # noqa: PLC0415 - only jobs that mask personal data pay for the import

    positions = [position for position, character in enumerate(match) if character != " "]
    code = match.replace(" ", "")
    for length in range(_MIN_IBAN_LENGTH, len(code) + 1):
        # National check digits are not compared: for a mask the length and checksum are enough.
        if iban.is_valid(code[:length], check_country=False):
            return positions[length - 1] + 1
    return 0


def _card_length(match: str) -> int:
    from stdnum import isbn, luhn  # noqa: PLC0415

    for end, digits in _prefixes(match):
        if len(digits) >= _MIN_CARD_DIGITS and digits.strip("0") and luhn.is_valid(digits):
            # One ISBN in ten passes the Luhn check.
            is_isbn = len(digits) == _ISBN_DIGITS and isbn.is_valid(digits)
            return 0 if is_isbn else end
    return 0


def _ipv6_length(match: str) -> int:
    # `a::b` is a valid address, but also a C++ name: require a digit.
    if not any(character.isdigit() for character in match):
        return 0
    length = len(match.rstrip(".:")) if not match.endswith("::") else len(match)
    try:
        ipaddress.IPv6Address(match[:length])
    except ValueError:
        return 0
    return length


def _international_length(match: str) -> int:
    """The longest prefix that is a valid number; else the longest of a possible length.

    Numbers of a possible length include fictitious and newly assigned ones.
    """
    import phonenumbers  # noqa: PLC0415

    possible = 0
    for end, dialed in _prefixes(match):
        digits = dialed.removeprefix("00")
        if len(digits) > _MAX_INTERNATIONAL_DIGITS:
            continue
        try:
            number = phonenumbers.parse(f"+{digits}")
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return end
        reason = phonenumbers.is_possible_number_with_reason(number)
        if not possible and reason == phonenumbers.ValidationResult.IS_POSSIBLE:
            possible = end
    return possible


def _national_length(match: str) -> int:
    return next((end for end, digits in _prefixes(match) if len(digits) in _NATIONAL_DIGITS), 0)


def _prefixes(match: str) -> Iterator[tuple[int, str]]:
    """The end and the digits of each prefix that ends with a group of digits, longest first."""
    ends = [group.end() for group in re.finditer(r"[0-9]+", match)]
    for end in reversed(ends):
        yield end, re.sub(r"[^0-9]+", "", match[:end])


#: What `pii` masks, in this order. The expressions match ASCII digits only. None begins inside a
#: word, so that each takes time linear in a text's length.
PII_PATTERNS: Sequence[PiiPattern] = (
    PiiPattern(
        "EMAIL",
        re.compile(
            r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}\b"
        ),
    ),
    PiiPattern(
        "IBAN",
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}"),
        _iban_length,
    ),
    PiiPattern(
        "CARD",
        re.compile(
            r"(?<![\w.-])(?:"
            r"[0-9]{13,19}"
            r"|[0-9]{4}(?P<four>[ -])(?:[0-9]{4}(?P=four)){2}[0-9]{4}(?:(?P=four)[0-9]{3})?"
            r"|[0-9]{4}(?P<six>[ -])[0-9]{6}(?P=six)[0-9]{4,5}"  # American Express, Diners Club
            r")(?![\w-])",
            re.ASCII,
        ),
        _card_length,
    ),
    PiiPattern(
        "IP",
        re.compile(
            r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)"
            r"(?:[0-9A-Fa-f:]{2,30}:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f:]{2,39}(?:%\w{1,16})?)"
            r"(?![\w:])",
            re.ASCII,
        ),
        _ipv6_length,
    ),
    PiiPattern(
        "IP",
        re.compile(
            r"(?<![\w.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}"
            r"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?!\.?\w)",
            re.ASCII,
        ),
    ),
    PiiPattern(
        "PHONE",
        re.compile(
            # +49 (30) 1234-567
            r"(?<![\w+.,-])(?:\+|00)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,7}(?![\w-])",
            re.ASCII,
        ),
        _international_length,
    ),
    PiiPattern(
        "PHONE",
        re.compile(
            r"(?<![\w+.,-])"
            # 01.08.2005 is a date, 0208-1990 the year of a standard.
            r"(?!\(?0[1-9](?P<date>[ .-])[01]?[0-9](?P=date)(?:19|20)[0-9]{2}(?![0-9]))"
            r"(?!\(?0[0-9]{3}-(?:19|20)[0-9]{2}(?![ .-]?[0-9]))"
            # 030 1234567, (0171) 23 45 67, 0171/234567
            r"\(?0[1-9][0-9]{0,4}\)?[ ./-][0-9]{2,9}(?:[ .-][0-9]{2,9}){0,4}(?![\w-])",
            re.ASCII,
        ),
        _national_length,
    ),
    PiiPattern(
        "PHONE",
        re.compile(
            r"(?<![\w+.,-])\(?[2-9][0-9]{2}\)?[ .-][0-9]{3}[.-][0-9]{4}(?![\w-])",
            re.ASCII,
        ),
    ),
)
