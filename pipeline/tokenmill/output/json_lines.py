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

# What Arrow writes for a year of more than 32,767.
_NO_TEXT = "<value out of range"


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
    if pc.any(pc.starts_with(text, _NO_TEXT)).as_py():
        cells = zip(column, text.to_pylist(), strict=True)
        text = pa.array(
            calendar_text(cell) if shown is not None and shown.startswith(_NO_TEXT) else shown
            for cell, shown in cells
        )
    return pc.replace_substring(text, " ", "T", max_replacements=1)


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
