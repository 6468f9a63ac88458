"""Batch files: every line is asked in full, or refused with its reason."""

import json

import pytest
from helpers.openai_lines import CHAT, line
from tokenmill.exchange.openai_requests import (
    BatchRequest,
    Endpoint,
    RefusedLine,
    RequestReader,
    Wanted,
    wanted_by,
)


def read(data: bytes) -> BatchRequest:
    return RequestReader().read(1, data)


def refused(data: bytes, reader: RequestReader | None = None) -> RefusedLine:
    with pytest.raises(RefusedLine) as caught:
        (reader or RequestReader()).read(2, data)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value


def test_a_chat_is_a_row() -> None:
    """Messages and sampling parameters stand in the row's columns, by the engine's names."""
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
    asked = {name: row[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert asked == {"temperature": 0.5, "top_p": 1.0, "max_tokens": 7, "seed": 3, "stop": ["x"]}
    assert json.loads(row["structured_outputs"]) == {"json": {"type": "object"}}
    assert (request.top_logprobs, row["line"], row["custom_id"]) == (2, 1, "one")


def test_inputs_to_embed_are_a_row_each() -> None:
    """A list of texts is one request of several rows."""
    request = read(line("/v1/embeddings", input=["a", "b"], dimensions=4, encoding_format="float"))
    assert [row["input"] for row in request.rows] == ["a", "b"]
    assert (request.endpoint, request.dimensions) == (Endpoint.EMBEDDINGS, 4)


def test_a_prompt_is_a_row() -> None:
    """A completion's prompt stands as it is."""
    (row,) = read(line("/v1/completions", prompt="Once", max_tokens=3)).rows
    assert (row["prompt"], row["max_tokens"]) == ("Once", 3)


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (b"{", "invalid_json", "no JSON"),
        (b"[1]", "invalid_json", "no JSON object"),
        (b"[" * 100_000, "invalid_json", "no JSON"),
        (b'{"custom_id": "\\ud800"}', "invalid_json", "lone surrogate"),
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
        (line(max_completion_tokens=10**30), "invalid_value", "body.max_tokens must be at most"),
        (line(max_tokens=1, max_completion_tokens=2), "invalid_value", "differ"),
        (line(top_logprobs=2), "invalid_value", "logprobs must be true"),
        (line(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (line(n=2), "unsupported_parameter", "body.n"),
        (line(stream=True), "unsupported_parameter", "body.stream"),
        (line(tools=[{}]), "unsupported_parameter", "body.tools"),
        (line(response_format={"type": "grammar"}), "unsupported_parameter", "response_format"),
        (line(structured_outputs="{}"), "unsupported_parameter", "body.structured_outputs"),
        (line("/v1/completions", prompt=["a", "b"]), "invalid_prompt", "one text"),
        (line("/v1/completions", prompt="a", logprobs=2), "unsupported_parameter", "logprobs"),
        (line("/v1/embeddings", input=[]), "invalid_input", "body.input"),
        (line("/v1/embeddings", input=[1, 2]), "invalid_input", "body.input"),
        (
            line("/v1/embeddings", input="a", encoding_format="base64"),
            "unsupported_parameter",
            "encoding_format",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(data: bytes, code: str, part: str) -> None:
    """Each wish that we cannot fulfil, and each line that is no request, has its reason."""
    error = refused(data)
    assert error.code == code
    assert part in error.message


def test_a_batch_has_one_of_each() -> None:
    """A second use of a name, another url and other dimensions are refused by their lines."""
    reader = RequestReader()
    reader.read(1, line("/v1/embeddings", input="a"))
    error = refused(line("/v1/embeddings", input="b"), reader)
    assert (error.code, error.custom_id) == ("duplicate_custom_id", "one")
    assert refused(line(custom_id="two"), reader).code == "mismatched_url"
    error = refused(line("/v1/embeddings", "three", input="c", dimensions=2), reader)
    assert error.code == "mismatched_dimensions"


def test_the_job_asks_what_any_line_wants() -> None:
    """Overrides are the parameters that are used, alternatives the most that a line wants."""
    wanted = None
    for number, body in enumerate(
        [{"seed": 1}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 5}]
    ):
        wanted = wanted_by(read(line(custom_id=str(number), **body)), wanted)
    assert wanted == Wanted(Endpoint.CHAT, ["seed"], 5)
    keys = wanted.job_keys
    assert keys["overrides"] == {"seed": "seed"}
    assert keys["task"] == {"kind": "generate", "tokens": {"top": 5}}
