"""Arrow cells as Python values, whatever they hold: texts that are not UTF-8, dates after 9999.

What Python's dates cannot hold becomes its text: 10000-01-01. Knows nothing of outputs.
"""

import base64
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa

#: What becomes of text that is not UTF-8: an error, or U+FFFD in place of what cannot be read.
Utf8Errors = Literal["strict", "replace"]
_DAY_MS = 86_400_000


def readable_rows(rows: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """The rows with all their columns, as `readable_values`."""
    names = rows.schema.names
    for cells in zip(*map(readable_values, rows.columns), strict=True):
        yield dict(zip(names, cells, strict=True))


def readable_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column, with U+FFFD in text that is not UTF-8."""
    return _values(column, "replace")


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column. Raises `UnicodeDecodeError` for text that is not UTF-8."""
    return _values(column, "strict")


def _values(column: pa.Array | pa.ChunkedArray, utf8_errors: Utf8Errors) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [python_value(cell, utf8_errors) for cell in column]


def python_value(cell: pa.Scalar, utf8_errors: Utf8Errors = "strict") -> Any:
    """The value of a cell. Raises `UnicodeDecodeError` for text that is not UTF-8 if strict."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        return _value_of_parts(cell, utf8_errors)


def _value_of_parts(cell: pa.Scalar, utf8_errors: Utf8Errors) -> Any:
    match cell:
        case pa.StringScalar():
            return cell.as_buffer().to_pybytes().decode(errors=utf8_errors)
        case pa.MapScalar():
            parts = [(entry["key"], entry["value"]) for entry in cell.values]
            return [tuple(python_value(part, utf8_errors) for part in pair) for pair in parts]
        case pa.ListScalar():
            return [python_value(part, utf8_errors) for part in cell.values]
        case pa.StructScalar():
            names = [field.name for field in cell.type]
            parts = [python_value(cell[index], utf8_errors) for index in range(len(names))]
            pairs = list(zip(names, parts, strict=True))
            # Two fields may have the same name.
            return dict(pairs) if len(set(names)) == len(names) else pairs
        case pa.DictionaryScalar() | pa.ExtensionScalar():
            return python_value(cell.value, utf8_errors)
    return calendar_text(cell)


def calendar_text(cell: pa.Scalar) -> str:
    """A date, timestamp or duration beyond Python's as text, in Python's form."""
    type_ = cell.type
    if pa.types.is_duration(type_):
        return str(np.timedelta64(cell.value, type_.unit))
    if pa.types.is_date(type_):
        days = cell.value if pa.types.is_date32(type_) else cell.value // _DAY_MS
        return str(np.datetime64(days, "D"))
    if not pa.types.is_timestamp(type_):
        raise ValueError(f"a value of type {type_} that Python cannot hold")
    whole, _, fraction = str(np.datetime64(cell.value, type_.unit)).partition(".")
    text = f"{whole}.{fraction}" if fraction.strip("0") else whole
    # In UTC: zones have no rules for years this far, and an unknown zone has none at all.
    return text.replace("T", " ") + ("" if type_.tz is None else "+00:00")


def printable(value: Any) -> str:
    """A value that JSON lacks as text: bytes as UTF-8, or in base64 if they are no text."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
