"""`length`: what becomes of a row whose text is too long for the model, as the job says it."""

from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.prompt import Prompt
from tokenmill.config.sampling import check_sampling
from tokenmill.config.section import Section

#: How a task's cells of several chunks become the row's.
JoinKind = Literal["concatenate", "union", "mean", "max"]
#: The variable that holds the chunks' answers in `join.prompt`.
PARTS = "parts"
#: Stand behind the columns of a task whose policy cuts or divides.
LENGTH_FIELDS = (
    pa.field("truncated_tokens", pa.int32()),
    pa.field("num_chunks", pa.int32()),
)
Keep = Literal["head", "tail", "middle"]
Boundary = Literal["paragraphs", "sentences", "tokens"]


class RejectLong(Section):
    """`{policy: reject}`: the row is rejected with `prompt_too_long`."""

    policy: Literal["reject"] = "reject"


class Truncate(Section):
    """`{policy: truncate, column: text}`: a part of the column is left out."""

    policy: Literal["truncate"] = "truncate"
    column: str = Field(description="The column that is cut; the prompt uses it.")
    keep: Keep = Field(default="head", description="middle keeps both ends.")
    marker: str = Field(default=" […] ", description="Stands where text was left out.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Of the column with its marker; by default what the context leaves.",
    )


class JoinPrompt(Section):
    """A second prompt, over the chunks' answers in the list `parts` and the row's columns."""

    prompt: Prompt
    sampling: dict[str, Any] | None = Field(default=None, description="By default the task's.")

    @model_validator(mode="after")
    def _whole_sampling(self) -> "JoinPrompt":
        if self.sampling is not None:
            check_sampling(self.sampling)
        return self


class Chunk(Section):
    """`{policy: chunk, column: text, join: …}`: the task answers for each chunk of the column."""

    policy: Literal["chunk"] = "chunk"
    column: str = Field(description="The column that is divided; the prompt uses it.")
    by: Boundary = Field(default="paragraphs", description="Where a chunk ends, if it can.")
    max_tokens: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="Of the column in one chunk; by default what the context leaves."
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Tokens, at most, that a chunk repeats of the one before."
    )
    join: JoinKind | JoinPrompt
    separator: str | None = Field(
        default=None, description="Between concatenated texts; by default a blank line."
    )

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> "Chunk":
        if self.max_tokens is not None and self.overlap > self.max_tokens // 2:
            raise ValueError(
                f"overlap ({self.overlap}) is more than half of max_tokens ({self.max_tokens})"
            )
        if self.join != "concatenate" and self.separator is not None:
            raise ValueError("separator goes with join: concatenate")
        return self


Length = Annotated[RejectLong | Truncate | Chunk, Field(discriminator="policy")]
