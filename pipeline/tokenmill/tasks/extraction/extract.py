"""The `extract` task: extract fields described by a JSON schema into typed columns.

The engine constrains its output to a grammar generated from the schema. Answers are validated
anyway: an answer that max_tokens cuts off is not JSON, and a grammar checks neither calendar dates
nor the range of 64-bit integers.
"""

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from tokenmill.config.strict_yaml import load_yaml
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Sampling
from tokenmill.tasks.extraction.json_schema import AnswerReader, TypedSchema, read_object_schema
from tokenmill.tasks.extraction.offsets import Locate, find_spans
from tokenmill.tasks.kind import Join, TaskKind, TaskStep, template_columns
from tokenmill.tasks.retries import ask_until_valid, cut_off
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

_MODEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_TEXT_NOTE = "text"


class Extract(TaskSection):
    """`task: {kind: extract, json_schema: {type: object, properties: …}}`."""

    kind: Literal["extract"] = "extract"
    json_schema: dict[str, Any] = Field(
        description="The JSON schema of the answer, which must be an object: inline, the path of a "
        "JSON or YAML file, or module:PydanticModel."
    )
    column: str | None = Field(
        default=None,
        min_length=1,
        description="Write one struct column of this name instead of a column for each property.",
    )
    locate: Locate | None = Field(
        default=None, description="Add the offsets of extracted strings in the row's text."
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _load_json_schema(cls, value: Any) -> Any:
        """Replace a source by its schema, so that a stored job needs neither file nor module."""
        schema = _load_schema(value) if isinstance(value, str) else value
        return dict(read_object_schema(schema).schema) if isinstance(schema, Mapping) else schema

    @model_validator(mode="after")
    def _check_located_fields(self) -> "Extract":
        if self.locate is not None:
            names = self.typed_schema.type.names
            for name in self.locate.fields:
                if name not in names:
                    raise ValueError(
                        f"locate.fields: {name} is not a property of json_schema; "
                        f"the properties are {', '.join(names)}"
                    )
            # Raises an error for a field that does not hold strings.
            _record_fields(self)
        return self

    @cached_property
    def typed_schema(self) -> TypedSchema:
        """The schema and its Arrow type."""
        return read_object_schema(self.json_schema)


def _record_fields(section: Extract) -> list[pa.Field]:
    """A field for each property, with spans if it is located.

    Raises `ValueError` if a located field does not hold strings.
    """
    locate = section.locate
    return [
        field
        if locate is None or field.name not in locate.fields
        else field.with_type(locate.span_type(field))
        for field in section.typed_schema.type
    ]


def _fields(section: Extract) -> tuple[pa.Field, ...]:
    """A column for each property, or the single struct column that `column` names."""
    fields = _record_fields(section)
    return (
        tuple(fields) if section.column is None else (pa.field(section.column, pa.struct(fields)),)
    )


def _columns(step: TaskStep[Extract]) -> Mapping[str, str]:
    columns = template_columns(step)
    locate = step.section.locate
    return columns if locate is None else {locate.column: step.key_of("locate.column"), **columns}


def _join(section: Extract) -> Join | None:
    """Merge the lists of the chunks. No join with `locate`: offsets are relative to a chunk."""
    return (
        None
        if section.locate is not None
        else Join("union", partial(_join_records, section.column))
    )


def _check(step: TaskStep[Extract]) -> None:
    retries = step.section.retries
    retried = {} if retries is None else retries.sampling
    for key, values in (("sampling", step.section.sampling), ("retries.sampling", retried)):
        if values and "structured_outputs" in values:
            raise ValueError(
                f"{step.key_prefix}{key}.structured_outputs is generated from json_schema; "
                "remove it"
            )


def _samplings(step: TaskStep[Extract]) -> tuple[Sampling, ...]:
    # As a string, because vLLM copies the parameters of each request.
    schema = json.dumps(step.section.json_schema, ensure_ascii=False)
    structured = {"structured_outputs": {"json": schema}}
    return tuple(Sampling({**attempt.values, **structured}) for attempt in step.samplings)


def _build(step: TaskStep[Extract], context: TaskContext) -> "Extractor":
    section = step.section
    reader = AnswerReader(section.typed_schema)
    encoder = step.encoder(context)
    return Extractor(encoder, _samplings(step), reader, section.column, section.locate)


EXTRACT = TaskKind(
    name="extract",
    section=Extract,
    fields=_fields,
    build=_build,
    join=_join,
    columns=_columns,
    params=_samplings,
    check=_check,
    is_record=True,
    located_column=lambda section: None if section.locate is None else section.locate.column,
    starter=Starter(
        "fields",
        """\
prompt:                           # Jinja2 templates over the row's columns
  system: You list the people and places that a text names, and its subject, as JSON.
  user: $text
sampling: {temperature: 0, max_tokens: 256}
task:
  kind: extract
  json_schema:                    # each property becomes a column of the output
    type: object
    properties:
      subject: {type: string, maxLength: 80}
      people: {type: array, items: {type: string, maxLength: 40}, maxItems: 4}
      places: {type: array, items: {type: string, maxLength: 40}, maxItems: 4}
    required: [subject, people, places]
  # retries: {times: 1, sampling: {max_tokens: 512}}   # retry answers that were cut off
""",
    ),
)


def _load_schema(source: str) -> Any:
    """Load the schema from a JSON or YAML file, or from a pydantic model."""
    if _MODEL.fullmatch(source):
        return _model_schema(*source.split(":"))
    try:
        text = Path(source).read_text(encoding="utf-8")
        schema = json.loads(text) if source.endswith(".json") else load_yaml(text)
    except OSError as error:
        raise ValueError(f"{source}: cannot read the file ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error
    if not isinstance(schema, Mapping):
        reason = f"{source}: the file does not contain a JSON schema of an object"
        raise ValueError(reason)  # noqa: TRY004 - pydantic reports ValueError only
    return schema


def _model_schema(module: str, name: str) -> Any:
    # As with `python -m`, modules in the working directory can be imported.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{module}:{name}: cannot import the module: {error}") from error
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        reason = f"{module}:{name}: the module has no pydantic model of that name"
        raise ValueError(reason)  # noqa: TRY004 - pydantic reports ValueError only
    return model.model_json_schema()


class Extractor:
    """Sends one request per row, and another for each retry."""

    def __init__(
        self,
        encoder: PromptEncoder,
        samplings: Sequence[Sampling],
        reader: AnswerReader,
        column: str | None,
        locate: Locate | None,
    ) -> None:
        self._encoder = encoder
        self._samplings = samplings
        self._reader = reader
        self._column = column
        self._locate = locate

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        prompts = self._encoder.encode(rows)
        return [self._prepare_row(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _prepare_row(self, row: Row, prompt: Sequence[int] | Reject) -> PreparedRow | Reject:
        if isinstance(prompt, Reject):
            return prompt
        if self._locate is None:
            return PreparedRow([prompt])
        text = row[self._locate.column]
        if text is not None and not isinstance(text, str):
            reason = f"column {self._locate.column} is not a string, so locate cannot search it"
            return Reject(RejectClass.BAD_TEXT, reason)
        return PreparedRow([prompt], {_TEXT_NOTE: text or ""})

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        record = yield from ask_until_valid(prepared.prompts[0], self._samplings, self._read_record)
        if isinstance(record, Reject):
            return record
        if self._locate is not None:
            text = prepared.notes[_TEXT_NOTE]
            spans = {name: find_spans(record[name], text) for name in self._locate.fields}
            record = {**record, **spans}
        return record if self._column is None else {self._column: record}

    def _read_record(self, answer: Completion) -> Cells | Reject:
        truncated = cut_off(answer)
        if truncated is not None:
            return truncated
        try:
            return self._reader.read(answer.text)
        except ValueError as error:
            return Reject(RejectClass.INVALID_ANSWER, str(error))


def _join_records(column: str | None, parts: Sequence[Cells]) -> Cells:
    """Merge lists without duplicates; of other properties, keep the first non-null value."""
    records = parts if column is None else [part[column] for part in parts]
    record = {name: _join_values([part[name] for part in records]) for name in records[0]}
    return record if column is None else {column: record}


def _join_values(values: Sequence[Any]) -> Any:
    present = [value for value in values if value is not None]
    if not present or not isinstance(present[0], list):
        return present[0] if present else None
    union: list[Any] = []
    for item in (item for value in present for item in value):
        if item not in union:
            union.append(item)
    return union
