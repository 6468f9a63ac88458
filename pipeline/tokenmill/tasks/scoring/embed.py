"""The `embed` task: turns a text into a vector of fixed length with a pooling model."""

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
    """`task: {kind: embed}`: one vector per row, equal to the one from sentence-transformers."""

    kind: Literal["embed"]
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Length of the vector. Default: the model's. Less needs a Matryoshka model.",
    )
    normalize: bool = Field(default=True, description="Scale vectors to length 1.")
    dtype: Literal["float32", "float16"] = "float32"


def _fields(section: Embed) -> tuple[pa.Field, ...]:
    """One list column, of fixed size once `TaskKind.resolve` has set the dimensions."""
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
    """Average the chunks' vectors, and scale the mean to length 1 if `normalize` is set."""

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
prompt: {text: $text}             # add the prefix your model expects, such as "query: "
task:
  kind: embed
  # dimensions: 256               # shorter vectors, if the model was trained for them
""",
        StarterModel("bundled:minilm-l6", "Qwen/Qwen3-Embedding-0.6B"),
    ),
)


class Embedder:
    """Sends one request per row."""

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
            raise ValueError("the engine returned no vector")
        return _cells(answer.vector, self._dtype)


def _cells(vector: npt.NDArray[np.float32], dtype: str) -> Cells | Reject:
    with np.errstate(over="ignore"):
        values = vector.astype(dtype)
    if not np.isfinite(values).all():
        reason = f"the vector contains values that are not finite in {dtype}"
        return Reject(RejectClass.TASK_ERROR, reason, attempts=1)
    return {"embedding": values}


def _model_dimensions(step: TaskStep[Embed], config: Mapping[str, Any]) -> int:
    size = config.get("embedding_size")
    if not isinstance(size, int):
        raise UserError(
            f"{step.key_of('dimensions')}: config.json does not give the length of the "
            "model's vectors; set it here"
        )
    return size


def _check_matryoshka(
    dimensions: int | None, full: int, config: Mapping[str, Any], key: str
) -> None:
    """Raise `UserError` for an unsupported length, for which vLLM would reject every row."""
    allowed = config.get("matryoshka_dimensions")
    if not (allowed or config.get("is_matryoshka")):
        raise UserError(
            f"{key}: the model returns {full} dimensions and supports no other length; "
            "remove the key"
        )
    if dimensions is None or dimensions > full or (allowed and dimensions not in allowed):
        supported = ", ".join(map(str, allowed)) if allowed else f"1 to {full}"
        raise UserError(f"{key}: the model does not support {dimensions}; use {supported}")
