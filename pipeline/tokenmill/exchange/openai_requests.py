"""OpenAI's batch files: request lines as rows of a job, rows of its output as answer lines.

Pure conversion: knows nothing of files, stores and engines. What a request wants and cannot have is
refused by its line, never left out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from tokenmill.config.sampling import OVERRIDABLE
from tokenmill.prompt.encoder import is_unicode


class Endpoint(StrEnum):
    """The `url` of a batch's requests: one for all of them, as with OpenAI."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


class RefusedLine(Exception):
    """A line that is no request we can answer; `code` and the message stand in its error."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(code, message, custom_id)
        self.code = code
        self.message = message
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line that can be answered: its number from 1, and its rows of the job's input.

    A line has as many rows as inputs to embed, otherwise one. `top_logprobs` is None for a request
    that wants no log-probabilities.
    """

    line: int
    custom_id: str
    endpoint: Endpoint
    rows: Sequence[Mapping[str, Any]]
    top_logprobs: int | None = None
    dimensions: int | None = None


#: What requests and vLLM's `SamplingParams` call by one name.
_SAMPLED = {
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "max_tokens": pa.int64(),
    "seed": pa.int64(),
    "stop": pa.list_(pa.string()),
    "presence_penalty": pa.float64(),
    "frequency_penalty": pa.float64(),
    "structured_outputs": pa.string(),
}
_LIMITS = ("max_tokens", "max_completion_tokens")
_MOST_TOKENS = 2**31 - 1
# The likeliest tokens that vLLM gives at most, as OpenAI does.
_MOST_TOP = 20
# These change no answer.
_WITHOUT_EFFECT = frozenset(
    {"metadata", "model", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
# The newer name of a system message, which chat templates do not know.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ABSENT: tuple[Any, ...] = (None, [], {})
_PROMPTS: Mapping[Endpoint, Mapping[str, str]] = {
    Endpoint.CHAT: {"chat": "chat"},
    Endpoint.COMPLETIONS: {"text": "{{ prompt }}"},
    Endpoint.EMBEDDINGS: {"text": "{{ input }}"},
}
_CHAT_TYPE = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_PLACE = [pa.field("line", pa.int64()), pa.field("custom_id", pa.string())]
_SAMPLING_FIELDS = [pa.field(name, type_) for name, type_ in _SAMPLED.items()]
#: The input's columns, by what is asked.
SCHEMAS: Mapping[Endpoint, pa.Schema] = {
    Endpoint.CHAT: pa.schema([*_PLACE, pa.field("chat", _CHAT_TYPE), *_SAMPLING_FIELDS]),
    Endpoint.COMPLETIONS: pa.schema([*_PLACE, pa.field("prompt", pa.string()), *_SAMPLING_FIELDS]),
    Endpoint.EMBEDDINGS: pa.schema([*_PLACE, pa.field("input", pa.string())]),
}


class RequestReader:
    """The lines of one batch file, in order.

    All requests are of the first one's url, and have its `dimensions`: one model answers them.
    """

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self.dimensions: int | None = None
        self._first = 0
        self._seen: set[bytes] = set()

    def read(self, line: int, data: bytes) -> BatchRequest:
        """The request in a line. Raises `RefusedLine`."""
        envelope = _object(data)
        custom_id = envelope.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise RefusedLine("invalid_custom_id", "custom_id must be a text that is not empty")
        try:
            self._refuse_second(custom_id)
            request = _request(line, custom_id, envelope)
            self._refuse_mixed(request)
        except RefusedLine as error:
            raise RefusedLine(error.code, error.message, custom_id) from error
        return request

    def _refuse_second(self, custom_id: str) -> None:
        # Of millions of lines the names themselves would fill the memory.
        mark = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if mark in self._seen:
            raise RefusedLine("duplicate_custom_id", "an earlier line has the same custom_id")
        self._seen.add(mark)

    def _refuse_mixed(self, request: BatchRequest) -> None:
        if self.endpoint is None:
            self.endpoint, self.dimensions = request.endpoint, request.dimensions
            self._first = request.line
        if request.endpoint is not self.endpoint:
            raise RefusedLine(
                "mismatched_url",
                f"a batch has one url, {self.endpoint} since line {self._first}; make two files",
            )
        if request.dimensions != self.dimensions:
            raise RefusedLine(
                "mismatched_dimensions",
                f"body.dimensions differ from those of line {self._first}; make two files",
            )


def _object(data: bytes) -> dict[str, Any]:
    try:
        envelope = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedLine("invalid_json", f"the line is no JSON: {error}") from error
    if not isinstance(envelope, dict):
        raise RefusedLine("invalid_json", "the line is no JSON object")
    # Only an escape can bring in half of a surrogate pair.
    if b"\\u" in data and not is_unicode(json.dumps(envelope, ensure_ascii=False)):
        raise RefusedLine("invalid_json", "the line holds a lone surrogate")
    return envelope


def _request(line: int, custom_id: str, envelope: Mapping[str, Any]) -> BatchRequest:
    if envelope.get("method") != "POST":
        raise RefusedLine("invalid_method", "method must be POST")
    url, body = envelope.get("url"), envelope.get("body")
    if url not in list(Endpoint):
        raise RefusedLine("invalid_url", f"url must be one of {', '.join(Endpoint)}")
    if not isinstance(body, dict):
        raise RefusedLine("invalid_body", "body must be an object")
    left = {
        name: value
        for name, value in body.items()
        if name not in _WITHOUT_EFFECT and value not in _ABSENT
    }
    place = {"line": line, "custom_id": custom_id}
    endpoint = Endpoint(url)
    if endpoint is Endpoint.EMBEDDINGS:
        dimensions = _whole(left, "dimensions", 1, _MOST_TOKENS)
        if left.pop("encoding_format", "float") != "float":
            raise _unsupported("encoding_format", "only float")
        rows = [{**place, "input": text} for text in _inputs(left.pop("input", None))]
        request = BatchRequest(line, custom_id, endpoint, rows, dimensions=dimensions)
    else:
        top = _top_logprobs(left) if endpoint is Endpoint.CHAT else None
        row = {**place, **_asked(endpoint, left), **_sampling(left)}
        request = BatchRequest(line, custom_id, endpoint, [row], top_logprobs=top)
    for name in left:
        raise _unsupported(name, "leave it out")
    return request


def _asked(endpoint: Endpoint, left: dict[str, Any]) -> dict[str, Any]:
    if endpoint is Endpoint.CHAT:
        return {"chat": _messages(left.pop("messages", None))}
    prompt = left.pop("prompt", None)
    if not isinstance(prompt, str):
        raise RefusedLine("invalid_prompt", "body.prompt must be one text")
    return {"prompt": prompt}


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise RefusedLine("invalid_messages", "body.messages must be a list of messages")
    return [_message(f"body.messages.{at}", message) for at, message in enumerate(messages)]


def _message(place: str, message: Any) -> dict[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise RefusedLine("invalid_messages", f"{place}.role must be one of {', '.join(_ROLES)}")
    for key, value in message.items():
        if key not in ("role", "content") and value not in _ABSENT:
            raise RefusedLine("unsupported_message", f"{place}.{key} is not supported")
    return {"role": _ROLES[role], "content": _content(f"{place}.content", message.get("content"))}


def _content(place: str, content: Any) -> str:
    """A message's text; of several parts, each a line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RefusedLine("invalid_messages", f"{place} must be a text or a list of parts")
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise RefusedLine("unsupported_message", f"{place}.{at}: only parts of type text")
        if not isinstance(part.get("text"), str):
            raise RefusedLine("invalid_messages", f"{place}.{at}.text must be a text")
    return "\n".join(part["text"] for part in content)


def _inputs(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RefusedLine("invalid_input", "body.input must be a text or a list of texts")
    if not texts:
        raise RefusedLine("invalid_input", "body.input is empty")
    return texts


def _sampling(left: dict[str, Any]) -> dict[str, Any]:
    """The row's own sampling parameters, taken out of what is left of the body."""
    if _whole(left, "n", 1, _MOST_TOKENS) not in (None, 1):
        raise _unsupported("n", "only 1")
    if left.pop("stream", False) is not False:
        raise _unsupported("stream", "only false")
    limits = {name: left.pop(name) for name in _LIMITS if name in left}
    if len(set(map(repr, limits.values()))) > 1:
        raise RefusedLine("invalid_value", f"body.{' and body.'.join(limits)} differ")
    values = {name: left.pop(name) for name in _SAMPLED if name in left and name != _STRUCTURED}
    for name, limit in limits.items():
        values["max_tokens"] = _checked(name, limit, "max_tokens")
    wanted = _structured(left.pop("response_format", None))
    if wanted is not None:
        text = json.dumps(wanted, ensure_ascii=False)
        _checked("response_format", text, _STRUCTURED)
        values[_STRUCTURED] = text
    checked = {
        name: value if name == _STRUCTURED else _checked(name, value, name)
        for name, value in values.items()
    }
    if checked.get("max_tokens", 0) > _MOST_TOKENS:
        raise RefusedLine("invalid_value", f"body.max_tokens must be at most {_MOST_TOKENS:,}")
    return checked


_STRUCTURED = "structured_outputs"


def _checked(name: str, value: Any, parameter: str) -> Any:
    try:
        return OVERRIDABLE[parameter](value)
    except ValueError as error:
        raise RefusedLine("invalid_value", f"body.{name} {error}") from error


def _structured(response_format: Any) -> dict[str, Any] | None:
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return {"json": schema}
    raise _unsupported("response_format", "only text, json_object and json_schema with a schema")


def _top_logprobs(left: dict[str, Any]) -> int | None:
    wanted = left.pop("logprobs", False)
    top = _whole(left, "top_logprobs", 0, _MOST_TOP)
    if not isinstance(wanted, bool) or (top is not None and not wanted):
        raise RefusedLine("invalid_value", "body.logprobs must be true where top_logprobs is given")
    return (top or 0) if wanted else None


def _whole(left: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = left.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RefusedLine(
            "invalid_value", f"body.{name} must be a whole number, {least} to {most:,}"
        )
    return value


def _unsupported(name: str, instead: str) -> RefusedLine:
    return RefusedLine("unsupported_parameter", f"body.{name} is not supported: {instead}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a file's requests want of the one job that answers them.

    `parameters` are the sampling parameters that any request has of its own; `top_logprobs` the
    most that any wants of the likeliest tokens, None if none wants log-probabilities.
    """

    endpoint: Endpoint
    parameters: Sequence[str] = ()
    top_logprobs: int | None = None
    dimensions: int | None = None

    @property
    def job_keys(self) -> dict[str, Any]:
        """The keys of the job that say what is asked."""
        keys: dict[str, Any] = {"prompt": dict(_PROMPTS[self.endpoint])}
        if self.endpoint is Endpoint.EMBEDDINGS:
            own = {} if self.dimensions is None else {"dimensions": self.dimensions}
            return {**keys, "task": {"kind": "embed", **own}}
        tokens = {} if self.top_logprobs is None else {"tokens": {"top": self.top_logprobs}}
        # Without a limit of its own an answer may be as long as the context leaves, as OpenAI's.
        keys |= {"task": {"kind": "generate", **tokens}, "sampling": {"max_tokens": None}}
        overrides = {name: name for name in self.parameters}
        return {**keys, "overrides": overrides} if overrides else keys


def wanted_by(request: BatchRequest, before: Wanted | None) -> Wanted:
    """What a file wants that has this request behind those before it."""
    used = {name for row in request.rows for name in row.keys() & _SAMPLED.keys()}
    tops = [request.top_logprobs, None if before is None else before.top_logprobs]
    known = [top for top in tops if top is not None]
    return Wanted(
        request.endpoint,
        sorted(used.union(() if before is None else before.parameters)),
        max(known, default=None),
        request.dimensions,
    )
