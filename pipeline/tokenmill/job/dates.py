"""Replace `{date}` in a job's paths by a day."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

_PLACEHOLDER = "{date}"
_DAYS_AGO = {"today": 0, "yesterday": 1}
_PATHS = (("input", "path"), ("output", "path"), ("output", "publish"))


def with_date(data: Mapping[str, Any]) -> dict[str, Any]:
    """A job's keys with `{date}` replaced in paths, and `date` as YYYY-MM-DD.

    Raises `ValueError` for an invalid day, and for a path with `{date}` in a job without `date`.
    """
    dated = dict(data)
    name = data.get("date")
    day = None if name is None else day_of(name).isoformat()
    if day is not None:
        dated["date"] = day
    for section, key in _PATHS:
        inner = data.get(section)
        path = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(path, str) and _PLACEHOLDER in path:
            if day is None:
                raise ValueError(
                    f"{section}.{key}: {_PLACEHOLDER} needs a day; pass --date yesterday or "
                    "--date 2026-01-31, or set the key date"
                    + (" (a file's own {date} is [{]date})" if section == "input" else "")
                )
            dated[section] = {**dated[section], key: path.replace(_PLACEHOLDER, day)}
    return dated


def day_of(name: Any) -> dt.date:
    """The day of `today`, `yesterday` (in UTC) or YYYY-MM-DD. Raises `ValueError`."""
    if isinstance(name, dt.date):
        # PyYAML alone reads an unquoted date as a date.
        return dt.date(name.year, name.month, name.day)
    if name in _DAYS_AGO:
        today = dt.datetime.now(dt.UTC).date()
        return today - dt.timedelta(days=_DAYS_AGO[name])
    try:
        return dt.date.fromisoformat(name)
    except (TypeError, ValueError):
        raise ValueError(
            f"date: {name!r} is not a day; use today, yesterday or a date such as 2026-01-31"
        ) from None
