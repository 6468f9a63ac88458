"""The lines of OpenAI's batch files as rows of a job.

Pure conversion: knows nothing of files, stores and engines. A line that asks for something
unsupported is an error, never run without it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.exchange.openai_bodies import (
    ChatBody,
    EmbeddingBody,
    Endpoint,
    RefusedLine,
    parse_body,
)
from tokenmill.prompt.encoder import is_unicode


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line that can be run: its number from 1, and its rows of the job's input.

    A request for embeddings has one row per text, any other request one row. `top_logprobs` is
    None if the request wants no log-probabilities.
    """

    line: int
    custom_id: str
    endpoint: Endpoint
    rows: Sequence[Mapping[str, Any]]
    top_logprobs: int | None = None
    dimensions: int | None = None


_SAMPLING_TYPES = {
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "max_tokens": pa.int64(),
    "seed": pa.int64(),
    "stop": pa.list_(pa.string()),
    "presence_penalty": pa.float64(),
    "frequency_penalty": pa.float64(),
    "structured_outputs": pa.string(),
}
_PROMPTS: Mapping[Endpoint, Mapping[str, str]] = {
    Endpoint.CHAT: {"chat": "chat"},
    Endpoint.COMPLETIONS: {"text": "{{ prompt }}"},
    Endpoint.EMBEDDINGS: {"text": "{{ input }}"},
}
_CHAT_TYPE = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_ID_FIELDS = [pa.field("line", pa.int64()), pa.field("custom_id", pa.string())]
_SAMPLING_FIELDS = [pa.field(name, type_) for name, type_ in _SAMPLING_TYPES.items()]
#: The columns of the job's input for each endpoint.
SCHEMAS: Mapping[Endpoint, pa.Schema] = {
    Endpoint.CHAT: pa.schema([*_ID_FIELDS, pa.field("chat", _CHAT_TYPE), *_SAMPLING_FIELDS]),
    Endpoint.COMPLETIONS: pa.schema(
        [*_ID_FIELDS, pa.field("prompt", pa.string()), *_SAMPLING_FIELDS]
    ),
    Endpoint.EMBEDDINGS: pa.schema([*_ID_FIELDS, pa.field("input", pa.string())]),
}


class RequestReader:
    """Reads the lines of one batch file, in order.

    All requests have the url and the `dimensions` of the first one, as one model runs them all.
    """

    def __init__(self) -> None:
        self._first: BatchRequest | None = None
        self._digests: set[bytes] = set()

    def read(self, line: int, data: bytes) -> BatchRequest:
        """The request in a line. Raises `RefusedLine`."""
        envelope = _parse_object(data)
        custom_id = envelope.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise RefusedLine("invalid_custom_id", "custom_id must be a string that is not empty")
        try:
            self._check_unique(custom_id)
            request = _request(line, custom_id, envelope)
            self._check_same_kind(request)
        except RefusedLine as error:
            raise RefusedLine(error.code, error.message, custom_id) from error
        return request

    def _check_unique(self, custom_id: str) -> None:
        # The ids themselves would fill the memory for a file of millions of lines.
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._digests:
            raise RefusedLine("duplicate_custom_id", "an earlier line has the same custom_id")
        self._digests.add(digest)

    def _check_same_kind(self, request: BatchRequest) -> None:
        first = self._first = self._first or request
        if request.endpoint is not first.endpoint:
            raise RefusedLine(
                "mismatched_url",
                f"url must be {first.endpoint}, as in line {first.line}; a batch has one url, so "
                "make two files",
            )
        if request.dimensions != first.dimensions:
            raise RefusedLine(
                "mismatched_dimensions",
                f"body.dimensions must be the same as in line {first.line}; make two files",
            )


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        # Decoded here: json.loads lets bytes through that are lone surrogates.
        envelope = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RefusedLine("invalid_json", f"the line is not valid JSON: {error}") from error
    if not isinstance(envelope, dict):
        raise RefusedLine("invalid_json", "the line is not a JSON object")
    # In valid UTF-8 only an escape can be a lone surrogate.
    if b"\\u" in data and not is_unicode(json.dumps(envelope, ensure_ascii=False)):
        raise RefusedLine("invalid_json", "the line contains a lone surrogate")
    return envelope


def _request(line: int, custom_id: str, envelope: Mapping[str, Any]) -> BatchRequest:
    if envelope.get("method") != "POST":
        raise RefusedLine("invalid_method", "method must be POST")
    url, body = envelope.get("url"), envelope.get("body")
    if url not in list(Endpoint):
        raise RefusedLine("invalid_url", f"url must be one of {', '.join(Endpoint)}")
    if not isinstance(body, dict):
        raise RefusedLine("invalid_body", "body must be an object")
    endpoint = Endpoint(url)
    parsed = parse_body(endpoint, body)
    return BatchRequest(
        line,
        custom_id,
        endpoint,
        [{"line": line, "custom_id": custom_id, **columns} for columns in parsed.columns],
        parsed.num_logprobs if isinstance(parsed, ChatBody) else None,
        parsed.dimensions if isinstance(parsed, EmbeddingBody) else None,
    )


@dataclass(frozen=True, slots=True)
class JobNeeds:
    """What the requests of a file need of the one job that runs them.

    `parameters` are the sampling parameters that any request sets. `top_logprobs` is the largest
    number of likeliest tokens that any request wants, None if none wants log-probabilities.
    """

    endpoint: Endpoint
    parameters: Sequence[str] = ()
    top_logprobs: int | None = None
    dimensions: int | None = None

    @classmethod
    def of(cls, request: BatchRequest) -> "JobNeeds":
        """The needs of one request."""
        parameters = {name for row in request.rows for name in row.keys() & _SAMPLING_TYPES.keys()}
        return cls(request.endpoint, sorted(parameters), request.top_logprobs, request.dimensions)

    def merged(self, earlier: "JobNeeds | None") -> "JobNeeds":
        """These needs and those of earlier requests."""
        if earlier is None:
            return self
        tops = [top for top in (self.top_logprobs, earlier.top_logprobs) if top is not None]
        parameters = sorted({*self.parameters, *earlier.parameters})
        return JobNeeds(self.endpoint, parameters, max(tops, default=None), self.dimensions)

    @property
    def job_keys(self) -> dict[str, Any]:
        """The job's keys for its prompt, its task and its sampling."""
        keys: dict[str, Any] = {"prompt": dict(_PROMPTS[self.endpoint])}
        if self.endpoint is Endpoint.EMBEDDINGS:
            dimensions = {} if self.dimensions is None else {"dimensions": self.dimensions}
            return {**keys, "task": {"kind": "embed", **dimensions}}
        tokens = {} if self.top_logprobs is None else {"tokens": {"top": self.top_logprobs}}
        # As with OpenAI, an answer without a limit may fill the rest of the context.
        keys |= {"task": {"kind": "generate", **tokens}, "sampling": {"max_tokens": None}}
        overrides = {name: name for name in self.parameters}
        return {**keys, "overrides": overrides} if overrides else keys
