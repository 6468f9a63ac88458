"""JSON values as cells of Arrow types."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

FORMATS = {"date-time": pa.timestamp("us", "UTC"), "date": pa.date32()}
_MOST_MESSAGE_CHARACTERS = 200
MAX_DIGITS = 300
_INT64 = range(-(2**63), 2**63)
# RFC 3339; Python's own parsers take much more.
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def cell(value: Any, type_: pa.DataType, place: str = "") -> Any:
    """A valid value as Arrow takes it. Raises `ValueError` for one that the type cannot hold."""
    if value is None:
        return None
    if pa.types.is_struct(type_):
        return {
            field.name: cell(value.get(field.name), field.type, join_path(place, field.name))
            for field in type_
        }
    if pa.types.is_list(type_):
        items = enumerate(value)
        return [cell(item, type_.value_type, join_path(place, at)) for at, item in items]
    convert = _CONVERSIONS.get(type_)
    if convert is None:
        return value
    try:
        return convert(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(at_path(place, shorten_message(str(error)))) from error


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds a lone surrogate") from None
    return value


def _int64(value: float) -> int:
    number = int(value)
    if number not in _INT64:
        raise ValueError("the number does not fit into 64 bits")
    return number


def _float64(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


def _date(value: str) -> date:
    if not _DATE.fullmatch(value):
        raise ValueError(f"{value!r} is no date as in 2025-12-31")
    return date.fromisoformat(value)


def _instant(value: str) -> datetime:
    if not _DATE_TIME.fullmatch(value):
        raise ValueError(f"{value!r} is no date and time with zone, as in 2025-12-31T23:59:00Z")
    return datetime.fromisoformat(value.upper()).astimezone(UTC)


_CONVERSIONS: Mapping[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _text,
    pa.int64(): _int64,
    pa.float64(): _float64,
    FORMATS["date"]: _date,
    FORMATS["date-time"]: _instant,
}


def join_path(place: str, *keys: str | int) -> str:
    """A path to a value, extended by keys."""
    return ".".join([*([place] if place else []), *map(str, keys)])


def path_of(keys: Sequence[str | int]) -> str:
    """A path to a value, from its keys."""
    return join_path("", *keys)


def at_path(place: str, message: str) -> str:
    """A message that names the path, unless it is the root."""
    return f"{place}: {message}" if place else message


def shorten_message(message: str) -> str:
    """A message that quotes a value, which may be long."""
    message = " ".join(message.split())
    limit = _MOST_MESSAGE_CHARACTERS
    return message if len(message) <= limit else f"{message[: limit - 1]}…"
