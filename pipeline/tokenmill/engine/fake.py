"""The twin of the vLLM engine: no model, the same interface, and deterministic answers.

For tests of jobs and pipelines, load tests and dry runs. A job chooses it with `model.source: fake`
and configures it in `model.engine` (`FakeSettings`). The output's records name it as their engine.
"""

import hashlib
import json
import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenmill.config.section import Share
from tokenmill.engine.base import EngineInfo, EngineUsage, RequestRefused
from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.prompt.fake_tokenizer import BYTES_PER_TOKEN, decode_tokens, encode_text
from tokenmill.request import Completion, FinishReason, Pooling, Request, Sampling, TokenLogprob

# More steps than any run takes.
_NEVER = 2**62
_WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan")
_EXAMPLES_BY_FORMAT = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
#: Dimensions of the fake engine's embeddings.
FAKE_DIMENSIONS = 8

#: The sampling parameters of vLLM that a job may set.
SAMPLING_NAMES = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "extra_args",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "logprob_token_ids",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "prompt_logprob_start",
        "prompt_logprob_token_ids",
        "prompt_logprobs",
        "repetition_detection",
        "repetition_penalty",
        "routed_experts_prompt_start",
        "seed",
        "skip_reading_prefix_cache",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "stream_interval",
        "structured_outputs",
        "temperature",
        "thinking_token_budget",
        "top_k",
        "top_p",
        "trace_decode_token_ids",
        "watermarking",
    }
)


class FakeSettings(BaseModel):
    """The settings of the fake engine, which a job puts into `model.engine`.

    Whether a request is affected by a rate depends on its prompt alone, so a run can be repeated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_model_len: Annotated[int, Field(ge=1)] = Field(
        8192, description="Context in tokens: prompt and answer together."
    )
    max_num_seqs: Annotated[int, Field(ge=1)] = Field(
        64, description="Largest number of requests in the batch at a time."
    )
    output_tokens: Annotated[int, Field(ge=1)] = Field(
        8, description="Mean length of an answer in tokens, before max_tokens cuts it."
    )
    step_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Duration of a step in seconds; each step adds a token to every answer."
    )
    instant: bool = Field(
        False,
        description="Return an empty answer at the next step and skip everything else, "
        "to measure the pipeline without an engine.",
    )
    refuse_rate: Share = Field(
        0.0, description="Share of the requests that the engine refuses, from 0 to 1."
    )
    error_rate: Share = Field(
        0.0, description='Share of the requests that end with finish reason "error", from 0 to 1.'
    )
    num_labels: Annotated[int, Field(ge=1)] = Field(
        1, description="Number of classes of the fake classification model."
    )
    crash_on: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Crash the engine if a prompt contains this text."
    )
    hang_on: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Never finish a request whose prompt contains this text."
    )


class FakeEngine:
    """An engine that adds one token per step to each of the `max_num_seqs` requests in its batch.

    The same request gets the same answer, whatever else is in the batch. If a JSON schema is asked
    for, the answer is a small document that conforms to it; otherwise it is a list of words, one
    word per token. Log-probabilities, vectors and class probabilities are made up, with the shapes
    and ranges of real ones.
    """

    def __init__(self, settings: FakeSettings) -> None:
        self.info = EngineInfo(
            name="fake",
            version="1",
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
        )
        self._settings = settings
        # Requests outside the batch, with the number of steps they take.
        self._waiting: deque[tuple[int, Completion]] = deque()
        # The batch, by the step in which requests end: a step costs nothing for the other requests.
        self._batch: dict[int, list[Completion]] = defaultdict(list)
        self._num_running = 0
        self._num_input_tokens = 0
        self._step = 0

    def add(self, key: int, request: Request) -> None:
        if self._settings.instant:
            num_tokens = len(request.prompt_token_ids)
            self._waiting.append((1, Completion(key, "", FinishReason.STOP, num_tokens, 0, None)))
            return
        prompt = decode_tokens(request.prompt_token_ids)
        if self._settings.crash_on is not None and self._settings.crash_on.encode() in prompt:
            raise RuntimeError(f"the fake engine crashes on {self._settings.crash_on!r}")
        draw = _random(request, prompt)
        if draw.random() < self._settings.refuse_rate:
            raise RequestRefused("the fake engine refuses this prompt")
        fails = draw.random() < self._settings.error_rate
        if isinstance(request.params, Pooling):
            completion = self._pooled(key, request, draw)
        else:
            completion = self._generated(key, request, request.params, draw)
        if fails:
            completion = replace(completion, text="", finish_reason=FinishReason.ERROR)
        num_steps = max(1, completion.num_generated_tokens)
        if self._settings.hang_on is not None and self._settings.hang_on.encode() in prompt:
            num_steps = _NEVER
        self._waiting.append((num_steps, completion))

    def abort(self, key: int) -> None:
        self._waiting = deque(item for item in self._waiting if item[1].key != key)
        for step, running in self._batch.items():
            remaining = [completion for completion in running if completion.key != key]
            self._num_running -= len(running) - len(remaining)
            self._batch[step] = remaining

    def _generated(
        self, key: int, request: Request, sampling: Sampling, draw: random.Random
    ) -> Completion:
        document = _document(sampling)
        full_length = draw.randint(1, 2 * self._settings.output_tokens - 1)
        if document is not None:
            full_length = len(encode_text(document))
        num_input_tokens = len(request.prompt_token_ids)
        room = self.info.max_model_len - num_input_tokens
        length = min(full_length, room if sampling.max_tokens is None else sampling.max_tokens)
        choices = sampling.values.get("logprob_token_ids")
        has_prompt_logprobs = sampling.values.get("prompt_logprobs") is not None
        completion = Completion(
            key=key,
            text=(
                " ".join(draw.choices(_WORDS, k=length))
                if document is None
                else document[: length * BYTES_PER_TOKEN]
            ),
            finish_reason=FinishReason.STOP if full_length == length else FinishReason.LENGTH,
            num_input_tokens=num_input_tokens,
            num_generated_tokens=length,
            cumulative_logprob=-length * draw.random(),
            choice_logprobs=_choice_logprobs(choices, draw) if choices else None,
            prompt_logprobs=(
                [-draw.expovariate(1) for _ in range(num_input_tokens - 1)]
                if has_prompt_logprobs
                else None
            ),
        )
        return _with_tokens(_stopped(completion, sampling), sampling)

    def _pooled(self, key: int, request: Request, draw: random.Random) -> Completion:
        params = request.params
        is_vector = isinstance(params, Pooling) and params.task == "embed"
        length = params.values.get("dimensions") or FAKE_DIMENSIONS
        length = length if is_vector else self._settings.num_labels
        vector = np.array([draw.gauss(0, 1) for _ in range(length)], np.float32)
        if params.values.get("use_activation") is not False:
            vector = vector / np.linalg.norm(vector) if is_vector else _probabilities(vector)
        num_tokens = len(request.prompt_token_ids)
        return Completion(key, "", FinishReason.STOP, num_tokens, 0, None, vector=vector)

    def step(self) -> Sequence[Completion]:
        while self._waiting and self._num_running < self._settings.max_num_seqs:
            num_steps, completion = self._waiting.popleft()
            self._batch[self._step + num_steps].append(completion)
            self._num_running += 1
            self._num_input_tokens += completion.num_input_tokens
        if self._settings.step_s:
            time.sleep(self._settings.step_s)
        self._step += 1
        ended = self._batch.pop(self._step, [])
        self._num_running -= len(ended)
        return ended

    @property
    def usage(self) -> EngineUsage:
        """The KV cache is as full as the batch; the prefix cache never hits."""
        return EngineUsage(
            num_running=self._num_running,
            num_waiting=len(self._waiting),
            kv_cache_usage=self._num_running / self.info.max_num_seqs,
            prefix_tokens=self._num_input_tokens,
        )


def _random(request: Request, prompt: bytes) -> random.Random:
    """A generator seeded by everything that an answer depends on: as in vLLM, seed and adapter."""
    seed_parts = (request.params.values.get("seed"), request.adapter)
    media = b"" if request.media is None else request.media.data
    suffix = "".join(f"\0{part}" for part in seed_parts if part is not None).encode()
    return random.Random(hashlib.sha256(prompt + media + suffix).digest())  # noqa: S311 - no secret


def _document(sampling: Sampling) -> str | None:
    """A small JSON document in ASCII for the sampling's JSON schema; None without a schema."""
    structured = sampling.values.get("structured_outputs")
    schema = structured.get("json") if isinstance(structured, Mapping) else None
    if schema is None:
        return None
    return json.dumps(_smallest(json.loads(schema) if isinstance(schema, str) else schema))


def _smallest(schema: Mapping[str, Any]) -> Any:
    """A small value that conforms to a schema without references and patterns."""
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        return _smallest(branch)
    for value in (*schema.get("enum", ()), schema.get("const")):
        if value is not None:
            return value
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _smallest(properties[name]) for name in schema.get("required", ())}
        case "array":
            return [_smallest(schema["items"])] * schema.get("minItems", 0)
        case "string":
            text = "x" * schema.get("minLength", 0)
            return _EXAMPLES_BY_FORMAT.get(schema.get("format", ""), text)
        case "integer" | "number":
            minimum = max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
            return min(minimum, schema.get("maximum", minimum))
        case "boolean":
            return False
    return None


def _probabilities(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A classifier's activation: the sigmoid of one number, the softmax of several."""
    weights = np.exp(numbers)
    if len(weights) == 1:
        return np.asarray(weights / (1 + weights), np.float32)
    return np.asarray(weights / weights.sum(), np.float32)


def _stopped(completion: Completion, sampling: Sampling) -> Completion:
    """Cut the text before the first of the sampling's stop strings that it contains."""
    stop = sampling.values.get("stop") or ()
    matches = [
        (completion.text.find(text), text)
        for text in ([stop] if isinstance(stop, str) else stop)
        if text in completion.text
    ]
    if not matches:
        return completion
    position, text = min(matches)
    num_words = len(completion.text[: position + len(text)].split())
    return replace(
        completion,
        text=completion.text[:position],
        finish_reason=FinishReason.STOP,
        stop_reason=text,
        num_generated_tokens=num_words,
    )


def _with_tokens(completion: Completion, sampling: Sampling) -> Completion:
    """Add the tokens if `logprobs` asks for them: one per word, all equally likely."""
    num_top = sampling.values.get("logprobs")
    if num_top is None or completion.cumulative_logprob is None:
        return completion
    logprob = completion.cumulative_logprob / completion.num_generated_tokens
    tokens = []
    for word in completion.text.split():
        others = [other for other in _WORDS if other != word]
        top = [(word, logprob), *((other, logprob - 1) for other in others)]
        tokens.append(TokenLogprob(word, logprob, top[:num_top]))
    return replace(completion, tokens=tokens)


def _choice_logprobs(choices: Sequence[int], draw: random.Random) -> dict[int, float]:
    """Log-probabilities of these tokens, from a distribution over them and one more token."""
    weights = [draw.random() + 1e-6 for _ in range(len(choices) + 1)]
    total = sum(weights)
    return {
        token: math.log(weight / total) for token, weight in zip(choices, weights, strict=False)
    }


def fake_settings(arguments: Mapping[str, Any], key: str = "model") -> FakeSettings:
    """Return the settings in the `engine` of the model at a job key. Raises `UserError`."""
    for name in arguments:
        if name not in FakeSettings.model_fields:
            raise UserError(f"{key}.engine.{name}: {did_you_mean(name, FakeSettings.model_fields)}")
    try:
        return FakeSettings.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{key}.engine.{first['loc'][0]}: {first['msg']}") from error


def fake_config(settings: FakeSettings) -> dict[str, Any]:
    """Return what the fake model's config.json would contain."""
    return {
        "embedding_size": FAKE_DIMENSIONS,
        "is_matryoshka": True,
        "model_type": "whisper",
        "vision_config": {},
        "num_labels": settings.num_labels,
        "id2label": {str(number): f"LABEL_{number}" for number in range(settings.num_labels)},
    }
