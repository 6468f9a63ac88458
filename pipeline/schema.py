"""The nouns that every stage shares, and the Arrow types they have at rest.

Ground floor: imports nothing of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa


class RejectClass(StrEnum):
    """Why a row got no answer. Stable names: users filter on them."""

    EMPTY_INPUT = "empty_input"
    BAD_TEXT = "bad_text"
    TEMPLATE_ERROR = "template_error"
    CHAT_TEMPLATE_ERROR = "chat_template_error"
    PROMPT_TOO_LONG = "prompt_too_long"
    ENGINE_ERROR = "engine_error"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that got no answer. `attempts` counts the tries in an engine (0: never sent)."""

    reject_class: RejectClass
    message: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One engine call. `key` is unique within the engine's life."""

    key: int
    prompt_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer to one request.

    `cumulative_logprob` is the sum of the natural logarithms of the sampled tokens'
    probabilities; None when the job's sampling turns log-probabilities off.
    """

    key: int
    text: str
    finish_reason: str
    num_input_tokens: int
    num_generated_tokens: int
    cumulative_logprob: float | None


Answer = Completion | Reject

ERROR_TYPE = pa.struct(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)

#: Stand behind the task's columns in every output file.
PROVENANCE_FIELDS = (
    pa.field("error", ERROR_TYPE),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
)


def error_array(rejects: Sequence[Reject | None]) -> pa.StructArray:
    """The `error` column: null where the row has an answer."""
    cells = [
        None
        if reject is None
        else {
            "class": str(reject.reject_class),
            "message": reject.message,
            "attempts": reject.attempts,
        }
        for reject in rejects
    ]
    return pa.array(cells, type=ERROR_TYPE)


def reject_from_cell(cell: dict[str, object] | None) -> Reject | None:
    """The inverse of one cell of `error_array`."""
    if cell is None:
        return None
    return Reject(RejectClass(str(cell["class"])), str(cell["message"]), int(str(cell["attempts"])))
