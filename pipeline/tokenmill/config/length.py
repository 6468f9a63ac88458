"""The `length` section: what to do with a row whose text is too long for the model."""

from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.prompt import Prompt
from tokenmill.config.sampling import check_sampling
from tokenmill.config.section import Section
from tokenmill.row_columns import NUM_CHUNKS, TRUNCATED_TOKENS

#: How the cells of a row's chunks are combined into the row's cells.
JoinKind = Literal["concatenate", "union", "mean", "max"]
#: The variable in `join.prompt` that holds the list of the chunks' answers.
PARTS = "parts"
#: The last columns of a task with the policy `truncate` or `chunk`.
LENGTH_FIELDS = (
    pa.field(TRUNCATED_TOKENS, pa.int32()),
    pa.field(NUM_CHUNKS, pa.int32()),
)
Keep = Literal["head", "tail", "middle"]
Boundary = Literal["paragraphs", "sentences", "tokens"]


class RejectLong(Section):
    """`{policy: reject}` rejects the row with the class `prompt_too_long`."""

    policy: Literal["reject"] = "reject"


class Truncate(Section):
    """`{policy: truncate, column: text}` removes a part of the column's text."""

    policy: Literal["truncate"] = "truncate"
    column: str = Field(description="The column to shorten. The prompt must use it.")
    keep: Keep = Field(
        default="head",
        description="Which part stays: the start (`head`), the end (`tail`) or both (`middle`).",
    )
    marker: str = Field(default=" […] ", description="Text that replaces the removed part.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Longest text with its marker, in tokens. By default, what the context leaves.",
    )


class JoinPrompt(Section):
    """A second prompt, which combines the answers of the chunks.

    Its templates see the answers as the list `parts`, and the row's columns.
    """

    prompt: Prompt
    sampling: dict[str, Any] | None = Field(
        default=None, description="Sampling parameters of this prompt. By default, the task's."
    )

    @model_validator(mode="after")
    def _check_sampling(self) -> "JoinPrompt":
        if self.sampling is not None:
            check_sampling(self.sampling)
        return self


class Chunk(Section):
    """`{policy: chunk, column: text, join: …}` runs the task on each chunk of the column's text.

    The answers are then combined as `join` says.
    """

    policy: Literal["chunk"] = "chunk"
    column: str = Field(description="The column to split. The prompt must use it.")
    by: Boundary = Field(
        default="paragraphs",
        description="Where a chunk ends if possible. A single long paragraph is split further.",
    )
    max_tokens: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Longest text of a chunk, in tokens. By default, what the context leaves.",
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        default=0, description="How many tokens of the previous chunk a chunk may repeat."
    )
    join: JoinKind | JoinPrompt = Field(description="How the chunks' answers are combined.")
    separator: str | None = Field(
        default=None, description="Text between concatenated answers. By default, a blank line."
    )

    @model_validator(mode="after")
    def _check_overlap_and_separator(self) -> "Chunk":
        if self.max_tokens is not None and self.overlap > self.max_tokens // 2:
            raise ValueError(
                f"overlap ({self.overlap}) is more than half of max_tokens ({self.max_tokens}); "
                "reduce it"
            )
        if self.join != "concatenate" and self.separator is not None:
            raise ValueError("separator goes with join: concatenate; remove it")
        return self


Length = Annotated[RejectLong | Truncate | Chunk, Field(discriminator="policy")]
