"""Cells as a page shows them: as text, rounded and shortened."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.input.values import printable

# Longest text that is shown of a cell.
_MAX_CHARACTERS = 1500


def finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def shown_cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Some columns of a row as shortened text, without nulls."""
    return {name: shorten(as_text(row[name])) for name in names if row[name] is not None}


def as_text(value: Any) -> str:
    """A cell as text: strings unchanged, everything else as JSON with rounded numbers."""
    if isinstance(value, str):
        return value
    return json.dumps(_rounded(value), default=printable, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """The value with its floats rounded to four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def shorten(text: str) -> str:
    """The text, cut at a fixed number of characters."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} …"


def is_textual(kind: pa.DataType) -> bool:
    """Whether a column holds strings, booleans or lists of them."""
    if pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind))


def value_counts(column: pa.Array) -> Iterator[tuple[str, int]]:
    """Each value of a textual column and how often it occurs; elements of lists count singly."""
    if pa.types.is_list(column.type):
        column = column.flatten()
    for entry in pc.value_counts(column.drop_null()).to_pylist():
        yield as_text(entry["values"]), entry["counts"]


def is_unreadable(kind: pa.DataType) -> bool:
    """Whether a column's cells mean nothing to a reader: bytes and vectors."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_floating(kind.value_type)) or is_unreadable(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
