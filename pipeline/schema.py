"""The nouns that every stage shares, and the Arrow types they have at rest.

Ground floor: imports nothing of ours.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class RejectClass(StrEnum):
    """Why a row got no answer. Stable names: users filter on them."""

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
    """A row that got no answer. `attempts` counts the tries in an engine (0: never sent)."""

    reject_class: RejectClass
    message: str
    attempts: int = 0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Sampling:
    """How text is generated: vLLM's `SamplingParams` by name, `max_tokens` among them.

    Compared by identity: a task makes few of them, an engine translates each once.
    """

    values: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """The longest answer in tokens; None for what the context leaves."""
        limit: int | None = self.values["max_tokens"]
        return limit


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pooling:
    """What a pooling model computes: vLLM's pooling task, and its `PoolingParams` by name."""

    task: Literal["embed", "classify", "token_classify"]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_tokens(self) -> int:
        """A pooling model writes nothing."""
        return 0


Params = Sampling | Pooling


@dataclass(frozen=True, slots=True)
class Media:
    """A checked image or piece of audio beside a prompt.

    An image is a PNG in RGB; audio is one channel of 16,000 samples a second, each a signed integer
    of 16 bits, little-endian.
    """

    kind: Literal["image", "audio"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One engine call: a prompt's token ids, and how it is to be answered.

    `model` is the place in the job of the model that answers, None for the job's own; `adapter`
    the name of the LoRA adapter that it wears, if any; `media` what stands in the place of the
    prompt's one placeholder, or is the input of a model whose prompt begins its answer.
    """

    prompt_token_ids: Sequence[int]
    params: Params
    model: str | None = None
    adapter: str | None = None
    media: Media | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token as text, its log-probability, and the most likely ones in its place."""

    token: str
    logprob: float
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer to the request that was added under `key`.

    Log-probabilities are natural. `cumulative_logprob` is the sum over the generated tokens; None
    when the sampling turns log-probabilities off. The others are there where the request's
    sampling asked for them: `choice_logprobs` holds those of `logprob_token_ids` at the first
    generated token; `prompt_logprobs` those of the prompt's tokens, the first of which has none;
    `tokens` those of all generated tokens, where the sampling itself names `logprobs`.
    `stop_reason` is the stop string or the id of the stop token that ended the answer.
    `vector` is a pooling model's answer, float32.
    """

    key: int
    text: str
    finish_reason: str
    num_input_tokens: int
    num_generated_tokens: int
    cumulative_logprob: float | None
    choice_logprobs: Mapping[int, float] | None = None
    prompt_logprobs: Sequence[float] | None = None
    tokens: Sequence[TokenLogprob] | None = None
    stop_reason: str | int | None = None
    vector: npt.NDArray[np.float32] | None = None

    def job_stop(self, stop_token_ids: Collection[int]) -> str | None:
        """The stop string or token of the job's that ended the answer; a model's own end is none.

        `stop_token_ids` are the job's.
        """
        reason = self.stop_reason
        return str(reason) if isinstance(reason, str) or reason in stop_token_ids else None


Answer = Completion | Reject

ERROR_TYPE = pa.struct(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)

#: Stand behind the task's columns in every output file: what the row cost in all its requests,
#: why it has no answer, where it is from.
PROVENANCE_FIELDS = (
    pa.field("num_input_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
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
            # A message may quote text that is no Unicode, and Arrow would refuse the whole unit.
            "message": reject.message.encode(errors="backslashreplace").decode(),
            "attempts": reject.attempts,
        }
        for reject in rejects
    ]
    return pa.array(cells, type=ERROR_TYPE)


def reject_from_cell(cell: Mapping[str, object] | None) -> Reject | None:
    """The inverse of one cell of `error_array`."""
    if cell is None:
        return None
    return Reject(RejectClass(str(cell["class"])), str(cell["message"]), int(str(cell["attempts"])))
