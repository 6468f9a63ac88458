"""Answers and errors as lines of OpenAI's batch format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmill.errors import UserError
from tokenmill.exchange.openai_requests import BatchRequest, Endpoint, RefusedLine
from tokenmill.output.json_lines import as_json
from tokenmill.output.record import UnitRecord
from tokenmill.tasks.generation.generate import GENERATE
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.policy import fields_of
from tokenmill.tasks.row_tasks import answer_fields
from tokenmill.tasks.scoring.embed import EMBED

#: A row of an output, and its unit's record, to the body of its response; the last is the row's id.
Body = Callable[[Mapping[str, Any], UnitRecord, str], dict[str, Any]]


# Answers.


def answer_line(
    row: Mapping[str, Any], record: UnitRecord, body: Body, place: str, custom_id: str
) -> dict[str, Any]:
    """A row of an output as a line of a batch's answer file, or of its error file."""
    if row["error"] is not None:
        return error_line(place, custom_id, row["error"]["class"], row["error"]["message"])
    response = {"status_code": 200, "request_id": place, "body": body(row, record, place)}
    return {
        "id": f"batch_req_{place}",
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }


def error_line(place: str, custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    """A request that has no answer, and why."""
    error = {"code": code, "message": message}
    return {
        "id": f"batch_req_{place}",
        "custom_id": custom_id,
        "response": None,
        "error": error,
    }


def refused_line(line: int, error: RefusedLine) -> dict[str, Any]:
    """A line of a batch file that was not asked, with its number."""
    return _with_number(error_line(str(line), error.custom_id, error.code, error.message), line)


def answered_line(
    request: BatchRequest, rows: Sequence[tuple[UnitRecord, Mapping[str, Any]]], body: Body
) -> dict[str, Any]:
    """The answer to a line, of all its rows; the first error if any has none."""
    place = str(request.line)
    lines = [answer_line(row, record, body, place, request.custom_id) for record, row in rows]
    failed = next((line for line in lines if line["error"] is not None), None)
    if failed is not None:
        return _with_number(failed, request.line)
    first, *others = lines
    whole = first["response"]["body"]
    if request.endpoint is Endpoint.EMBEDDINGS:
        for index, line in enumerate(others, start=1):
            (entry,) = line["response"]["body"]["data"]
            whole["data"].append({**entry, "index": index})
            for name, count in line["response"]["body"]["usage"].items():
                whole["usage"][name] += count
        return first
    if request.endpoint is Endpoint.COMPLETIONS:
        whole["object"] = "text_completion"
        whole["choices"] = [
            {key: choice[key] for key in ("index", "logprobs", "finish_reason")}
            | {"text": choice["message"]["content"]}
            for choice in whole["choices"]
        ]
    elif request.top_logprobs is not None:
        ((_, row),) = rows
        whole["choices"][0]["logprobs"] = _logprobs(row["tokens"], request.top_logprobs)
    return first


def _with_number(line: dict[str, Any], number: int) -> dict[str, Any]:
    return {**line, "error": {**line["error"], "line": number}}


def _logprobs(tokens: Sequence[Mapping[str, Any]] | None, top: int) -> dict[str, Any]:
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(each) for each in token["top"][:top]]}
        for token in tokens or ()
    ]
    return {"content": content, "refusal": None}


def _logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    text = token["token"]
    return {"token": text, "logprob": as_json(token["logprob"]), "bytes": list(text.encode())}


def body_of(steps: tuple[TaskStep[Any], ...]) -> Body:
    """How the answers of a job's only task become bodies. Raises `UserError` for another job."""
    if len(steps) == 1:
        (step,) = steps
        columns = {
            own.name: column.name
            for own, column in zip(fields_of(step), answer_fields(steps), strict=True)
        }
        if step.kind is EMBED:
            return lambda row, record, _: _embedding(row, record, columns)
        if step.kind is GENERATE:
            return lambda row, record, place: _chat(row, record, columns, place)
    raise UserError(
        "--to openai-batch: the form holds the answers of one task, generate or embed; use jsonl"
    )


def _chat(
    row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str], place: str
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
    asked, made = row["num_input_tokens"] or 0, row["num_generated_tokens"] or 0
    return {
        "id": f"chatcmpl-{place}",
        "object": "chat.completion",
        "created": int(record.written_at),
        "model": record.model,
        "choices": choices,
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }


def _embedding(
    row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str]
) -> dict[str, Any]:
    asked = row["num_input_tokens"] or 0
    vector = as_json(row[columns["embedding"]])
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": record.model,
        "usage": {"prompt_tokens": asked, "total_tokens": asked},
    }
