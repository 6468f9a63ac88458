"""Rows of an output as the answer and error lines of OpenAI's batch format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmill.errors import UserError
from tokenmill.exchange.openai_bodies import Endpoint, RefusedLine
from tokenmill.exchange.openai_requests import BatchRequest
from tokenmill.job.job import Job
from tokenmill.output.json_lines import as_json
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import task_columns
from tokenmill.reject import RejectClass
from tokenmill.row_columns import ERROR, NUM_GENERATED_TOKENS, NUM_INPUT_TOKENS
from tokenmill.tasks.generation.generate import GENERATE
from tokenmill.tasks.scoring.embed import EMBED

_EMPTY = {
    Endpoint.COMPLETIONS: "body.prompt is empty or blank",
    Endpoint.EMBEDDINGS: "a text of body.input is empty or blank",
}
#: Builds the response body of a row of an output, from its unit's record and the request's id.
BodyBuilder = Callable[[Mapping[str, Any], UnitRecord, str], dict[str, Any]]


def answer_line(
    row: Mapping[str, Any],
    record: UnitRecord,
    build_body: BodyBuilder,
    request_id: str,
    custom_id: str,
) -> dict[str, Any]:
    """A row of an output as a line of the answer file, or of the error file for a reject."""
    if row[ERROR] is not None:
        return _error_line(request_id, custom_id, row[ERROR]["class"], row[ERROR]["message"])
    body = build_body(row, record, request_id)
    return {
        "id": f"batch_req_{request_id}",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": request_id, "body": body},
        "error": None,
    }


def refused_line(line: int, error: RefusedLine) -> dict[str, Any]:
    """The error line for a line of a batch file that was not run."""
    refused = _error_line(str(line), error.custom_id, error.code, error.message)
    return _with_line_number(refused, line)


def answered_line(
    request: BatchRequest,
    rows: Sequence[tuple[UnitRecord, Mapping[str, Any]]],
    build_body: BodyBuilder,
    columns: Mapping[str, str],
) -> dict[str, Any]:
    """The answer to a request from all its rows, or the first error of any row.

    `columns` are the output's columns by the names of the task's fields.
    """
    request_id = str(request.line)
    lines = [
        answer_line(row, record, build_body, request_id, request.custom_id) for record, row in rows
    ]
    failed = next((line for line in lines if line["error"] is not None), None)
    if failed is not None:
        if failed["error"]["code"] == RejectClass.EMPTY_INPUT and request.endpoint in _EMPTY:
            # The row's message names a column and a template, which the request does not have.
            failed["error"]["message"] = _EMPTY[request.endpoint]
        return _with_line_number(failed, request.line)
    answer, *others = lines
    body = answer["response"]["body"]
    if request.endpoint is Endpoint.EMBEDDINGS:
        for index, line in enumerate(others, start=1):
            (entry,) = line["response"]["body"]["data"]
            body["data"].append({**entry, "index": index})
            for name, count in line["response"]["body"]["usage"].items():
                body["usage"][name] += count
    elif request.endpoint is Endpoint.COMPLETIONS:
        body["object"] = "text_completion"
        body["choices"] = [
            {key: choice[key] for key in ("index", "logprobs", "finish_reason")}
            | {"text": choice["message"]["content"]}
            for choice in body["choices"]
        ]
    elif request.top_logprobs is not None:
        ((_, row),) = rows
        body["choices"][0]["logprobs"] = _logprobs(row[columns["tokens"]], request.top_logprobs)
    return answer


def _error_line(request_id: str, custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    return {
        "id": f"batch_req_{request_id}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _with_line_number(line: dict[str, Any], number: int) -> dict[str, Any]:
    return {**line, "error": {**line["error"], "line": number}}


def _logprobs(tokens: Sequence[Mapping[str, Any]] | None, num_top: int) -> dict[str, Any]:
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(top) for top in token["top"][:num_top]]}
        for token in tokens or ()
    ]
    return {"content": content, "refusal": None}


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    text = token["token"]
    return {"token": text, "logprob": as_json(token["logprob"]), "bytes": list(text.encode())}


def body_builder(job: Job) -> BodyBuilder:
    """The builder for a job's only task. Raises `UserError` for a job that the format cannot hold.

    Only generate and embed have a response body in OpenAI's format.
    """
    if len(job.steps) == 1:
        (step,) = job.steps
        (columns,) = task_columns(job)
        if step.kind is EMBED:
            return lambda row, record, _: _embedding(row, record, columns)
        if step.kind is GENERATE:
            return lambda row, record, request_id: _chat(row, record, columns, request_id)
    raise UserError(
        "--to openai-batch: works for jobs with a single generate or embed task; use --to jsonl"
    )


def _chat(
    row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str], request_id: str
) -> dict[str, Any]:
    if "generated_texts" in columns:
        texts, reasons = row[columns["generated_texts"]], row[columns["finish_reasons"]]
    else:
        texts, reasons = [row[columns["generated_text"]]], [row[columns["finish_reason"]]]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    num_input, num_output = row[NUM_INPUT_TOKENS] or 0, row[NUM_GENERATED_TOKENS] or 0
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": int(record.written_at),
        "model": record.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": num_input,
            "completion_tokens": num_output,
            "total_tokens": num_input + num_output,
        },
    }


def _embedding(
    row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str]
) -> dict[str, Any]:
    num_input = row[NUM_INPUT_TOKENS] or 0
    vector = as_json(row[columns["embedding"]])
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": record.model,
        "usage": {"prompt_tokens": num_input, "total_tokens": num_input},
    }
