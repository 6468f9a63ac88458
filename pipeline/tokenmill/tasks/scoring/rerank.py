"""Rerank: a cross-encoder's number for how well a document answers a query."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from tokenmill.config.length import JoinKind
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import PromptTemplates, compile_templates
from tokenmill.reject import Reject
from tokenmill.request import Params, Pooling, Request
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Runner, TaskContext


class Rerank(TaskSection):
    """`task: {kind: rerank}`: two templates in place of a prompt."""

    samples: ClassVar[bool] = False
    asks_by_prompt: ClassVar[bool] = False
    joins_by_prompt: ClassVar[bool] = False

    kind: Literal["rerank"]
    query: str = Field(min_length=1, description="A template.")
    document: str = Field(min_length=1, description="A template.")
    activation: bool = Field(
        default=False, description="The model's own activation (a sigmoid, unless it says else)."
    )

    @property
    def runner(self) -> Runner:
        return "pooling"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The larger, the better; numbers of one model compare with each other alone."""
        return (pa.field("relevance", pa.float64()),)

    def check(self) -> None:
        if self.prompt is not None:
            raise ValueError(f"{self.place}prompt: {self.kind} asks by query and document")

    @property
    def columns(self) -> Mapping[str, str]:
        return self._pair.columns

    @property
    def templates(self) -> Mapping[str, str]:
        return {"query": self.query, "document": self.document}

    @property
    def params(self) -> tuple[Params, ...]:
        return (Pooling("classify", {"use_activation": self.activation}),)

    @property
    def join_kind(self) -> JoinKind:
        """A document is as relevant as its best chunk."""
        return "max"

    @property
    def _pair(self) -> PromptTemplates:
        templates = compile_templates(
            {self.place_of(key): text for key, text in self.templates.items()}
        )
        if not templates.columns:
            raise UserError(f"{self.place_of('document')}: no template uses a column")
        return templates

    def build(self, tools: TaskContext) -> "Reranker":
        num_labels = tools.config.get("num_labels", 1)
        if num_labels != 1:
            raise UserError(
                f"{self.model_place or 'model'}: a cross-encoder gives one number; this one has "
                f"{num_labels} labels"
            )
        # Said before the first row.
        tools.tokenizer.encode_pairs([])
        return Reranker(PromptEncoder(self._pair, tools.tokenizer), activation=self.activation)


class Reranker:
    """One request a row: both texts as one prompt."""

    def __init__(self, prompter: PromptEncoder, *, activation: bool) -> None:
        self._prompter = prompter
        self._activation = activation
        # By where the second text's token types begin.
        self._poolings: dict[int | None, Pooling] = {}

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        contents = self._prompter.render(rows)
        texts = [(one[0], one[1]) for one in contents if not isinstance(one, Reject)]
        pairs = iter(self._prompter.tokenizer.encode_pairs(texts))
        entries: list[PreparedRow | Reject] = []
        for one in contents:
            if isinstance(one, Reject):
                entries.append(one)
            else:
                pair = next(pairs)
                entries.append(PreparedRow([pair.token_ids], {"second": pair.second}))
        return entries

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        pooling = self._pooling(prepared.notes["second"])
        (answer,) = yield [Request(prepared.prompts[0], pooling)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine gave no number")
        return {"relevance": float(answer.vector[0])}

    @staticmethod
    def join(parts: Sequence[Cells]) -> Cells:
        """A document is as relevant as its best chunk."""
        return {"relevance": max(part["relevance"] for part in parts)}

    def _pooling(self, second: int | None) -> Pooling:
        if second not in self._poolings:
            values: dict[str, Any] = {"use_activation": self._activation}
            if second is not None:
                # What vLLM makes its token types of.
                values["extra_kwargs"] = {"compressed_token_type_ids": second}
            self._poolings[second] = Pooling("classify", values)
        return self._poolings[second]
