"""The day that `{date}` in a job's paths stands for."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

_PLACE = "{date}"
_DAYS_AGO = {"today": 0, "yesterday": 1}
# Where a job may name the day.
_PATHS = (("input", "path"), ("output", "path"), ("output", "publish"))


def with_date(data: Mapping[str, Any]) -> dict[str, Any]:
    """A job's keys with its day in the place of `{date}`, and `date` as YYYY-MM-DD.

    Raises `ValueError` for a path that wants a day where none is given, and for what is no day.
    """
    dated = dict(data)
    named = data.get("date")
    day = None if named is None else day_of(named).isoformat()
    if day is not None:
        dated["date"] = day
    for section, key in _PATHS:
        inner = data.get(section)
        path = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(path, str) and _PLACE in path:
            if day is None:
                raise ValueError(
                    f"{section}.{key}: {_PLACE} stands for a day; say which with --date yesterday, "
                    "--date 2026-01-31, or the key date"
                )
            dated[section] = {**dated[section], key: path.replace(_PLACE, day)}
    return dated


def day_of(name: Any) -> dt.date:
    """The day of `today`, `yesterday` (in UTC) or YYYY-MM-DD. Raises `ValueError`."""
    if isinstance(name, dt.date):
        # YAML's own form of it.
        return dt.date(name.year, name.month, name.day)
    if name in _DAYS_AGO:
        today = dt.datetime.now(dt.UTC).date()
        return today - dt.timedelta(days=_DAYS_AGO[name])
    try:
        return dt.date.fromisoformat(name)
    except (TypeError, ValueError):
        raise ValueError(
            f"date: {name!r} is no day; write today, yesterday or 2026-01-31"
        ) from None
