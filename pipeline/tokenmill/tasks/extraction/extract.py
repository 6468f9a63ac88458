"""Extract: fields by a JSON schema, as columns of Arrow types.

The engine writes by a grammar made of the schema; the answer is validated all the same, since one
that max_tokens cuts off is no JSON, and a grammar knows no calendar and no 64 bits.
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

from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Sampling
from tokenmill.tasks.extraction.json_schema import AnswerReader, TypedSchema, read_object_schema
from tokenmill.tasks.extraction.offsets import Locate, located
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
        description="Of an object; or a file that holds it, or module:PydanticModel."
    )
    column: str | None = Field(
        default=None,
        min_length=1,
        description="One struct column of this name, in place of a column for each property.",
    )
    locate: Locate | None = Field(default=None, description="Find strings in the row's text.")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _whole_schema(cls, value: Any) -> Any:
        """The schema itself, so that a stored job needs neither the file nor the module."""
        schema = _load_schema(value) if isinstance(value, str) else value
        return dict(read_object_schema(schema).schema) if isinstance(schema, Mapping) else schema

    @model_validator(mode="after")
    def _locatable(self) -> "Extract":
        if self.locate is not None:
            names = self.typed_schema.type.names
            for name in self.locate.fields:
                if name not in names:
                    raise ValueError(f"locate.fields: {name} is none of {', '.join(names)}")
            # Raises for a field that holds no strings.
            _record_fields(self)
        return self

    @cached_property
    def typed_schema(self) -> TypedSchema:
        """The schema and its Arrow type."""
        return read_object_schema(self.json_schema)


def _record_fields(section: Extract) -> list[pa.Field]:
    """A field for each property, with spans if located. Raises `ValueError`."""
    locate = section.locate
    return [
        field
        if locate is None or field.name not in locate.fields
        else field.with_type(locate.located_type(field))
        for field in section.typed_schema.type
    ]


def _fields(section: Extract) -> tuple[pa.Field, ...]:
    """A column for each property, or the one struct column that `column` names."""
    fields = _record_fields(section)
    return (
        tuple(fields) if section.column is None else (pa.field(section.column, pa.struct(fields)),)
    )


def _columns(step: TaskStep[Extract]) -> Mapping[str, str]:
    columns = template_columns(step)
    locate = step.section.locate
    return columns if locate is None else {locate.column: step.key_of("locate.column"), **columns}


def _join(section: Extract) -> Join | None:
    """Lists are united. Offsets in a chunk are not offsets in the text, so those rows are not."""
    return None if section.locate is not None else Join("union", partial(_joined, section.column))


def _check(step: TaskStep[Extract]) -> None:
    retries = step.section.retries
    retried = {} if retries is None else retries.sampling
    for key, values in (("sampling", step.section.sampling), ("retries.sampling", retried)):
        if values and "structured_outputs" in values:
            raise ValueError(
                f"{step.key_prefix}{key}.structured_outputs is made of json_schema; leave it out"
            )


def _samplings(step: TaskStep[Extract]) -> tuple[Sampling, ...]:
    # As text: vLLM copies the parameters of each request.
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
    """The schema in a file, JSON or YAML, or of a pydantic model."""
    if _MODEL.fullmatch(source):
        return _model_schema(*source.split(":"))
    try:
        text = Path(source).read_text(encoding="utf-8")
        schema = json.loads(text) if source.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{source}: cannot read it ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error
    if not isinstance(schema, Mapping):
        reason = f"{source}: the file holds no schema of an object"
        raise ValueError(reason)  # noqa: TRY004 - what pydantic reports
    return schema


def _model_schema(module: str, name: str) -> Any:
    # As with `python -m`: a module beside the user is found.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        model = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{module}:{name}: cannot import it: {error}") from error
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        reason = f"{module}:{name}: the module has no pydantic model of that name"
        raise ValueError(reason)  # noqa: TRY004 - what pydantic reports
    return model.model_json_schema()


class Extractor:
    """One request a row, and one more for each retry."""

    def __init__(
        self,
        prompter: PromptEncoder,
        samplings: Sequence[Sampling],
        reader: AnswerReader,
        column: str | None,
        locate: Locate | None,
    ) -> None:
        self._prompter = prompter
        self._samplings = samplings
        self._reader = reader
        self._column = column
        self._locate = locate

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        prompts = self._prompter.encode(rows)
        return [self._prepared(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def _prepared(self, row: Row, prompt: Sequence[int] | Reject) -> PreparedRow | Reject:
        if isinstance(prompt, Reject):
            return prompt
        if self._locate is None:
            return PreparedRow([prompt])
        text = row[self._locate.column]
        if text is not None and not isinstance(text, str):
            reason = f"the column {self._locate.column} holds no text to find the fields in"
            return Reject(RejectClass.BAD_TEXT, reason)
        return PreparedRow([prompt], {_TEXT_NOTE: text or ""})

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        record = yield from ask_until_valid(prepared.prompts[0], self._samplings, self._record)
        if isinstance(record, Reject):
            return record
        if self._locate is not None:
            text = prepared.notes[_TEXT_NOTE]
            spans = {name: located(record[name], text) for name in self._locate.fields}
            record = {**record, **spans}
        return record if self._column is None else {self._column: record}

    def _record(self, answer: Completion) -> Cells | Reject:
        cut = cut_off(answer)
        if cut is not None:
            return cut
        try:
            return self._reader.read(answer.text)
        except ValueError as error:
            return Reject(RejectClass.INVALID_ANSWER, str(error))


def _joined(column: str | None, parts: Sequence[Cells]) -> Cells:
    """Each item of a list once; of all else the first value that is not null."""
    records = parts if column is None else [part[column] for part in parts]
    record = {name: _joined_values([part[name] for part in records]) for name in records[0]}
    return record if column is None else {column: record}


def _joined_values(values: Sequence[Any]) -> Any:
    present = [value for value in values if value is not None]
    if not present or not isinstance(present[0], list):
        return present[0] if present else None
    union: list[Any] = []
    for item in (item for value in present for item in value):
        if item not in union:
            union.append(item)
    return union
