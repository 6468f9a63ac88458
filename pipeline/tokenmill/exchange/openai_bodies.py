"""The bodies of OpenAI's requests as pydantic models: the supported parameters and their values.

An unknown parameter is an error that names it: it is never silently dropped. A parameter that is
null, an empty list or an empty object counts as not given.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenmill.config.sampling import OVERRIDABLE

_MAX_INT = 2**31 - 1
# The largest number of likeliest tokens that vLLM returns; it is OpenAI's limit too.
_MAX_TOP_LOGPROBS = 20
#: Parameters that do not change an answer.
_IGNORED = frozenset(
    {"metadata", "model", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
_NOT_GIVEN: tuple[Any, ...] = (None, [], {})


class Endpoint(StrEnum):
    """The `url` of a request."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


class RefusedLine(Exception):
    """A line of a batch file that cannot be run; its error has this code and message."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(code, message, custom_id)
        self.code = code
        self.message = message
        self.custom_id = custom_id


def _checked_like(parameter: str) -> PlainValidator:
    """The check of a sampling parameter that a row of a job may set."""
    return PlainValidator(OVERRIDABLE[parameter])


def _only(supported: Any) -> PlainValidator:
    """The check of a parameter with one supported value."""

    def check(value: Any) -> Any:
        # 1 and 1.0 and true are equal.
        if type(value) is not type(supported) or value != supported:
            raise PydanticCustomError("unsupported_value", f"only {json.dumps(supported)}")
        return value

    return PlainValidator(check)


def _check_max_tokens(value: Any) -> int:
    max_tokens: int = OVERRIDABLE["max_tokens"](value)
    if max_tokens > _MAX_INT:
        raise ValueError(f"must be at most {_MAX_INT:,}")
    return max_tokens


def _as_texts(value: Any) -> list[Any]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError("must be a string or a list of strings")  # noqa: TRY004 - for pydantic
    if any(isinstance(text, int | list) for text in texts):
        raise ValueError("must be text, not token ids")
    return texts


def _as_prompt(value: Any) -> Any:
    texts = _as_texts(value)
    if len(texts) != 1:
        raise ValueError("must be a single text; write a line for each prompt")
    return texts[0]


def _as_parts(value: Any) -> list[Any]:
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError("must be a string or a list of text parts")  # noqa: TRY004 - for pydantic
    return parts


class _Known(BaseModel):
    """An object without unknown keys, except keys that count as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value not in _NOT_GIVEN}


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _Message(_Known):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_TextPart], BeforeValidator(_as_parts)]

    @property
    def for_template(self) -> dict[str, str]:
        """The message as chat templates expect it; text parts are joined by line breaks."""
        # `developer` is OpenAI's newer name for `system`; chat templates do not know it.
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class _PlainText(BaseModel):
    type: Literal["text"]

    @property
    def structured_outputs(self) -> str | None:
        return None


class _JsonObject(BaseModel):
    type: Literal["json_object"]

    @property
    def structured_outputs(self) -> str | None:
        return json.dumps({"json_object": True})


class _NamedSchema(BaseModel):
    json_schema: dict[str, Any] = Field(alias="schema")


class _JsonSchema(BaseModel):
    type: Literal["json_schema"]
    json_schema: _NamedSchema

    @property
    def structured_outputs(self) -> str | None:
        return json.dumps({"json": self.json_schema.json_schema}, ensure_ascii=False)


_AnyFormat = _PlainText | _JsonObject | _JsonSchema


def _check_size(response_format: _AnyFormat) -> _AnyFormat:
    text = response_format.structured_outputs
    if text is not None:
        try:
            OVERRIDABLE["structured_outputs"](text)
        except ValueError as error:
            raise ValueError("has a schema that is too large; shorten it") from error
    return response_format


class Body(_Known):
    """The body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if name not in _IGNORED}

    @property
    def columns(self) -> Sequence[Mapping[str, Any]]:
        """The columns of each of the request's input rows."""
        raise NotImplementedError


class _SamplingBody(Body):
    """What chats and completions share: the sampling parameters of the answer."""

    temperature: Annotated[float | None, _checked_like("temperature")] = None
    top_p: Annotated[float | None, _checked_like("top_p")] = None
    max_tokens: Annotated[int | None, PlainValidator(_check_max_tokens)] = None
    max_completion_tokens: Annotated[int | None, PlainValidator(_check_max_tokens)] = None
    seed: Annotated[int | None, _checked_like("seed")] = None
    stop: Annotated[list[str] | None, _checked_like("stop")] = None
    presence_penalty: Annotated[float | None, _checked_like("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, _checked_like("frequency_penalty")] = None
    response_format: Annotated[
        Annotated[_AnyFormat, Field(discriminator="type")] | None, AfterValidator(_check_size)
    ] = None
    n: Annotated[int, _only(1)] = 1
    stream: Annotated[bool, _only(False)] = False

    @model_validator(mode="after")
    def _check_limits(self) -> "_SamplingBody":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("body.max_tokens and body.max_completion_tokens differ")
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """The parameters that the request sets, by their names in vLLM's `SamplingParams`."""
        response_format = self.response_format
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "seed": self.seed,
            "stop": self.stop,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "structured_outputs": response_format and response_format.structured_outputs,
        }
        return {name: value for name, value in values.items() if value is not None}


class ChatBody(_SamplingBody):
    """The body of a chat completion. `logprobs` asks for the log-probability of each token."""

    messages: list[_Message]
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt | None, Field(ge=0, le=_MAX_TOP_LOGPROBS)] = None
    modalities: Annotated[list[str], _only(["text"])] = ["text"]
    # Without tools, which are not supported, these change nothing.
    parallel_tool_calls: StrictBool = True
    tool_choice: Literal["none", "auto"] = "auto"

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("body.logprobs must be true if body.top_logprobs is given")
        return self

    @property
    def columns(self) -> Sequence[Mapping[str, Any]]:
        return [{"chat": [message.for_template for message in self.messages], **self.sampling}]

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to return for each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(_SamplingBody):
    """The body of a completion of one prompt."""

    prompt: Annotated[str, BeforeValidator(_as_prompt)]
    best_of: Annotated[int, _only(1)] = 1
    echo: Annotated[bool, _only(False)] = False
    suffix: Annotated[str, _only("")] = ""

    @property
    def columns(self) -> Sequence[Mapping[str, Any]]:
        return [{"prompt": self.prompt, **self.sampling}]


class EmbeddingBody(Body):
    """The body of a request for embeddings: one row per text."""

    input: Annotated[list[str], BeforeValidator(_as_texts)]
    dimensions: Annotated[StrictInt | None, Field(ge=1, le=_MAX_INT)] = None
    encoding_format: Annotated[str, _only("float")] = "float"

    @property
    def columns(self) -> Sequence[Mapping[str, Any]]:
        return [{"input": text} for text in self.input]


_BODIES: Mapping[Endpoint, type[Body]] = {
    Endpoint.CHAT: ChatBody,
    Endpoint.COMPLETIONS: CompletionBody,
    Endpoint.EMBEDDINGS: EmbeddingBody,
}
_FORMATS = "only text, json_object and json_schema with a schema"
_CODES = {"messages": "invalid_messages", "prompt": "invalid_prompt", "input": "invalid_input"}


def parse_body(endpoint: Endpoint, body: Mapping[str, Any]) -> Body:
    """The checked body of a request. Raises `RefusedLine`, which names the parameter."""
    try:
        return _BODIES[endpoint].model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _refusal(first["type"], first["loc"], first["msg"]) from error


def _refusal(kind: str, location: Sequence[str | int], message: str) -> RefusedLine:
    """Pydantic's error as the error of a line."""
    name = str(location[0]) if location else ""
    where = ".".join(["body", *map(str, location)])
    if kind == "extra_forbidden":
        code = "unsupported_message" if len(location) > 1 else "unsupported_parameter"
        return RefusedLine(code, f"{where} is not supported: leave it out")
    if kind == "unsupported_value":
        return RefusedLine("unsupported_parameter", f"{where} is not supported: {message}")
    if name == "response_format" and kind != "value_error":
        return RefusedLine("unsupported_parameter", f"body.{name} is not supported: {_FORMATS}")
    if name == "messages" and location[-1] == "type":
        return RefusedLine("unsupported_message", f"{where} is not supported: only type text")
    code = _CODES.get(name, "invalid_value")
    words = _in_words(kind, message)
    # An error about several parameters has no location, and names them itself.
    return RefusedLine(code, f"{where} {words}" if location else words)


def _in_words(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing"
    if kind == "model_type":
        # Pydantic's words name our class.
        return "must be an object"
    return message.removeprefix("Value error, ").replace("Input should", "must", 1)
