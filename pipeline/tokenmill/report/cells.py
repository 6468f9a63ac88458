"""Cells as a page shows them: rounded, shortened, escaped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Of a cell that is shown.
_MOST_CHARACTERS = 1500


def finite(value: Any) -> Any:
    """The value with None in the place of numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def shown_cells(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Columns of a row as text, long ones cut, without those that are null."""
    return {name: shorten(as_text(row[name])) for name in names if row[name] is not None}


def as_text(value: Any) -> str:
    """A cell in words: text as it is, all else as JSON, its numbers rounded."""
    if isinstance(value, str):
        return value
    return json.dumps(_rounded(value), default=str, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """The value with its floats as people read them."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def shorten(text: str) -> str:
    """The text, or its beginning."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"


def is_words(kind: pa.DataType) -> bool:
    """Whether a column's cells are words: a string, several of them, or yes and no."""
    if pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind))


def words_of(column: pa.Array) -> Iterator[tuple[str, int]]:
    """The words of a column and how often each is there; those of lists one by one."""
    if pa.types.is_list(column.type):
        column = column.flatten()
    for entry in pc.value_counts(column.drop_null()).to_pylist():
        yield as_text(entry["values"]), entry["counts"]


def is_heavy(kind: pa.DataType) -> bool:
    """Whether a column's cells are nothing to look at: bytes and vectors."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_floating(kind.value_type)) or is_heavy(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
