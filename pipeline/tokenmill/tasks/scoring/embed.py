"""Embed: a text as a vector of fixed length, from a pooling model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tokenmill.config.length import JoinKind
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Params, Pooling, Request
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Runner, TaskContext

_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class Embed(TaskSection):
    """`task: {kind: embed}`: one vector a row, as sentence-transformers gives it."""

    samples: ClassVar[bool] = False
    joins_by_prompt: ClassVar[bool] = False

    kind: Literal["embed"]
    dimensions: int | None = Field(
        default=None, ge=1, description="By default the model's; fewer for a Matryoshka model."
    )
    normalize: bool = Field(default=True, description="To length 1.")
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def runner(self) -> Runner:
        return "pooling"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """Of fixed size once the dimensions are known (`resolved`)."""
        size = -1 if self.dimensions is None else self.dimensions
        return (pa.field("embedding", pa.list_(_TYPES[self.dtype], size)),)

    @property
    def params(self) -> tuple[Params, ...]:
        return (Pooling("embed", {"use_activation": self.normalize}),)

    @property
    def join_kind(self) -> JoinKind:
        """The mean of the chunks' vectors."""
        return "mean"

    def resolved(self, config: Callable[[], Mapping[str, Any]]) -> Self:
        if self.dimensions is not None:
            return self
        return self.model_copy(update={"dimensions": _own_dimensions(self, config())})

    def build(self, tools: TaskContext) -> "Embedder":
        own = _own_dimensions(self, tools.config)
        dimensions = own if self.dimensions is None else self.dimensions
        values: dict[str, Any] = {"use_activation": self.normalize}
        if dimensions != own:
            _check_matryoshka(self, dimensions, own, tools.config)
            values["dimensions"] = dimensions
        return Embedder(self.prompter(tools), Pooling("embed", values), self)


class Embedder:
    """One request a row."""

    def __init__(self, prompter: PromptEncoder, pooling: Pooling, section: Embed) -> None:
        self._prompter = prompter
        self._pooling = pooling
        self._dtype = np.dtype(section.dtype)
        self._normalize = section.normalize

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            prompt if isinstance(prompt, Reject) else PreparedRow([prompt])
            for prompt in self._prompter.encode(rows)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (answer,) = yield [Request(prepared.prompts[0], self._pooling)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine gave no vector")
        return self._cells(answer.vector, attempts=1)

    def join(self, parts: Sequence[Cells]) -> Cells | Reject:
        """A row's vector from those of its chunks: their mean, to length 1 where they are."""
        mean = np.mean([np.asarray(part["embedding"], np.float32) for part in parts], axis=0)
        length = float(np.linalg.norm(mean))
        return self._cells(mean / length if self._normalize and length else mean, attempts=1)

    def _cells(self, vector: npt.NDArray[np.float32], attempts: int) -> Cells | Reject:
        with np.errstate(over="ignore"):
            numbers = vector.astype(self._dtype)
        if not np.isfinite(numbers).all():
            reason = f"the vector has numbers that are not finite as {self._dtype}"
            return Reject(RejectClass.TASK_ERROR, reason, attempts)
        return {"embedding": numbers}


def _own_dimensions(section: Embed, config: Mapping[str, Any]) -> int:
    size = config.get("embedding_size")
    if not isinstance(size, int):
        raise UserError(
            f"{section.place_of('dimensions')}: the model's config.json does not say how long its "
            "vectors are; set it"
        )
    return size


def _check_matryoshka(section: Embed, dimensions: int, own: int, config: Mapping[str, Any]) -> None:
    """VLLM would refuse each row."""
    allowed = config.get("matryoshka_dimensions")
    if not (allowed or config.get("is_matryoshka")):
        raise UserError(
            f"{section.place_of('dimensions')}: the model gives {own} and says nothing of shorter "
            "vectors; leave it out"
        )
    if dimensions > own or (allowed and dimensions not in allowed):
        choices = ", ".join(map(str, allowed)) if allowed else f"1 to {own}"
        raise UserError(
            f"{section.place_of('dimensions')}: {dimensions} is none of the model's ({choices})"
        )
