"""The `rerank` task: scores how well a document answers a query, with a cross-encoder."""

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
    """`task: {kind: rerank}`: scores a document for a query. Both are templates; no prompt."""

    kind: Literal["rerank"]
    query: str = Field(min_length=1, description="Template of the query.")
    document: str = Field(min_length=1, description="Template of the document.")
    activation: bool = Field(
        default=False,
        description="Apply the model's own activation, a sigmoid unless its config sets another.",
    )


def _templates(step: TaskStep[Rerank]) -> Templates:
    section = step.section
    sources = {"query": section.query, "document": section.document}
    templates = compile_templates({step.key_of(key): text for key, text in sources.items()})
    if not templates.columns:
        raise UserError(f"{step.key_of('document')}: neither query nor document uses a column")
    return {"pair": templates}


def _params(step: TaskStep[Rerank]) -> tuple[Params, ...]:
    return (Pooling("classify", {"use_activation": step.section.activation}),)


def _build(step: TaskStep[Rerank], context: TaskContext) -> "Reranker":
    num_labels = context.config.get("num_labels", 1)
    if num_labels != 1:
        raise UserError(
            f"{step.model_key or 'model'}: rerank needs a cross-encoder with one label; this model "
            f"has {num_labels}"
        )
    # A tokenizer that cannot encode pairs raises here, before the first row.
    context.tokenizer.encode_pairs([])
    return Reranker(step.encoder(context, "pair"), activation=step.section.activation)


def _best(parts: Sequence[Cells]) -> Cells:
    """Give a document the relevance of its best chunk."""
    return {"relevance": max(part["relevance"] for part in parts)}


RERANK = TaskKind(
    name="rerank",
    section=Rerank,
    # Larger is better. Values are comparable only within one model.
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
  query: What is this about?      # a template: the same for all rows, or a column
  document: $text
""",
        StarterModel("cross-encoder/ms-marco-MiniLM-L6-v2", "BAAI/bge-reranker-v2-m3"),
    ),
)


class Reranker:
    """Sends one request per row, with both texts in one prompt."""

    def __init__(self, encoder: PromptEncoder, *, activation: bool) -> None:
        self._encoder = encoder
        self._activation = activation
        # By the position at which the second text's token types begin.
        self._poolings: dict[int | None, Pooling] = {}

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        contents = self._encoder.render(rows)
        texts = [(item[0], item[1]) for item in contents if not isinstance(item, Reject)]
        pairs = iter(self._encoder.tokenizer.encode_pairs(texts))
        entries: list[PreparedRow | Reject] = []
        for item in contents:
            if isinstance(item, Reject):
                entries.append(item)
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
            raise ValueError("the engine returned no score")
        return {"relevance": float(answer.vector[0])}

    def _pooling(self, second: int | None) -> Pooling:
        if second not in self._poolings:
            values: dict[str, Any] = {"use_activation": self._activation}
            if second is not None:
                # vLLM builds its token type ids from this position.
                values["extra_kwargs"] = {"compressed_token_type_ids": second}
            self._poolings[second] = Pooling("classify", values)
        return self._poolings[second]
