"""Lines of batch files: each is converted completely, or refused with a reason."""

import json
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pytest
from helpers.openai_lines import CHAT, line
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.exchange.openai_bodies import Endpoint, RefusedLine
from tokenmill.exchange.openai_requests import (
    SCHEMAS,
    BatchRequest,
    JobNeeds,
    RequestReader,
)

#: Names of parameters, of keys inside of them, and an unknown one.
NAMES = [
    *("messages", "prompt", "input", "temperature", "top_p", "max_tokens", "seed", "stop", "n"),
    *("max_completion_tokens", "presence_penalty", "frequency_penalty", "stream", "logprobs"),
    *("response_format", "top_logprobs", "dimensions", "encoding_format", "user", "unknown"),
    *("role", "content", "type", "text", "json_schema", "schema"),
]


def read(data: bytes) -> BatchRequest:
    return RequestReader().read(1, data)


def read_or_none(data: bytes) -> BatchRequest | None:
    with suppress(RefusedLine):
        return read(data)
    return None


def refused(data: bytes, reader: RequestReader | None = None) -> RefusedLine:
    with pytest.raises(RefusedLine) as caught:
        (reader or RequestReader()).read(2, data)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value


def test_a_chat_becomes_a_row() -> None:
    """Messages and sampling parameters are columns of the row, by vLLM's names."""
    request = read(
        line(
            messages=[
                {"role": "developer", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                },
                {"role": "assistant", "content": "c", "tool_calls": None},
            ],
            temperature=0.5,
            top_p=1,
            max_completion_tokens=7,
            seed=3,
            stop="x",
            n=1,
            stream=False,
            logprobs=True,
            top_logprobs=2,
            model="whatever",
            user="someone",
            tools=[],
            tool_choice="auto",
            parallel_tool_calls=True,
            modalities=["text"],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}},
            },
        )
    )
    (row,) = request.rows
    assert row["chat"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
    ]
    sampling = {name: row[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert sampling == {"temperature": 0.5, "top_p": 1.0, "max_tokens": 7, "seed": 3, "stop": ["x"]}
    assert json.loads(row["structured_outputs"]) == {"json": {"type": "object"}}
    assert (request.top_logprobs, row["line"], row["custom_id"]) == (2, 1, "one")


def test_each_text_to_embed_becomes_a_row() -> None:
    """A request with a list of texts has several rows."""
    request = read(line("/v1/embeddings", input=["a", "b"], dimensions=4, encoding_format="float"))
    assert [row["input"] for row in request.rows] == ["a", "b"]
    assert (request.endpoint, request.dimensions) == (Endpoint.EMBEDDINGS, 4)


def test_a_prompt_becomes_a_row() -> None:
    """The prompt of a completion is not changed."""
    (row,) = read(line("/v1/completions", prompt="Once", max_tokens=3)).rows
    assert (row["prompt"], row["max_tokens"]) == ("Once", 3)


def test_a_completion_may_set_what_changes_nothing() -> None:
    """One prompt in a list is the prompt, and defaults may be given."""
    (row,) = read(
        line("/v1/completions", prompt=["Once"], echo=False, best_of=1, suffix="", n=1)
    ).rows
    assert row.keys() == {"line", "custom_id", "prompt"}
    assert row["prompt"] == "Once"


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (b"{", "invalid_json", "not valid JSON"),
        (b"[1]", "invalid_json", "not a JSON object"),
        (b"[" * 100_000, "invalid_json", "not valid JSON"),
        (b'{"custom_id": "\\ud800"}', "invalid_json", "lone surrogate"),
        (b'{"custom_id": "\xed\xa0\x80"}', "invalid_json", "not valid JSON"),
        (line(custom_id=None), "invalid_custom_id", "custom_id"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line("/v1/images"), "invalid_url", "/v1/embeddings"),
        (
            json.dumps({"custom_id": "a", "url": CHAT, "body": {}}).encode(),
            "invalid_method",
            "POST",
        ),
        (
            json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": []}).encode(),
            "invalid_body",
            "object",
        ),
        (line(messages=[]), "invalid_messages", "body.messages"),
        (line(messages=["Hello"]), "invalid_messages", "body.messages.0 must be an object"),
        (line(messages=[{"role": "tool", "content": "x"}]), "invalid_messages", "messages.0.role"),
        (line(messages=[{"role": "user", "content": None}]), "invalid_messages", "0.content"),
        (
            line(messages=[{"role": "user", "content": "x", "name": "me"}]),
            "unsupported_message",
            "messages.0.name",
        ),
        (
            line(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "unsupported_message",
            "type text",
        ),
        (line(temperature=3), "invalid_value", "body.temperature must be"),
        (line(temperature="hot"), "invalid_value", "body.temperature must be"),
        (line(temperature=10**400), "invalid_value", "body.temperature must be"),
        (line(max_tokens=0), "invalid_value", "body.max_tokens must be"),
        (
            line(max_completion_tokens=10**30),
            "invalid_value",
            "body.max_completion_tokens must be at most",
        ),
        (line(max_tokens=1, max_completion_tokens=2), "invalid_value", "differ"),
        (line(top_logprobs=2), "invalid_value", "logprobs must be true"),
        (line(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (line(top_p=0), "invalid_value", "body.top_p"),
        (line(presence_penalty=-3), "invalid_value", "body.presence_penalty"),
        (line(frequency_penalty="x"), "invalid_value", "body.frequency_penalty"),
        (line(seed=1.5), "invalid_value", "body.seed"),
        (line(stop=["a", ""]), "invalid_value", "body.stop"),
        (line(logprobs=1), "invalid_value", "body.logprobs"),
        (line(n=2), "unsupported_parameter", "body.n"),
        (line(n=True), "unsupported_parameter", "body.n"),
        (line(stream=True), "unsupported_parameter", "body.stream"),
        (line(stream=0), "unsupported_parameter", "body.stream"),
        (line(tools=[{}]), "unsupported_parameter", "body.tools"),
        (line(response_format={"type": "grammar"}), "unsupported_parameter", "response_format"),
        (line(response_format={"type": {}}), "unsupported_parameter", "response_format"),
        (line(response_format={"type": "json_schema"}), "unsupported_parameter", "with a schema"),
        (
            line(
                response_format={
                    "type": "json_schema",
                    "json_schema": {"schema": {"description": "x" * 2**16}},
                }
            ),
            "invalid_value",
            "body.response_format has a schema that is too large",
        ),
        (line(structured_outputs="{}"), "unsupported_parameter", "body.structured_outputs"),
        (line("/v1/completions", prompt=["a", "b"]), "invalid_prompt", "body.prompt must be"),
        (line("/v1/completions", prompt=[1, 2]), "invalid_prompt", "token ids"),
        (line("/v1/completions", prompt=[[1, 2]]), "invalid_prompt", "token ids"),
        (line("/v1/completions", prompt=3), "invalid_prompt", "body.prompt must be"),
        (line("/v1/completions", prompt="a", echo=True), "unsupported_parameter", "body.echo"),
        (line("/v1/completions", prompt="a", best_of=2), "unsupported_parameter", "body.best_of"),
        (line("/v1/completions", prompt="a", suffix="b"), "unsupported_parameter", "body.suffix"),
        (line(echo=False), "unsupported_parameter", "body.echo"),
        (line(modalities=["audio"]), "unsupported_parameter", "body.modalities"),
        (line(tool_choice="required"), "invalid_value", "body.tool_choice"),
        (line(parallel_tool_calls="yes"), "invalid_value", "body.parallel_tool_calls"),
        (line("/v1/completions", prompt="a", logprobs=2), "unsupported_parameter", "logprobs"),
        (line("/v1/embeddings", input=[]), "invalid_input", "body.input"),
        (line("/v1/embeddings", input=[1, 2]), "invalid_input", "token ids"),
        (line("/v1/embeddings", input=3), "invalid_input", "list of strings"),
        (line("/v1/embeddings", input="a", dimensions=0), "invalid_value", "body.dimensions"),
        (line("/v1/embeddings", input="a", dimensions=True), "invalid_value", "body.dimensions"),
        (line("/v1/embeddings", input="a", temperature=1), "unsupported_parameter", "temperature"),
        (
            line("/v1/embeddings", input="a", encoding_format="base64"),
            "unsupported_parameter",
            "encoding_format",
        ),
    ],
)
def test_unsupported_lines_are_refused(data: bytes, code: str, part: str) -> None:
    """The reason has a code, and names the parameter of a request that cannot be run."""
    error = refused(data)
    assert error.code == code
    assert part in error.message


def test_null_and_empty_parameters_count_as_not_given() -> None:
    """Parameters that are null or empty, and those that change no answer, are accepted."""
    request = read(
        line(
            temperature=None,
            stop=[],
            response_format={},
            logprobs=None,
            n=None,
            tools=[],
            logit_bias={},
            unknown=None,
            metadata={"a": 1},
            messages=[{"role": "user", "content": "Hello", "name": None, "tool_calls": []}],
        )
    )
    (row,) = request.rows
    assert row.keys() == {"line", "custom_id", "chat"}
    assert request.top_logprobs is None


@pytest.mark.parametrize(
    ("response_format", "structured_outputs"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"json_object": True}),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "array"}, "strict": True}},
            {"json": {"type": "array"}},
        ),
    ],
)
def test_response_formats_become_structured_outputs(
    response_format: dict[str, Any], structured_outputs: dict[str, Any] | None
) -> None:
    """Each of OpenAI's response formats has its equivalent in vLLM; text needs none."""
    (row,) = read(line(response_format=response_format)).rows
    assert json.loads(row.get("structured_outputs", "null")) == structured_outputs


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(NAMES), values, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(list(Endpoint)), st.dictionaries(st.sampled_from(NAMES), VALUES))
@settings(max_examples=300, deadline=None)
def test_any_body_is_converted_or_refused(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """No JSON value of a parameter raises anything but `RefusedLine`; rows fit their schema."""
    data = line(endpoint, **body)
    if (request := read_or_none(data)) is not None:
        pa.Table.from_pylist(list(request.rows), SCHEMAS[endpoint])
        return
    error = refused(data)
    assert error.custom_id == "one"
    assert error.code.startswith(("invalid_", "unsupported_"))
    assert error.message.startswith("body.")


def test_the_lines_of_a_batch_are_of_one_kind() -> None:
    """A second use of an id, another url and other dimensions are refused."""
    reader = RequestReader()
    reader.read(1, line("/v1/embeddings", input="a"))
    error = refused(line("/v1/embeddings", input="b"), reader)
    assert (error.code, error.custom_id) == ("duplicate_custom_id", "one")
    assert refused(line(custom_id="two"), reader).code == "mismatched_url"
    error = refused(line("/v1/embeddings", "three", input="c", dimensions=2), reader)
    assert error.code == "mismatched_dimensions"


def test_the_job_has_what_any_request_needs() -> None:
    """The job overrides each parameter in use, and returns as many likeliest tokens as needed."""
    needs = None
    for number, body in enumerate(
        [{"seed": 1}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 5}]
    ):
        needs = JobNeeds.of(read(line(custom_id=str(number), **body))).merged(needs)
    assert needs == JobNeeds(Endpoint.CHAT, ["seed"], 5)
    keys = needs.job_keys
    assert keys["overrides"] == {"seed": "seed"}
    assert keys["task"] == {"kind": "generate", "tokens": {"top": 5}}
