"""Find extracted strings in a row's text, so that invented ones are recognized."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from tokenmill.config.section import Section

#: A string and its offsets in code points; the end is exclusive. If the text does not contain the
#: string, both offsets are null.
SPAN_TYPE = pa.struct(
    [
        pa.field("text", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
    ]
)
FieldSpan = Mapping[str, Any]


class Locate(Section):
    """`locate: {column: text, fields: [person]}`: return fields as spans instead of strings."""

    column: str = Field(description="The column whose text is searched for the strings.")
    fields: tuple[str, ...] = Field(
        min_length=1, description="The properties to locate: strings or lists of strings."
    )

    def span_type(self, field: pa.Field) -> pa.DataType:
        """The type of a field's spans. Raises `ValueError` if the field does not hold strings."""
        if field.type.equals(pa.string()):
            return SPAN_TYPE
        if field.type.equals(pa.list_(pa.string())):
            return pa.list_(SPAN_TYPE)
        raise ValueError(
            f"locate.fields: {field.name} has type {field.type}; only strings and lists of strings "
            "can be located"
        )


def find_spans(
    value: str | Sequence[str | None] | None, text: str
) -> FieldSpan | list[FieldSpan | None] | None:
    """Find the spans of a field's strings: the n-th mention of a string is its n-th occurrence.

    The match is exact and case-sensitive. Only whole words match (no letter or digit adjoins
    them), unless the string never occurs as one, as in scripts without spaces; then any
    occurrence matches.
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
    pattern = re.escape(mention)
    has_whole_word = False
    for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text):
        has_whole_word = True
        yield match.start()
    if not has_whole_word:
        for match in re.finditer(pattern, text):
            yield match.start()
