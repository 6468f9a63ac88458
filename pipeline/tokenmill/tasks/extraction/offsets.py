"""Where extracted strings stand in a row's text, so that invented ones are seen."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from tokenmill.config.section import Section

#: A string and its place in code points, end exclusive; both null where it does not occur.
SPAN_TYPE = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
    ]
)
FieldSpan = Mapping[str, Any]


class Locate(Section):
    """`locate: {column: text, fields: [person]}`: fields hold spans in place of strings."""

    column: str = Field(description="The column whose text is searched.")
    fields: tuple[str, ...] = Field(min_length=1, description="Strings, or lists of strings.")

    def located_type(self, field: pa.Field) -> pa.DataType:
        """The type of a field with spans. Raises `ValueError` for one that holds no strings."""
        if field.type.equals(pa.string()):
            return SPAN_TYPE
        if field.type.equals(pa.list_(pa.string())):
            return pa.list_(SPAN_TYPE)
        raise ValueError(
            f"locate.fields: {field.name} holds {field.type}; only strings and lists of strings "
            "can be found in a text"
        )


def located(
    value: str | Sequence[str | None] | None, text: str
) -> FieldSpan | list[FieldSpan | None] | None:
    """A field's value with its spans: the n-th mention of a string is its n-th occurrence.

    Exactly as written, case included. Occurrences are whole words (no letter or digit touches
    them); where a string has none of these, as in scripts without spaces, any occurrence counts.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _span(value, next(_starts(value, text), None))
    starts: dict[str, Iterator[int]] = {}
    spans: list[FieldSpan | None] = []
    for mention in value:
        if mention is None:
            spans.append(None)
            continue
        if mention not in starts:
            starts[mention] = _starts(mention, text)
        spans.append(_span(mention, next(starts[mention], None)))
    return spans


def _span(mention: str, start: int | None) -> FieldSpan:
    end = None if start is None else start + len(mention)
    return {"text": mention, "start": start, "end": end}


def _starts(mention: str, text: str) -> Iterator[int]:
    if not mention:
        return
    exact = re.escape(mention)
    found = False
    for match in re.finditer(rf"(?<!\w){exact}(?!\w)", text):
        found = True
        yield match.start()
    if not found:
        for match in re.finditer(exact, text):
            yield match.start()
