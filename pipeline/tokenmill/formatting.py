"""Numbers, durations and suggestions as text for people."""

import difflib
from collections.abc import Iterable


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 20 s`, `4 s`; a dash where it is not known."""
    if seconds is None:
        return "-"
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {whole_s:02d} s"
    return f"{whole_s} s"


def plural(number: int, noun: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def did_you_mean(name: str, known: Iterable[str], what: str = "key") -> str:
    """`unknown key; did you mean …?` with the nearest known one, or all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(names)}"
    return f"unknown {what}; {hint}"
