"""Rows as JSON lines: one form for whatever writes rows as text.

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


def write_line(line: Mapping[str, Any], file: IO[bytes]) -> None:
    """One object, as a line of UTF-8."""
    file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def json_rows(rows: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Each row as JSON has it, with every column."""
    for row in _as_iso(rows).to_pylist():
        yield as_json(row)


def _as_iso(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    """With timestamps written out by Arrow: Python's know no nanoseconds."""
    for position, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            text = rows.column(position).cast(pa.string())
            text = pc.replace_substring(text, " ", "T", max_replacements=1)
            rows = rows.set_column(position, field.name, text)
    return rows


def as_json(value: Any) -> Any:
    """A cell as JSON has it.

    Bytes are base64, dates and times ISO 8601, numbers that are not finite null, maps lists of
    pairs; what else JSON does not know is its text.
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
            return {name: as_json(each) for name, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
        case _:
            return str(value)
