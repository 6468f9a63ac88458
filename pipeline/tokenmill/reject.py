"""Why a row has no answer: classes of rejects, and the `error` column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

ERROR_TYPE = pa.struct(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)


class RejectClass(StrEnum):
    """Why a row has no answer. The names are stable, since users filter by them."""

    EMPTY_INPUT = "empty_input"
    BAD_TEXT = "bad_text"
    TEMPLATE_ERROR = "template_error"
    CHAT_TEMPLATE_ERROR = "chat_template_error"
    PROMPT_TOO_LONG = "prompt_too_long"
    BAD_OVERRIDE = "bad_override"
    UNKNOWN_ADAPTER = "unknown_adapter"
    ENGINE_ERROR = "engine_error"
    TRUNCATED_ANSWER = "truncated_answer"
    INVALID_ANSWER = "invalid_answer"
    ENGINE_CRASH = "engine_crash"
    TIMEOUT = "timeout"
    TASK_ERROR = "task_error"
    CHECK_FAILED = "check_failed"
    BAD_MEDIA = "bad_media"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row without an answer. `attempts` is how often it was sent to an engine (0: never)."""

    reject_class: RejectClass
    message: str
    attempts: int = 0


def error_array(rejects: Sequence[Reject | None]) -> pa.StructArray:
    """The `error` column: null for a row with an answer."""
    cells = [
        None
        if reject is None
        else {
            "class": str(reject.reject_class),
            # A message may quote text that is not valid Unicode; Arrow would refuse the whole unit.
            "message": reject.message.encode(errors="backslashreplace").decode(),
            "attempts": reject.attempts,
        }
        for reject in rejects
    ]
    return pa.array(cells, type=ERROR_TYPE)


def reject_from_cell(cell: Mapping[str, object] | None) -> Reject | None:
    """The reject of one cell of `error_array`."""
    if cell is None:
        return None
    return Reject(RejectClass(str(cell["class"])), str(cell["message"]), int(str(cell["attempts"])))
