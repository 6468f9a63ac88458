"""Convert JSON values to cells of Arrow types."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

#: The Arrow types of the string formats that have one of their own.
FORMATS = {"date-time": pa.timestamp("us", "UTC"), "date": pa.date32()}
_MAX_MESSAGE_LENGTH = 200
#: Integers with more characters are read as floats.
MAX_DIGITS = 300
_INT64 = range(-(2**63), 2**63)
# RFC 3339. Python's parsers accept many other notations.
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def to_cell(value: Any, type_: pa.DataType, path: str = "") -> Any:
    """Convert a value that is valid under the schema to the form that Arrow accepts.

    `path` leads to the value and is named in errors. Raises `ValueError` if the type cannot
    represent the value.
    """
    if value is None:
        return None
    if pa.types.is_struct(type_):
        return {
            field.name: to_cell(value.get(field.name), field.type, join_path(path, field.name))
            for field in type_
        }
    if pa.types.is_list(type_):
        return [
            to_cell(item, type_.value_type, join_path(path, index))
            for index, item in enumerate(value)
        ]
    convert = _CONVERSIONS.get(type_)
    if convert is None:
        return value
    try:
        return convert(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(at_path(path, shorten_message(str(error)))) from error


def _string(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the string contains a lone surrogate") from None
    return value


def _int64(value: float) -> int:
    number = int(value)
    if number not in _INT64:
        raise ValueError("the number does not fit in 64 bits")
    return number


def _float64(value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


def _date(value: str) -> date:
    if not _DATE.fullmatch(value):
        raise ValueError(f"{value!r} is not a date such as 2025-12-31")
    return date.fromisoformat(value)


def _timestamp(value: str) -> datetime:
    if not _DATE_TIME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a date and time with a time zone, such as 2025-12-31T23:59:00Z"
        )
    return datetime.fromisoformat(value.upper()).astimezone(UTC)


_CONVERSIONS: Mapping[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _string,
    pa.int64(): _int64,
    pa.float64(): _float64,
    FORMATS["date"]: _date,
    FORMATS["date-time"]: _timestamp,
}


def join_path(path: str, *keys: str | int) -> str:
    """Extend the path to a value by keys."""
    return ".".join([*([path] if path else []), *map(str, keys)])


def path_of(keys: Sequence[str | int]) -> str:
    """The path to a value, given its keys from the root."""
    return join_path("", *keys)


def at_path(path: str, message: str) -> str:
    """Prefix a message with the path, unless the path is the root."""
    return f"{path}: {message}" if path else message


def shorten_message(message: str) -> str:
    """Put a message on one line and shorten it, since it may quote a long value."""
    message = " ".join(message.split())
    if len(message) <= _MAX_MESSAGE_LENGTH:
        return message
    return f"{message[: _MAX_MESSAGE_LENGTH - 1]}…"
