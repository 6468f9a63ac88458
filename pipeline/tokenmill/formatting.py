"""Format numbers, durations and suggestions for people."""

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache

# More names than this in a message hide what it says.
_MAX_LISTED = 20
_MAX_SIMILAR = 5


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
    """`unknown key; did you mean …?` with the most similar known name, or the known names."""
    names = tuple(known_names)
    nearest = _similar(name, names, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {listed(name, names)}"
    return f"unknown {what}; {hint}"


def listed(name: str, names: Sequence[str]) -> str:
    """`a, b, c`; of many names, a few that are most similar to `name`, and how many there are."""
    if len(names) <= _MAX_LISTED:
        return ", ".join(names)
    some = _similar(name, tuple(names), _MAX_SIMILAR) or names[:_MAX_SIMILAR]
    return f"{', '.join(some)} and {len(names) - len(some):,} more"


@lru_cache(maxsize=16)
def _similar(name: str, names: tuple[str, ...], count: int) -> Sequence[str]:
    """The most similar names, whatever their case. Cached: many shards have the same columns."""
    by_lower_case = {other.lower(): other for other in names}
    nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=count, cutoff=0.6)
    return tuple(by_lower_case[other] for other in nearest)
