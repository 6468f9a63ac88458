"""Format numbers, durations and suggestions for people."""

import difflib
from collections.abc import Iterable


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 20 s` or `4 s`; `-` if unknown."""
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
    """`1 row` or `1,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def did_you_mean(name: str, known_names: Iterable[str], what: str = "key") -> str:
    """`unknown key; did you mean …?` with the most similar known name, or all known names."""
    names = list(known_names)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(names)}"
    return f"unknown {what}; {hint}"
