"""Masking personal data: addresses, cards, IBANs, phone numbers."""

import ipaddress
import re
from collections.abc import Callable, Sequence
from itertools import accumulate

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
