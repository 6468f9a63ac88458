"""Embed: a text as a vector of fixed length, from a pooling model."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Pooling, Request
from tokenmill.tasks.kind import Join, ReadConfig, TaskKind, TaskStep
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class Embed(TaskSection):
    """`task: {kind: embed}`: one vector a row, as sentence-transformers gives it."""

    kind: Literal["embed"]
    dimensions: int | None = Field(
        default=None, ge=1, description="By default the model's; fewer for a Matryoshka model."
    )
    normalize: bool = Field(default=True, description="To length 1.")
    dtype: Literal["float32", "float16"] = "float32"


def _fields(section: Embed) -> tuple[pa.Field, ...]:
    """A list of fixed size once the dimensions are known (`TaskKind.resolve`)."""
    size = -1 if section.dimensions is None else section.dimensions
    return (pa.field("embedding", pa.list_(_TYPES[section.dtype], size)),)


def _resolve(step: TaskStep[Embed], read_config: ReadConfig) -> Embed:
    if step.section.dimensions is not None:
        return step.section
    return step.section.model_copy(update={"dimensions": _model_dimensions(step, read_config())})


def _build(step: TaskStep[Embed], context: TaskContext) -> "Embedder":
    section = step.section
    full = _model_dimensions(step, context.config)
    values: dict[str, Any] = {"use_activation": section.normalize}
    if section.dimensions not in (None, full):
        _check_matryoshka(section.dimensions, full, context.config, step.key_of("dimensions"))
        values["dimensions"] = section.dimensions
    return Embedder(step.encoder(context), Pooling("embed", values), section.dtype)


def _join(section: Embed) -> Join:
    """The mean of the chunks' vectors, scaled to length 1 if they are."""

    def cells(parts: Sequence[Cells]) -> Cells | Reject:
        mean = np.mean([np.asarray(part["embedding"], np.float32) for part in parts], axis=0)
        length = float(np.linalg.norm(mean))
        return _cells(mean / length if section.normalize and length else mean, section.dtype)

    return Join("mean", cells)


EMBED = TaskKind(
    name="embed",
    section=Embed,
    fields=_fields,
    build=_build,
    writes_text=False,
    joins_by_prompt=False,
    runner=lambda _: "pooling",
    join=_join,
    params=lambda step: (Pooling("embed", {"use_activation": step.section.normalize}),),
    resolve=_resolve,
    starter=Starter(
        "embeddings",
        """\
prompt: {text: $text}             # with a prefix where the model wants one: "query: …"
task:
  kind: embed
  # dimensions: 256               # shorter vectors, of models that were trained for it
""",
        StarterModel("bundled:minilm-l6", "Qwen/Qwen3-Embedding-0.6B"),
    ),
)


class Embedder:
    """One request a row."""

    def __init__(self, encoder: PromptEncoder, pooling: Pooling, dtype: str) -> None:
        self._encoder = encoder
        self._pooling = pooling
        self._dtype = dtype

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            prompt if isinstance(prompt, Reject) else PreparedRow([prompt])
            for prompt in self._encoder.encode(rows)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (answer,) = yield [Request(prepared.prompts[0], self._pooling)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine gave no vector")
        return _cells(answer.vector, self._dtype)


def _cells(vector: npt.NDArray[np.float32], dtype: str) -> Cells | Reject:
    with np.errstate(over="ignore"):
        numbers = vector.astype(dtype)
    if not np.isfinite(numbers).all():
        reason = f"the vector has numbers that are not finite as {dtype}"
        return Reject(RejectClass.TASK_ERROR, reason, attempts=1)
    return {"embedding": numbers}


def _model_dimensions(step: TaskStep[Embed], config: Mapping[str, Any]) -> int:
    size = config.get("embedding_size")
    if not isinstance(size, int):
        raise UserError(
            f"{step.key_of('dimensions')}: the model's config.json does not say how long its "
            "vectors are; set it"
        )
    return size


def _check_matryoshka(
    dimensions: int | None, full: int, config: Mapping[str, Any], key: str
) -> None:
    """Check shorter vectors before a run; vLLM would refuse each row."""
    allowed = config.get("matryoshka_dimensions")
    if not (allowed or config.get("is_matryoshka")):
        raise UserError(
            f"{key}: the model gives {full} and says nothing of shorter vectors; leave it out"
        )
    if dimensions is None or dimensions > full or (allowed and dimensions not in allowed):
        choices = ", ".join(map(str, allowed)) if allowed else f"1 to {full}"
        raise UserError(f"{key}: {dimensions} is none of the model's ({choices})")
