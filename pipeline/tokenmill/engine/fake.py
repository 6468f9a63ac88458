"""The twin of the vLLM engine: no model, the same interface, the same answers every time.

For unit tests, scale tests and dry runs; a job chooses it with `model.source: fake` and it is
written into the output's metadata. `model.engine` then holds `FakeSettings`.
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
from tokenmill.request import Completion, Pooling, Request, Sampling, TokenLogprob

# More steps than any test takes.
_FOREVER = 2**62
_WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan")
_TEXTS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
#: Of the fake engine's vectors.
FAKE_DIMENSIONS = 8


class FakeSettings(BaseModel):
    """How the fake engine behaves; rates are shares of the requests, chosen by their prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_model_len: Annotated[int, Field(ge=1)] = 8192
    max_num_seqs: Annotated[int, Field(ge=1)] = 64
    output_tokens: Annotated[int, Field(ge=1)] = Field(8, description="Mean length of an answer.")
    step_s: Annotated[float, Field(ge=0)] = Field(0.0, description="Seconds that a step takes.")
    instant: bool = Field(
        False, description="Every answer is empty and there at the next step, to time the rest."
    )
    refuse_rate: Share = Field(0.0, description="Requests that the engine refuses.")
    error_rate: Share = Field(0.0, description="Requests that end with an error.")
    num_labels: Annotated[int, Field(ge=1)] = Field(1, description="Of its classes' numbers.")
    crash_on: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A prompt with this text kills the engine."
    )
    hang_on: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A prompt with this text is never answered."
    )


class FakeEngine:
    """Every request in the batch gets a token a step; at most `max_num_seqs` are in the batch."""

    def __init__(self, settings: FakeSettings) -> None:
        self.info = EngineInfo(
            name="fake",
            version="1",
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
        )
        self._settings = settings
        self._waiting: deque[tuple[int, Completion]] = deque()
        # By the step at which they end, so that a step costs nothing for those that go on.
        self._ending: dict[int, list[Completion]] = defaultdict(list)
        self._num_running = 0
        self._num_input_tokens = 0
        self._step = 0

    def add(self, key: int, request: Request) -> None:
        if self._settings.instant:
            empty = Completion(key, "", "stop", len(request.prompt_token_ids), 0, None)
            self._waiting.append((1, empty))
            return
        prompt = decode_tokens(request.prompt_token_ids)
        if self._settings.crash_on is not None and self._settings.crash_on.encode() in prompt:
            raise RuntimeError(f"the fake engine dies of {self._settings.crash_on!r}")
        # As with a real engine, another seed or adapter is another answer.
        chance = (request.params.values.get("seed"), request.adapter)
        if request.media is not None:
            prompt += request.media.data
        source = prompt + "".join(f"\0{part}" for part in chance if part is not None).encode()
        draw = random.Random(hashlib.sha256(source).digest())  # noqa: S311 - no secret
        if draw.random() < self._settings.refuse_rate:
            raise RequestRefused("the fake engine refuses this prompt")
        fails = draw.random() < self._settings.error_rate
        if isinstance(request.params, Pooling):
            completion = self._pooled(key, request, draw)
        else:
            completion = self._generated(key, request, request.params, draw)
        if fails:
            completion = replace(completion, text="", finish_reason="error")
        num_steps = max(1, completion.num_generated_tokens)
        if self._settings.hang_on is not None and self._settings.hang_on.encode() in prompt:
            num_steps = _FOREVER
        self._waiting.append((num_steps, completion))

    def abort(self, key: int) -> None:
        self._waiting = deque(item for item in self._waiting if item[1].key != key)
        for step, running in self._ending.items():
            left = [completion for completion in running if completion.key != key]
            self._num_running -= len(running) - len(left)
            self._ending[step] = left

    def _generated(
        self, key: int, request: Request, sampling: Sampling, draw: random.Random
    ) -> Completion:
        document = _document(sampling)
        wanted = draw.randint(1, 2 * self._settings.output_tokens - 1)
        if document is not None:
            wanted = len(encode_text(document))
        num_input_tokens = len(request.prompt_token_ids)
        room = self.info.max_model_len - num_input_tokens
        length = min(wanted, room if sampling.max_tokens is None else sampling.max_tokens)
        choices = sampling.values.get("logprob_token_ids")
        wants_prompt = sampling.values.get("prompt_logprobs") is not None
        completion = Completion(
            key=key,
            text=(
                " ".join(draw.choices(_WORDS, k=length))
                if document is None
                else document[: length * BYTES_PER_TOKEN]
            ),
            finish_reason="stop" if wanted == length else "length",
            num_input_tokens=num_input_tokens,
            num_generated_tokens=length,
            cumulative_logprob=-length * draw.random(),
            choice_logprobs=_choice_logprobs(choices, draw) if choices else None,
            prompt_logprobs=(
                [-draw.expovariate(1) for _ in range(num_input_tokens - 1)]
                if wants_prompt
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
        return Completion(key, "", "stop", len(request.prompt_token_ids), 0, None, vector=vector)

    def step(self) -> Sequence[Completion]:
        while self._waiting and self._num_running < self._settings.max_num_seqs:
            length, completion = self._waiting.popleft()
            self._ending[self._step + length].append(completion)
            self._num_running += 1
            self._num_input_tokens += completion.num_input_tokens
        if self._settings.step_s:
            time.sleep(self._settings.step_s)
        self._step += 1
        ended = self._ending.pop(self._step, [])
        self._num_running -= len(ended)
        return ended

    @property
    def usage(self) -> EngineUsage:
        """Its KV cache is as full as its batch, and never spares anything."""
        return EngineUsage(
            num_running=self._num_running,
            num_waiting=len(self._waiting),
            kv_cache_usage=self._num_running / self.info.max_num_seqs,
            prefix_tokens=self._num_input_tokens,
        )


def _document(sampling: Sampling) -> str | None:
    """Small JSON in ASCII by the schema that the sampling asks for, if it does."""
    structured = sampling.values.get("structured_outputs")
    schema = structured.get("json") if isinstance(structured, Mapping) else None
    if schema is None:
        return None
    return json.dumps(_smallest(json.loads(schema) if isinstance(schema, str) else schema))


def _smallest(schema: Mapping[str, Any]) -> Any:
    """A small value by a schema without references and patterns."""
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
            return _TEXTS.get(schema.get("format", ""), "x" * schema.get("minLength", 0))
        case "integer" | "number":
            least = max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
            return min(least, schema.get("maximum", least))
        case "boolean":
            return False
    return None


def _probabilities(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """As a classifier's activation: a sigmoid of one number, a softmax of several."""
    weights = np.exp(numbers)
    if len(weights) == 1:
        return np.asarray(weights / (1 + weights), np.float32)
    return np.asarray(weights / weights.sum(), np.float32)


def _stopped(completion: Completion, sampling: Sampling) -> Completion:
    """Cut before the first of the sampling's stop strings, if one is in the text."""
    stop = sampling.values.get("stop") or ()
    found = [
        (completion.text.find(text), text)
        for text in ([stop] if isinstance(stop, str) else stop)
        if text in completion.text
    ]
    if not found:
        return completion
    at, text = min(found)
    num_words = len(completion.text[: at + len(text)].split())
    return replace(
        completion,
        text=completion.text[:at],
        finish_reason="stop",
        stop_reason=text,
        num_generated_tokens=num_words,
    )


def _with_tokens(completion: Completion, sampling: Sampling) -> Completion:
    """Each word a token, all equally likely, where the sampling asks for log-probabilities."""
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
    """Of a distribution over these tokens and one more, so that their probabilities sum below 1."""
    weights = [draw.random() + 1e-6 for _ in range(len(choices) + 1)]
    total = sum(weights)
    return {
        token: math.log(weight / total) for token, weight in zip(choices, weights, strict=False)
    }


def fake_settings(arguments: Mapping[str, Any], place: str = "model") -> FakeSettings:
    """The `engine` of the model at `place` as settings. Raises `UserError`."""
    for name in arguments:
        if name not in FakeSettings.model_fields:
            raise UserError(
                f"{place}.engine.{name}: {did_you_mean(name, FakeSettings.model_fields)}"
            )
    try:
        return FakeSettings.model_validate(dict(arguments))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{place}.engine.{first['loc'][0]}: {first['msg']}") from error


def fake_config(settings: FakeSettings) -> dict[str, Any]:
    """What a model folder's config.json would say of it."""
    return {
        "embedding_size": FAKE_DIMENSIONS,
        "is_matryoshka": True,
        "model_type": "whisper",
        "vision_config": {},
        "num_labels": settings.num_labels,
        "id2label": {str(at): f"LABEL_{at}" for at in range(settings.num_labels)},
    }
