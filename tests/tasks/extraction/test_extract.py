"""Extract: typed columns from a schema, and the places of strings in the text."""

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
from tokenmill.tasks.extraction.offsets import located
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


def refusal(**task: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(job_data(task))
    (error,) = caught.value.errors()
    return str(error["msg"])


def answered(text: str, *answers: str, **task: Any) -> Any:
    """The cells of a row with this text, whose attempts are answered so."""
    task_ = extract(**task).build(TaskContext(FakeTokenizer(), 1000))
    (prepared,) = task_.prepare([{"text": text}])
    assert isinstance(prepared, PreparedRow)
    notes = json.loads(json.dumps(prepared.notes))
    dialogue = task_.answer(PreparedRow(prepared.prompts, notes))
    return hold(dialogue, [written(answer) for answer in answers])[0]


ANSWER = '{"names": ["Ann", "Bo"], "author": null, "year": 1999}'


def test_each_property_is_a_column_of_its_type() -> None:
    """By default the columns are the schema's properties, in its order."""
    fields = [("names", pa.list_(pa.string())), ("author", pa.string()), ("year", pa.int64())]
    assert extract().fields == tuple(pa.field(name, kind) for name, kind in fields)
    assert answered("x", ANSWER) == {"names": ["Ann", "Bo"], "author": None, "year": 1999}


def test_one_struct_column_holds_all_properties() -> None:
    """With `column` the answer is one struct of that name."""
    (field,) = extract(column="found").fields
    assert (field.name, field.type.names) == ("found", ["names", "author", "year"])
    cells = answered("x", ANSWER, column="found")
    assert pa.array([cells["found"]], field.type).to_pylist() == [json.loads(ANSWER)]


def test_the_engine_is_asked_for_json_by_the_schema() -> None:
    """Every attempt's sampling has the whole schema, besides what the job says."""
    step = extract(retries={"sampling": {"max_tokens": 128}})
    values = [dict(params.values) for params in step.params]
    schemas = [json.loads(each.pop("structured_outputs")["json"]) for each in values]
    assert schemas == [{**SCHEMA, "additionalProperties": False}] * 2
    assert values == [{"max_tokens": tokens, "temperature": 0} for tokens in (64, 128)]


@pytest.mark.parametrize("name", ["schema.json", "schema.yaml"])
def test_a_schema_file_is_read_into_the_job(name: str, tmp_path: Path) -> None:
    """The job is the same whether its schema stands in it or in a file."""
    path = tmp_path / name
    path.write_text(json.dumps(SCHEMA))
    from_file = Job.model_validate(job_data({"json_schema": str(path)}))
    assert from_file.fingerprint == Job.model_validate(job_data({})).fingerprint


def test_a_pydantic_model_gives_its_schema() -> None:
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
    assert answered("x", answer, json_schema="helpers.letters:Letter") == {
        "sender": {"name": "Ann", "age": None},
        "others": [],
        "written": date(2024, 2, 29),
        "mood": None,
    }


def test_the_stored_job_holds_the_schema_itself(tmp_path: Path) -> None:
    """A job that is written out and read again needs no module and is the same job."""
    job = Job.model_validate(
        job_data(
            {"json_schema": "helpers.letters:Letter", "retries": {"sampling": {"max_tokens": 99}}}
        )
    )
    stored = tmp_path / "job.yaml"
    stored.write_text(job.to_yaml())
    assert "letters" not in stored.read_text()
    again = load_job(stored)
    assert again.fingerprint == job.fingerprint
    assert again == job


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"json_schema": "missing.json"}, "missing.json: cannot read it (No such file"),
        (
            {"json_schema": "helpers.letters:Nobody"},
            "helpers.letters:Nobody: the module has no pydantic model",
        ),
        ({"json_schema": "helpers.letters:NO_MODEL"}, "no pydantic model of that name"),
        ({"json_schema": "no_module_here:X"}, "no_module_here:X: cannot import it"),
        ({"json_schema": "helpers.letters:Node"}, "is recursive"),
        ({"json_schema": {"type": "object"}}, "an object needs at least one"),
        ({"json_schema": [1]}, "valid dictionary"),
        ({"locate": {"column": "text", "fields": ["nobody"]}}, "locate.fields: nobody is none of"),
        ({"locate": {"column": "text", "fields": ["year"]}}, "year holds int64; only strings"),
        ({"locate": {"column": "text", "fields": []}}, "at least 1 item"),
        (
            {"sampling": {"max_tokens": 9, "structured_outputs": {"choice": ["a"]}}},
            "sampling.structured_outputs is made of json_schema",
        ),
        (
            {"retries": {"sampling": {"temperature": 1, "structured_outputs": {}}}},
            "retries.sampling.structured_outputs is made of json_schema",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_job(task: dict[str, Any], reason: str) -> None:
    """Files, models, fields and sampling are checked as the job is loaded."""
    assert reason in refusal(**task)


@pytest.mark.parametrize("content", ["{", "[1]", "a: b: c"])
def test_a_file_that_holds_no_schema_is_refused_by_name(content: str, tmp_path: Path) -> None:
    """The message begins with the file."""
    for name in ("schema.json", "schema.yaml"):
        path = tmp_path / name
        path.write_text(content)
        assert str(path) in refusal(json_schema=str(path))


def test_a_place_in_the_schema_is_named_in_one_line(tmp_path: Path) -> None:
    """The command line's message says which file, which key and where in the schema."""
    path = tmp_path / "job.yaml"
    schema = {"type": "object", "properties": {"tags": {"type": "array"}}}
    path.write_text(json.dumps(job_data({"json_schema": schema})))
    with pytest.raises(UserError, match=r"job\.yaml: .*json_schema: properties\.tags: items is"):
        load_job(path)


def test_a_retrys_unknown_parameter_is_refused_before_the_run() -> None:
    """Names in `retries.sampling` are those of vLLM, as in `sampling`."""
    task = {"retries": {"sampling": {"max_token": 9}}}
    job = Job.model_validate(job_data(task, model={"source": "bundled:smollm2-135m"}))
    with pytest.raises(UserError, match=r"retries\.sampling\.max_token: .*max_tokens"):
        check_job(job)


def test_an_answer_that_is_cut_off_is_never_good() -> None:
    """Finish reason `length` is a reject of its own class, even if what is there is whole."""
    task = extract().build(TaskContext(FakeTokenizer(), 1000))
    for text in ('{"names": ["An', ANSWER):
        reject, _ = hold(task.answer(PreparedRow([[1]])), [written(text, "length")])
        assert reject.reject_class == RejectClass.TRUNCATED_ANSWER
        assert reject.message.endswith(f"the last answer: {text}")
        assert reject.attempts == 1


def test_an_invalid_answer_is_asked_again_and_then_that_rows_reject() -> None:
    """The reject has the place in the answer, the last answer, and the attempts."""
    retries = {"times": 1, "sampling": {"temperature": 1, "seed": 1}}
    wrong, beyond = '{"names": []}', '{"names": [], "year": 99999999999999999999}'
    assert answered("x", wrong, ANSWER, retries=retries)["year"] == 1999
    reject = answered("x", wrong, beyond, retries=retries)
    message = f"year: the number does not fit into 64 bits; the last answer: {beyond}"
    assert reject == Reject(RejectClass.INVALID_ANSWER, message, attempts=2)


LOCATE = {"column": "text", "fields": ["names", "author"]}


def test_located_strings_have_their_places() -> None:
    """Start and end are code points; a name that the text does not hold has none."""
    text = "🌞 Ann met Bo. Ann left."
    answer = '{"names": ["Ann", "Zed", "Ann", "Ann"], "author": "Bo", "year": 1}'
    cells = answered(text, answer, locate=LOCATE)
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


def test_spans_stand_in_the_struct_column_too() -> None:
    """`column` and `locate` go together."""
    (field,) = extract(locate=LOCATE, column="found").fields
    cells = answered("by Ann", ANSWER, locate=LOCATE, column="found")
    assert cells["found"]["names"][0] == {"text": "Ann", "start": 3, "end": 6}
    assert cells["found"]["author"] is None
    assert pa.array([cells["found"]], field.type).to_pylist() == [cells["found"]]


def test_the_column_that_is_searched_is_read() -> None:
    """A column that no template names is read for `locate`, and named by its place."""
    step = extract(locate={"column": "body", "fields": ["author"]})
    assert dict(step.columns) == {"body": "task.locate.column", "text": "prompt.user"}


@pytest.mark.parametrize(("value", "is_reject"), [(None, False), (3, True), (["x"], True)])
def test_a_row_without_text_to_search(value: Any, is_reject: bool) -> None:
    """A null text holds no name; a value that is no text is that row's reject."""
    step = extract(locate={"column": "body", "fields": ["author"]})
    (prepared,) = step.build(TaskContext(FakeTokenizer(), 1000)).prepare(
        [{"text": "x", "body": value}]
    )
    assert isinstance(prepared, Reject) is is_reject


@given(st.lists(st.text("ab é한", max_size=4), max_size=6), st.text("ab é한.", max_size=30))
def test_a_span_is_the_string_itself(mentions: list[str], text: str) -> None:
    """Each place holds the string; equal mentions have places of their own; none is overlooked."""
    spans = located(mentions, text)
    assert isinstance(spans, list)
    places: dict[str, list[int]] = {}
    for mention, span in zip(mentions, spans, strict=True):
        assert span is not None
        assert span["text"] == mention
        if span["start"] is not None:
            assert text[span["start"] : span["end"]] == mention
            places.setdefault(mention, []).append(span["start"])
        elif mention not in places:
            assert not mention or mention not in text
    for starts in places.values():
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
def test_whole_words_are_found_first(mention: str, text: str, start: int | None) -> None:
    """A name inside a longer word counts only where it never stands alone."""
    span = located(mention, text)
    assert isinstance(span, dict)
    assert span["start"] == start


def test_the_parts_of_a_long_row_are_joined() -> None:
    """Lists are united without doubles, other values are the first that is not null."""
    parts = [
        {"names": ["Ann"], "author": None, "year": 1},
        {"names": None, "author": "Bo", "year": 2},
        {"names": ["Bo", "Ann"], "author": "Cy", "year": None},
    ]
    whole = {"names": ["Ann", "Bo"], "author": "Bo", "year": 1}
    join = extract().join
    assert join is not None and join.cells(parts) == whole
    in_column = extract(column="found").join
    assert in_column is not None
    assert in_column.cells([{"found": part} for part in parts]) == {"found": whole}


def test_rows_with_places_are_not_joined() -> None:
    """An offset in a part of the text is none in the text, so there is no join."""
    assert extract(locate=LOCATE).join is None
