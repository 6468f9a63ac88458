"""Extract: fields by a JSON schema, as columns of Arrow types.

The engine writes by a grammar made of the schema; the answer is validated all the same, since one
that max_tokens cuts off is no JSON, and a grammar knows no calendar and no 64 bits.
"""

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from tokenmill.config.length import JoinKind
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Sampling
from tokenmill.tasks.extraction.json_schema import AnswerReader, TypedSchema, read_object_schema
from tokenmill.tasks.extraction.offsets import Locate, located
from tokenmill.tasks.retries import ask_until_valid, cut_off
from tokenmill.tasks.section import TaskSection
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
            self._record_fields  # noqa: B018 - raises for a field that holds no strings
        return self

    def check(self) -> None:
        super().check()
        retried = {} if self.retries is None else self.retries.sampling
        for place, values in (("sampling", self.sampling), ("retries.sampling", retried)):
            if values and "structured_outputs" in values:
                raise ValueError(
                    f"{self.place}{place}.structured_outputs is made of json_schema; leave it out"
                )

    @cached_property
    def typed_schema(self) -> TypedSchema:
        """The schema and its Arrow type."""
        return read_object_schema(self.json_schema)

    @property
    def _record_fields(self) -> list[pa.Field]:
        wanted = () if self.locate is None else self.locate.fields
        return [
            field.with_type(self.locate.located_type(field))
            if self.locate is not None and field.name in wanted
            else field
            for field in self.typed_schema.type
        ]

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """A column for each property, or the one that `column` names; with spans if located."""
        fields = self._record_fields
        return tuple(fields) if self.column is None else (pa.field(self.column, pa.struct(fields)),)

    @property
    def columns(self) -> Mapping[str, str]:
        columns = super().columns
        if self.locate is None:
            return columns
        return {self.locate.column: f"{self.place or 'task.'}locate.column", **columns}

    @property
    def join_kind(self) -> JoinKind | None:
        """Lists are united; spans in a chunk are not those in the text, so such rows are not."""
        return "union" if self.locate is None else None

    @property
    def located_column(self) -> str | None:
        return None if self.locate is None else self.locate.column

    @property
    def own_samplings(self) -> tuple[Sampling, ...]:
        # As text: vLLM copies the parameters of each request.
        schema = json.dumps(self.json_schema, ensure_ascii=False)
        structured = {"structured_outputs": {"json": schema}}
        return tuple(Sampling({**each.values, **structured}) for each in super().own_samplings)

    def build(self, tools: TaskContext) -> "Extractor":
        reader = AnswerReader(self.typed_schema)
        prompter = self.prompter(tools)
        extractor = JoiningExtractor if self.locate is None else Extractor
        return extractor(prompter, self.own_samplings, reader, self.column, self.locate)


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


class JoiningExtractor(Extractor):
    """Rows may be asked about in parts."""

    def join(self, parts: Sequence[Cells]) -> Cells:
        """Of a list what any part found, once each; of all else the first that is not null."""
        if self._column is not None:
            records = [part[self._column] for part in parts]
            return {self._column: _joined(records)}
        return _joined(parts)


def _joined(records: Sequence[Cells]) -> Cells:
    return {name: _joined_values([record[name] for record in records]) for name in records[0]}


def _joined_values(values: Sequence[Any]) -> Any:
    present = [value for value in values if value is not None]
    if not present or not isinstance(present[0], list):
        return present[0] if present else None
    union: list[Any] = []
    for item in (item for value in present for item in value):
        if item not in union:
            union.append(item)
    return union
