"""Requests to an engine and its completions, which all stages share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenmill.reject import Reject


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Sampling:
    """How text is generated: vLLM's `SamplingParams` by name, including `max_tokens`.

    Compared by identity: a task creates few of them, and an engine converts each once.
    """

    values: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """The longest answer in tokens. None: as long as the context allows."""
        limit: int | None = self.values["max_tokens"]
        return limit


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pooling:
    """What a pooling model computes: vLLM's pooling task and `PoolingParams` by name."""

    task: Literal["embed", "classify", "token_classify"]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_tokens(self) -> int:
        """0: a pooling model generates no tokens."""
        return 0


Params = Sampling | Pooling


@dataclass(frozen=True, slots=True)
class Media:
    """A decoded and checked image or audio clip that belongs to a prompt.

    An image is a PNG in RGB. Audio is one channel with 16,000 samples per second, each a signed
    16-bit integer, little-endian.
    """

    kind: Literal["image", "audio"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One engine call: a prompt's token ids, and how to answer it.

    `model` is the job key of an auxiliary model, or None for the job's own model. `adapter` is the
    name of a LoRA adapter. `media` replaces the one placeholder in the prompt; for a model whose
    prompt starts its answer, such as Whisper, it is the input.
    """

    prompt_token_ids: Sequence[int]
    params: Params
    model: str | None = None
    adapter: str | None = None
    media: Media | None = None


class FinishReason(StrEnum):
    """Why an engine ended a request, in vLLM's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


# The reasons of answers that were cut off, the one to report first.
_CUTS = (FinishReason.LENGTH, FinishReason.REPETITION)


def joined_reason(reasons: Sequence[FinishReason]) -> FinishReason:
    """The finish reason of an answer made of several completions: a cut, if one was cut off."""
    return next((cut for cut in _CUTS if cut in reasons), reasons[0])


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token as text, its log-probability, and the likeliest tokens at its position."""

    token: str
    logprob: float
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer to the request that was added with `key`.

    Log-probabilities are natural logarithms. `cumulative_logprob` is their sum over the generated
    tokens, or None if the sampling turns them off. The other log-probabilities are set if the
    request's sampling asks for them:

    - `choice_logprobs`: by token id, those of `logprob_token_ids` at the first generated token.
    - `prompt_logprobs`: those of the prompt's tokens except the first, which has none.
    - `tokens`: those of all generated tokens, if the sampling has `logprobs`.

    `stop_reason` is the stop string or the id of the stop token that ended the answer. `vector` is
    the answer of a pooling model, in float32.
    """

    key: int
    text: str
    finish_reason: FinishReason
    num_input_tokens: int
    num_generated_tokens: int
    cumulative_logprob: float | None
    choice_logprobs: Mapping[int, float] | None = None
    prompt_logprobs: Sequence[float] | None = None
    tokens: Sequence[TokenLogprob] | None = None
    stop_reason: str | int | None = None
    vector: npt.NDArray[np.float32] | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the answer was cut off, at `max_tokens` or where it began to loop."""
        return self.finish_reason in _CUTS

    def job_stop(self, stop_token_ids: Collection[int]) -> str | None:
        """The job's stop string or stop token that ended the answer, if one did.

        `stop_token_ids` are the job's. The model's own end token does not count.
        """
        reason = self.stop_reason
        return str(reason) if isinstance(reason, str) or reason in stop_token_ids else None


Answer = Completion | Reject
