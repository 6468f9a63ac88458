"""The nouns that every stage shares, and the Arrow types they have at rest.

Ground floor: imports nothing of ours.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenmill.reject import Reject


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


class FinishReason(StrEnum):
    """Why an engine ended a request, in vLLM's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


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
    finish_reason: FinishReason
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
