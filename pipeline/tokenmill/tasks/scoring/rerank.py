"""Rerank: a cross-encoder's number for how well a document answers a query."""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import compile_templates
from tokenmill.reject import Reject
from tokenmill.request import Params, Pooling, Request
from tokenmill.tasks.kind import Join, TaskKind, TaskStep, Templates
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext


class Rerank(TaskSection):
    """`task: {kind: rerank}`: two templates in place of a prompt."""

    kind: Literal["rerank"]
    query: str = Field(min_length=1, description="A template.")
    document: str = Field(min_length=1, description="A template.")
    activation: bool = Field(
        default=False, description="The model's own activation (a sigmoid, unless it says else)."
    )


def _templates(step: TaskStep[Rerank]) -> Templates:
    section = step.section
    sources = {"query": section.query, "document": section.document}
    templates = compile_templates({step.key_of(key): text for key, text in sources.items()})
    if not templates.columns:
        raise UserError(f"{step.key_of('document')}: no template uses a column")
    return {"pair": templates}


def _params(step: TaskStep[Rerank]) -> tuple[Params, ...]:
    return (Pooling("classify", {"use_activation": step.section.activation}),)


def _build(step: TaskStep[Rerank], context: TaskContext) -> "Reranker":
    num_labels = context.config.get("num_labels", 1)
    if num_labels != 1:
        raise UserError(
            f"{step.model_key or 'model'}: a cross-encoder gives one number; this one has "
            f"{num_labels} labels"
        )
    # A tokenizer that encodes no pairs raises here, before the first row.
    context.tokenizer.encode_pairs([])
    return Reranker(step.encoder(context, "pair"), activation=step.section.activation)


def _best(parts: Sequence[Cells]) -> Cells:
    """A document is as relevant as its best chunk."""
    return {"relevance": max(part["relevance"] for part in parts)}


RERANK = TaskKind(
    name="rerank",
    section=Rerank,
    # The larger the better. Only numbers of one model compare with each other.
    fields=lambda _: (pa.field("relevance", pa.float64()),),
    build=_build,
    writes_text=False,
    asks_by_prompt=False,
    joins_by_prompt=False,
    runner=lambda _: "pooling",
    join=lambda _: Join("max", _best),
    templates=_templates,
    params=_params,
    starter=Starter(
        "relevance",
        """\
task:
  kind: rerank
  query: What is this about?      # a template too; the same for all rows, or from a column
  document: $text
""",
        StarterModel("cross-encoder/ms-marco-MiniLM-L6-v2", "BAAI/bge-reranker-v2-m3"),
    ),
)


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
                entries.append(PreparedRow([pair.token_ids], {"second": pair.second_start}))
        return entries

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        pooling = self._pooling(prepared.notes["second"])
        (answer,) = yield [Request(prepared.prompts[0], pooling)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine gave no number")
        return {"relevance": float(answer.vector[0])}

    def _pooling(self, second: int | None) -> Pooling:
        if second not in self._poolings:
            values: dict[str, Any] = {"use_activation": self._activation}
            if second is not None:
                # What vLLM makes its token types of.
                values["extra_kwargs"] = {"compressed_token_type_ids": second}
            self._poolings[second] = Pooling("classify", values)
        return self._poolings[second]
