"""Rows as JSON lines, the form in which every command writes rows as text.

Knows nothing of outputs and stores.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.input.values import calendar_text, readable_rows

# For later times, and those as long before 1970, Arrow writes a message or, with a zone, another
# year: the last second of the year 32,767.
_MAX_ARROW_S = 971_890_963_199
_TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MAX_INT64 = 2**63 - 1


def write_line(line: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write one JSON object as a line of UTF-8."""
    file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def json_rows(rows: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """The rows with all their columns, as values that JSON can represent."""
    for row in readable_rows(_with_times_as_text(rows)):
        yield as_json(row)


def _with_times_as_text(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    """Format timestamps with Arrow, because Python's datetime has no nanoseconds."""
    for position, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type) or field.type == pa.time64("ns"):
            text = _times_as_text(rows.column(position))
            rows = rows.set_column(position, field.name, text)
    return rows


def _times_as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    try:
        text = column.cast(pa.string())
    except pa.ArrowInvalid:
        # A time zone that is not known here.
        text = column.cast(pa.timestamp(column.type.unit, "UTC")).cast(pa.string())
    is_far = _is_far(column)
    if pc.any(is_far).as_py():
        cells = zip(column, is_far.to_pylist(), text.to_pylist(), strict=True)
        text = pa.array(calendar_text(cell) if far else shown for cell, far, shown in cells)
    return pc.replace_substring(text, " ", "T", max_replacements=1)


def _is_far(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether each time is one for which Arrow has no text; null for a null."""
    bound = min(_MAX_ARROW_S * _TICKS_PER_S[column.type.unit], _MAX_INT64)
    ticks = column.cast(pa.int64())
    return pc.or_(pc.greater(ticks, bound), pc.less(ticks, -bound))


def as_json(value: Any) -> Any:
    """A cell as a value that JSON can represent.

    Bytes become base64, dates and times ISO 8601, numbers that are not finite null, and maps lists
    of pairs. Other values that JSON lacks become their text.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            number = float(value)
            return number if math.isfinite(number) else None
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case Mapping():
            return {name: as_json(part) for name, part in value.items()}
        case list() | tuple():
            return [as_json(part) for part in value]
        case _:
            return str(value)
