"""The extract task: typed columns from a schema, and the offsets of strings in the text."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.scripted import hold, written
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.run.run import check_job
from tokenmill.tasks.extraction.extract import Extract
from tokenmill.tasks.extraction.offsets import find_spans
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import PreparedRow, TaskContext

SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "author": {"type": ["string", "null"]},
        "year": {"type": "integer"},
    },
    "required": ["names", "year"],
}
SPAN = pa.struct([("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])


def job_data(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "extraction",
        "input": {"path": "corpus"},
        "model": {"source": "fake"},
        "prompt": {"user": "{{ text }}"},
        "sampling": {"max_tokens": 64, "temperature": 0},
        "task": {"kind": "extract", "json_schema": SCHEMA, **task},
        "output": {"path": "out"},
        **changes,
    }


def extract(**task: Any) -> TaskStep[Extract]:
    (step,) = Job.model_validate(job_data(task)).steps
    return step


def error_of(**task: Any) -> str:
    """The message with which loading a job with this task fails."""
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(job_data(task))
    (error,) = caught.value.errors()
    return str(error["msg"])


def run_task(text: str, *answers: str, **task: Any) -> Any:
    """The cells or reject of a row with this text; each attempt gets the next answer."""
    task_ = extract(**task).build(TaskContext(FakeTokenizer(), 1000))
    (prepared,) = task_.prepare([{"text": text}])
    assert isinstance(prepared, PreparedRow)
    notes = json.loads(json.dumps(prepared.notes))
    dialogue = task_.answer(PreparedRow(prepared.prompts, notes))
    return hold(dialogue, [written(answer) for answer in answers])[0]


ANSWER = '{"names": ["Ann", "Bo"], "author": null, "year": 1999}'


def test_each_property_is_a_column_of_its_type() -> None:
    """By default, the columns are the properties of the schema, in the same order."""
    fields = [("names", pa.list_(pa.string())), ("author", pa.string()), ("year", pa.int64())]
    assert extract().fields == tuple(pa.field(name, kind) for name, kind in fields)
    assert run_task("x", ANSWER) == {"names": ["Ann", "Bo"], "author": None, "year": 1999}


def test_one_struct_column_holds_all_properties() -> None:
    """With `column`, the answer is a single struct column of that name."""
    (field,) = extract(column="record").fields
    assert (field.name, field.type.names) == ("record", ["names", "author", "year"])
    cells = run_task("x", ANSWER, column="record")
    assert pa.array([cells["record"]], field.type).to_pylist() == [json.loads(ANSWER)]


def test_every_request_carries_the_schema() -> None:
    """The sampling of every attempt contains the whole schema and the parameters of the job."""
    step = extract(retries={"sampling": {"max_tokens": 128}})
    values = [dict(params.values) for params in step.params]
    schemas = [json.loads(sampling.pop("structured_outputs")["json"]) for sampling in values]
    assert schemas == [{**SCHEMA, "additionalProperties": False}] * 2
    assert values == [{"max_tokens": tokens, "temperature": 0} for tokens in (64, 128)]


@pytest.mark.parametrize("name", ["schema.json", "schema.yaml"])
def test_a_schema_file_is_read_into_the_job(name: str, tmp_path: Path) -> None:
    """An inline schema and the same schema in a file give the same job."""
    path = tmp_path / name
    path.write_text(json.dumps(SCHEMA))
    from_file = Job.model_validate(job_data({"json_schema": str(path)}))
    assert from_file.fingerprint == Job.model_validate(job_data({})).fingerprint


def test_a_pydantic_model_defines_the_schema() -> None:
    """Definitions, enums and optional fields of a model become columns."""
    step = extract(json_schema="helpers.letters:Letter")
    person = pa.struct([("name", pa.string()), ("age", pa.int64())])
    assert step.fields == (
        pa.field("sender", person),
        pa.field("others", pa.list_(person)),
        pa.field("written", pa.date32()),
        pa.field("mood", pa.string()),
    )
    answer = '{"sender": {"name": "Ann"}, "others": [], "written": "2024-02-29"}'
    assert run_task("x", answer, json_schema="helpers.letters:Letter") == {
        "sender": {"name": "Ann", "age": None},
        "others": [],
        "written": date(2024, 2, 29),
        "mood": None,
    }


def test_the_stored_job_holds_the_schema_itself(tmp_path: Path) -> None:
    """A job that is written and loaded again is the same job and does not need the module."""
    job = Job.model_validate(
        job_data(
            {"json_schema": "helpers.letters:Letter", "retries": {"sampling": {"max_tokens": 99}}}
        )
    )
    stored = tmp_path / "job.yaml"
    stored.write_text(job.to_yaml())
    assert "letters" not in stored.read_text()
    reloaded = load_job(stored)
    assert reloaded.fingerprint == job.fingerprint
    assert reloaded == job


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"json_schema": "missing.json"}, "missing.json: cannot read the file (No such file"),
        (
            {"json_schema": "helpers.letters:Missing"},
            "helpers.letters:Missing: the module has no pydantic model",
        ),
        ({"json_schema": "helpers.letters:NO_MODEL"}, "no pydantic model of that name"),
        ({"json_schema": "no_module_here:X"}, "no_module_here:X: cannot import the module"),
        ({"json_schema": "helpers.letters:Node"}, "is recursive"),
        ({"json_schema": {"type": "object"}}, "an object needs at least one"),
        ({"json_schema": [1]}, "valid dictionary"),
        ({"locate": {"column": "text", "fields": ["missing"]}}, "missing is not a property"),
        ({"locate": {"column": "text", "fields": ["year"]}}, "year has type int64; only strings"),
        ({"locate": {"column": "text", "fields": []}}, "at least 1 item"),
        (
            {"sampling": {"max_tokens": 9, "structured_outputs": {"choice": ["a"]}}},
            "sampling.structured_outputs is generated from json_schema",
        ),
        (
            {"retries": {"sampling": {"temperature": 1, "structured_outputs": {}}}},
            "retries.sampling.structured_outputs is generated from json_schema",
        ),
    ],
)
def test_an_invalid_task_is_rejected_when_the_job_is_loaded(
    task: dict[str, Any], reason: str
) -> None:
    """Loading the job checks files, models, fields and sampling."""
    assert reason in error_of(**task)


@pytest.mark.parametrize("content", ["{", "[1]", "a: b: c"])
def test_a_file_without_a_schema_is_named_in_the_error(content: str, tmp_path: Path) -> None:
    """The message contains the path of the file."""
    for name in ("schema.json", "schema.yaml"):
        path = tmp_path / name
        path.write_text(content)
        assert str(path) in error_of(json_schema=str(path))


def test_an_error_names_the_path_in_the_schema(tmp_path: Path) -> None:
    """The message names the job file, the key and the path in the schema, on one line."""
    path = tmp_path / "job.yaml"
    schema = {"type": "object", "properties": {"tags": {"type": "array"}}}
    path.write_text(json.dumps(job_data({"json_schema": schema})))
    with pytest.raises(UserError, match=r"job\.yaml: .*json_schema: properties\.tags: items is"):
        load_job(path)


def test_an_unknown_retry_parameter_is_rejected_before_the_run() -> None:
    """`retries.sampling` accepts the parameters of vLLM, as `sampling` does."""
    task = {"retries": {"sampling": {"max_token": 9}}}
    job = Job.model_validate(job_data(task, model={"source": "bundled:smollm2-135m"}))
    with pytest.raises(UserError, match=r"retries\.sampling\.max_token: .*max_tokens"):
        check_job(job)


@pytest.mark.parametrize(("reason", "cause"), [("length", "max_tokens"), ("repetition", "loop")])
def test_a_truncated_answer_is_always_rejected(reason: str, cause: str) -> None:
    """An answer that was cut off has its own reject class, even if it is complete JSON."""
    task = extract().build(TaskContext(FakeTokenizer(), 1000))
    for text in ('{"names": ["An', ANSWER):
        reject, _ = hold(task.answer(PreparedRow([[1]])), [written(text, reason)])
        assert cause in reject.message
        assert reject.reject_class == RejectClass.TRUNCATED_ANSWER
        assert reject.message.endswith(f"the last answer: {text}")
        assert reject.attempts == 1


def test_an_invalid_answer_is_retried_and_then_rejected() -> None:
    """The reject holds the path in the answer, the last answer and the number of attempts."""
    retries = {"times": 1, "sampling": {"temperature": 1, "seed": 1}}
    incomplete, too_large = '{"names": []}', '{"names": [], "year": 99999999999999999999}'
    assert run_task("x", incomplete, ANSWER, retries=retries)["year"] == 1999
    reject = run_task("x", incomplete, too_large, retries=retries)
    message = f"year: the number does not fit in 64 bits; the last answer: {too_large}"
    assert reject == Reject(RejectClass.INVALID_ANSWER, message, attempts=2)


LOCATE = {"column": "text", "fields": ["names", "author"]}


def test_located_strings_have_offsets() -> None:
    """Start and end count code points; they are null if the text does not contain the name."""
    text = "🌞 Ann met Bo. Ann left."
    answer = '{"names": ["Ann", "Zed", "Ann", "Ann"], "author": "Bo", "year": 1}'
    cells = run_task(text, answer, locate=LOCATE)
    assert cells["names"] == [
        {"text": "Ann", "start": 2, "end": 5},
        {"text": "Zed", "start": None, "end": None},
        {"text": "Ann", "start": 14, "end": 17},
        {"text": "Ann", "start": None, "end": None},
    ]
    assert cells["author"] == {"text": "Bo", "start": 10, "end": 12}
    fields = extract(locate=LOCATE).fields
    assert [field.type for field in fields] == [pa.list_(SPAN), SPAN, pa.int64()]
    for field in fields:
        assert pa.array([cells[field.name]], field.type).to_pylist() == [cells[field.name]]


def test_the_struct_column_contains_spans() -> None:
    """`column` and `locate` can be combined."""
    (field,) = extract(locate=LOCATE, column="record").fields
    cells = run_task("by Ann", ANSWER, locate=LOCATE, column="record")
    assert cells["record"]["names"][0] == {"text": "Ann", "start": 3, "end": 6}
    assert cells["record"]["author"] is None
    assert pa.array([cells["record"]], field.type).to_pylist() == [cells["record"]]


def test_the_searched_column_is_read() -> None:
    """`locate` reads a column that no template uses, and errors name `locate.column`."""
    step = extract(locate={"column": "body", "fields": ["author"]})
    assert dict(step.columns) == {"body": "task.locate.column", "text": "prompt.user"}


@pytest.mark.parametrize(("value", "is_reject"), [(None, False), (3, True), (["x"], True)])
def test_only_strings_and_nulls_can_be_searched(value: Any, is_reject: bool) -> None:
    """A null text is searched as an empty one; any other type rejects the row."""
    step = extract(locate={"column": "body", "fields": ["author"]})
    (prepared,) = step.build(TaskContext(FakeTokenizer(), 1000)).prepare(
        [{"text": "x", "body": value}]
    )
    assert isinstance(prepared, Reject) is is_reject


@given(st.lists(st.text("ab é한", max_size=4), max_size=6), st.text("ab é한.", max_size=30))
def test_a_span_contains_the_string(mentions: list[str], text: str) -> None:
    """Spans contain their string, equal mentions have distinct spans, and no mention is missed."""
    spans = find_spans(mentions, text)
    assert isinstance(spans, list)
    starts_by_mention: dict[str, list[int]] = {}
    for mention, span in zip(mentions, spans, strict=True):
        assert span is not None
        assert span["text"] == mention
        if span["start"] is not None:
            assert text[span["start"] : span["end"]] == mention
            starts_by_mention.setdefault(mention, []).append(span["start"])
        elif mention not in starts_by_mention:
            assert not mention or mention not in text
    for starts in starts_by_mention.values():
        assert starts == sorted(set(starts))


@pytest.mark.parametrize(
    ("mention", "text", "start"),
    [
        ("Ann", "Annual report by Ann", 17),
        ("Ann", "JoAnn and Ann", 10),
        ("Ann", "Annual", 0),
        ("王", "国王来了", 1),
        ("C++", "C++ or C", 0),
        ("ann", "Ann", None),
        ("a.c", "abc a.c", 4),
        ("", "abc", None),
    ],
)
def test_whole_words_are_preferred(mention: str, text: str, start: int | None) -> None:
    """A name inside a longer word matches only if it never occurs as a whole word."""
    span = find_spans(mention, text)
    assert isinstance(span, dict)
    assert span["start"] == start


def test_the_chunks_of_a_long_row_are_joined() -> None:
    """Lists are merged without duplicates; other properties take the first non-null value."""
    chunks = [
        {"names": ["Ann"], "author": None, "year": 1},
        {"names": None, "author": "Bo", "year": 2},
        {"names": ["Bo", "Ann"], "author": "Cy", "year": None},
    ]
    whole = {"names": ["Ann", "Bo"], "author": "Bo", "year": 1}
    join = extract().join
    assert join is not None and join.cells(chunks) == whole
    in_column = extract(column="record").join
    assert in_column is not None
    assert in_column.cells([{"record": chunk} for chunk in chunks]) == {"record": whole}


def test_rows_with_offsets_are_not_joined() -> None:
    """An offset in a chunk is not an offset in the text, so there is no join."""
    assert extract(locate=LOCATE).join is None
