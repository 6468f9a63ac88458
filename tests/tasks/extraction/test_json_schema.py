"""JSON schemas as Arrow types, and answers as cells of them."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.request import Completion, Request, Sampling
from tokenmill.tasks.extraction.json_schema import AnswerReader, read_object_schema

Pairs = st.SearchStrategy[tuple[Any, Any]]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@dataclass(frozen=True)
class Case:
    """A schema, the type that it should have, and its values: as JSON and as Arrow gives them."""

    schema: dict[str, Any]
    type: pa.DataType
    values: Pairs


def same(values: st.SearchStrategy[Any]) -> Pairs:
    return values.map(lambda value: (value, value))


def instants() -> Pairs:
    """Moments as RFC 3339 writes them, in any zone, and as UTC."""
    zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    first, last = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001 - the zone is drawn
    moments = st.datetimes(first, last, timezones=zones)
    return moments.map(lambda moment: (moment.isoformat(), moment.astimezone(UTC)))


SCALARS = st.one_of(
    st.sampled_from(
        [
            Case({"type": "string"}, pa.string(), same(TEXTS)),
            Case({"type": "string", "maxLength": 3}, pa.string(), same(TEXTS.map(lambda s: s[:3]))),
            Case({"type": "integer"}, pa.int64(), same(st.integers(-(2**63), 2**63 - 1))),
            Case({"type": "integer", "minimum": 3}, pa.int64(), same(st.integers(3, 9))),
            Case(
                {"type": "integer"}, pa.int64(), st.integers(-99, 99).map(lambda n: (float(n), n))
            ),
            Case(
                {"type": "number"},
                pa.float64(),
                same(st.floats(allow_nan=False, allow_infinity=False)),
            ),
            Case(
                {"type": "number"}, pa.float64(), st.integers(-99, 99).map(lambda n: (n, float(n)))
            ),
            Case({"type": "boolean"}, pa.bool_(), same(st.booleans())),
            Case(
                {"type": "string", "format": "date"},
                pa.date32(),
                st.dates().map(lambda day: (day.isoformat(), day)),
            ),
            Case({"type": "string", "format": "date-time"}, pa.timestamp("us", "UTC"), instants()),
            Case({"type": "string", "format": "uuid"}, pa.string(), same(st.uuids().map(str))),
            Case({"enum": ["a", "b"]}, pa.string(), same(st.sampled_from(["a", "b"]))),
            Case({"enum": ["a", None]}, pa.string(), same(st.sampled_from(["a", None]))),
            Case({"enum": [1, 2]}, pa.int64(), same(st.sampled_from([1, 2]))),
            Case({"const": 1.5}, pa.float64(), same(st.just(1.5))),
            Case({"const": True}, pa.bool_(), same(st.just(True))),
        ]
    )
)


def nullable(case: Case) -> st.SearchStrategy[Case]:
    """The case in a form that takes null too, or wrapped in one that changes nothing."""
    values = case.values | st.just((None, None))
    forms = [
        Case({"allOf": [case.schema], "title": "same"}, case.type, case.values),
        Case({"anyOf": [case.schema, {"type": "null"}]}, case.type, values),
    ]
    if isinstance(case.schema.get("type"), str):
        both = {**case.schema, "type": [case.schema["type"], "null"]}
        forms.append(Case(both, case.type, values))
        forms.append(Case({"oneOf": [{"type": "null"}, case.schema]}, case.type, values))
    return st.sampled_from(forms)


def lists(case: Case) -> Case:
    def transposed(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
        return [value for value, _ in pairs], [cell for _, cell in pairs]

    values = st.lists(case.values, max_size=3).map(transposed)
    return Case({"type": "array", "items": case.schema}, pa.list_(case.type), values)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    cases = draw(st.dictionaries(NAMES, inner, min_size=1, max_size=3))
    required = draw(st.sets(st.sampled_from(sorted(cases))))
    absent = st.just((None, None))

    @st.composite
    def values(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
        value, cells = {}, {}
        for name, case in cases.items():
            there = name in required or draw(st.booleans())
            written, cells[name] = draw(case.values if there else absent)
            if there:
                value[name] = written
        return value, cells

    schema = {
        "type": "object",
        "properties": {name: case.schema for name, case in cases.items()},
        "required": sorted(required),
    }
    fields = [pa.field(name, case.type) for name, case in cases.items()]
    return Case(schema, pa.struct(fields), values())


CASES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(inner.flatmap(nullable), inner.map(lists), objects(inner)),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_supported_schema_round_trips_to_arrow(data: st.DataObject) -> None:
    """Valid JSON comes back from a Parquet file as the values it means, of the schema's type."""
    case = data.draw(objects(CASES))
    value, cells = data.draw(case.values)
    typed = read_object_schema(case.schema)
    assert typed.type == case.type
    found = AnswerReader(typed).read(json.dumps(value, ensure_ascii=data.draw(st.booleans())))
    table = pa.table({"answer": pa.array([found, None], typed.type)})
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).column("answer").to_pylist() == [cells, None]


@settings(max_examples=100, deadline=None)
@given(objects(CASES))
def test_what_is_read_once_is_read_the_same_again(case: Case) -> None:
    """A stored job's schema has the same text and type as the one that the user wrote."""
    typed = read_object_schema(case.schema)
    again = read_object_schema(typed.schema)
    assert json.dumps(again.schema) == json.dumps(typed.schema)
    assert again.type == typed.type


@settings(max_examples=100, deadline=None)
@given(objects(CASES))
def test_the_fake_engine_writes_a_valid_answer(case: Case) -> None:
    """Asked for JSON by a schema, the engine without a model writes a small valid instance."""
    typed = read_object_schema(case.schema)
    engine = FakeEngine(FakeSettings())
    sampling = Sampling({"max_tokens": None, "structured_outputs": {"json": typed.schema}})
    engine.add(0, Request([1], sampling))
    completions: list[Completion] = []
    while not completions:
        completions += engine.step()
    assert completions[0].finish_reason == "stop"
    AnswerReader(typed).read(completions[0].text)


def test_the_fake_engines_answer_is_cut_off_by_max_tokens() -> None:
    """As with a model, JSON that does not fit into max_tokens ends with reason `length`."""
    schema = {"type": "object", "properties": {"a": {"const": "long"}}, "required": ["a"]}
    engine = FakeEngine(FakeSettings())
    sampling = Sampling({"max_tokens": 1, "structured_outputs": {"json": schema}})
    engine.add(0, Request([1], sampling))
    (completion,) = engine.step()
    assert (completion.finish_reason, completion.text) == ("length", '{"a')


NESTED = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "multipleOf": 0.5},
        "share": {"type": "number"},
        "day": {"type": "string", "format": "date"},
        "moment": {"type": "string", "format": "date-time"},
        "people": {
            "type": "array",
            "items": {"type": "object", "properties": {"age": {"type": "integer"}}},
        },
    },
}
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(
        ["2024-02-30", "2024-12-01", "2024-12-01T10:00:00", "0001-01-01T00:00:00+10:00"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted([*NESTED["properties"], "age"])), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.text() | ANY_JSON.map(json.dumps))
def test_any_answer_is_cells_or_a_reason(text: str) -> None:
    """Whatever a model writes, reading gives what Arrow takes or a `ValueError`."""
    typed = read_object_schema(NESTED)
    try:
        cells = AnswerReader(typed).read(text)
    except ValueError as error:
        # As it will stand in the error column.
        pa.array([str(error)], pa.string())
    else:
        assert pa.array([cells], typed.type).to_pylist()[0].keys() == NESTED["properties"].keys()


def reader(**properties: Any) -> AnswerReader:
    return AnswerReader(read_object_schema({"type": "object", "properties": properties}))


@pytest.mark.parametrize(
    ("schema", "answer", "reason"),
    [
        ({"type": "integer"}, "9223372036854775808", "a: the number does not fit into 64 bits"),
        ({"type": "integer"}, "-9223372036854775809", "does not fit into 64 bits"),
        ({"type": "integer"}, "9" * 5000, "is not of type 'integer'"),
        ({"type": "integer"}, "1.5", "a: 1.5 is not of type 'integer'"),
        ({"type": "integer", "multipleOf": 0.1}, "9" * 310, "is not of type 'integer'"),
        ({"type": "integer", "multipleOf": 0.1}, "9" * 300, "does not fit into 64 bits"),
        ({"type": "number"}, "1e999", "the number is too large"),
        ({"type": "number", "multipleOf": 0.5}, "1e999", "a number is too large"),
        ({"type": "number"}, "NaN", "NaN is no number of JSON"),
        ({"type": "number"}, "-Infinity", "-Infinity is no number of JSON"),
        ({"type": "number"}, '"1"', "a: '1' is not of type 'number'"),
        ({"type": "number"}, "true", "True is not of type 'number'"),
        ({"type": "string", "format": "date"}, '"2024-02-30"', "a: '2024-02-30' is not a 'date'"),
        ({"type": "string", "format": "date"}, '"20240228"', "20240228"),
        ({"type": "string", "format": "date-time"}, '"2024-02-30T10:00:00Z"', "out of range"),
        ({"type": "string", "format": "date-time"}, '"2024-02-28T10:00:00"', "with zone"),
        ({"type": "string", "format": "date-time"}, '"2024-02-28"', "with zone"),
        (
            {"type": "string", "format": "date-time"},
            '"0001-01-01T00:00:00+10:00"',
            "date value out",
        ),
        ({"type": "string"}, '"\\ud800"', "a: the text holds a lone surrogate"),
        ({"type": "string"}, "null", "None is not of type 'string'"),
        ({"enum": ["x", "y"]}, '"z"', "a: 'z' is not one of ['x', 'y']"),
        ({"type": "array", "items": {"type": "integer"}}, '[1, "x"]', "a.1: 'x' is not of type"),
        ({"type": "array", "items": {"type": "integer"}}, "[" * 9000, "nested too deeply"),
        ({"type": "string"}, '"x", "a": "y"', "the property 'a' stands twice"),
        ({"type": "string"}, '"x", "b": 1', "Additional properties are not allowed"),
        ({"type": "string"}, '"cut', "the answer is not JSON: Unterminated string"),
    ],
)
def test_what_a_column_cannot_hold_is_a_reason_with_its_place(
    schema: Mapping[str, Any], answer: str, reason: str
) -> None:
    """Numbers beyond 64 bits, NaN, impossible dates and other types are errors of that answer."""
    with pytest.raises(ValueError, match=r".") as caught:
        reader(a=schema).read(f'{{"a": {answer}}}')
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_property_that_is_required_may_not_be_absent() -> None:
    """An absent optional property is null, an absent required one is an error."""
    schema = {"a": {"type": "string"}, "b": {"type": "integer"}}
    wanted = {"type": "object", "properties": schema, "required": ["a"]}
    answers = AnswerReader(read_object_schema(wanted))
    assert answers.read('{"a": "x"}') == {"a": "x", "b": None}
    with pytest.raises(ValueError, match="'a' is a required property"):
        answers.read('{"b": 1}')


PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}


def test_references_are_written_out_and_objects_closed() -> None:
    """References and annotations are gone, and no object takes other properties."""
    typed = read_object_schema(
        {
            "type": "object",
            "title": "A letter",
            "properties": {
                "from": {"$ref": "#/$defs/per~1son", "description": "who wrote"},
                "to": {"type": "array", "items": {"$ref": "#/$defs/per~1son"}},
            },
            "$defs": {"per/son": PERSON},
        }
    )
    person = {**PERSON, "additionalProperties": False}
    assert typed.schema == {
        "type": "object",
        "properties": {"from": person, "to": {"type": "array", "items": person}},
        "additionalProperties": False,
    }


def test_properties_keep_the_order_of_the_schema() -> None:
    """Columns stand as the schema lists them, not as the answer does."""
    answers = reader(b={"type": "string"}, a={"type": "string"})
    assert list(answers.read('{"a": "1", "b": "2"}')) == ["b", "a"]


RECURSIVE = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}


def wide(levels: int) -> dict[str, Any]:
    """A schema that doubles at each level as its references are written out."""
    pair = [
        {
            "type": "object",
            "properties": {
                "a": {"$ref": f"#/$defs/d{at + 1}"},
                "b": {"$ref": f"#/$defs/d{at + 1}"},
            },
        }
        for at in range(levels)
    ]
    definitions = {f"d{at}": node for at, node in enumerate(pair)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "properties.a: type is missing; say what it holds"),
        ({"type": "null"}, "properties.a: type: nothing but null"),
        ({"anyOf": [{"type": "null"}]}, "properties.a: anyOf: nothing but null"),
        (True, "properties.a: the schema True has no type"),
        ({"type": "strin"}, "properties.a.type: 'strin' is not valid"),
        ({"type": ["string", "integer"]}, "string and integer; a column has one type"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "anyOf of string and int64"),
        (
            {"oneOf": [PERSON, {"type": "object", "properties": {"b": {"type": "string"}}}]},
            "properties.a: oneOf of struct<name: string> and struct<b: string>",
        ),
        ({"allOf": [PERSON, PERSON]}, "properties.a: allOf of several"),
        ({"anyOf": [PERSON], "type": "object"}, "type beside anyOf"),
        ({"$ref": "#/$defs/p", "minLength": 3}, "minLength beside $ref"),
        ({"$ref": "#/$defs/nobody"}, "$ref #/$defs/nobody: the schema has no such part"),
        ({"$ref": "other.json#/x"}, "only references within the schema"),
        ({"$ref": "#"}, "properties.a: $ref # is recursive"),
        ({"$ref": "#/properties/a"}, "$ref #/properties/a is recursive"),
        ({"type": "array"}, "properties.a: items is missing"),
        ({"type": "array", "items": {}}, "properties.a.items: type is missing"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}]},
            "prefixItems: the items of a list",
        ),
        ({"type": "array", "items": [{"type": "string"}]}, "properties.a.items:"),
        ({"type": "object"}, "properties.a: properties: an object needs at least one"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "additionalProperties"),
        ({"type": "object", "patternProperties": {"x": PERSON}}, "patternProperties: columns need"),
        ({"type": "object", "properties": {"": {"type": "string"}}}, "a property needs a name"),
        ({**PERSON, "required": ["nam"]}, "required: nam is none of the properties"),
        ({**PERSON, "additionalProperties": True}, "additionalProperties: columns need names"),
        ({"type": "string", "nullable": True}, 'write type: [string, "null"]'),
        ({"type": "string", "minlength": 3}, "properties.a: minlength: not supported"),
        ({"type": "string", "pattern": "("}, "properties.a.pattern: '(' is not a 'regex'"),
        ({"enum": ["a", 1]}, "values of integer and string"),
        ({"enum": [{}]}, "an enum holds strings, numbers or truth values"),
        (
            {"type": "string", "enum": [True, "maybe"]},
            "a value of type boolean where type is string",
        ),
        ({"enum": [2**63]}, "does not fit into 64 bits"),
        ({"type": "string", "format": "date", "const": "tomorrow"}, "is no date"),
        ({"const": date(2024, 1, 1)}, "is no value of JSON; put quotes around it"),
        ({"const": math.nan}, "nan is no number of JSON"),
        ({"type": "object", "properties": {True: {"type": "string"}}}, "the key True is not text"),
    ],
)
def test_what_has_no_arrow_type_is_refused_with_its_place(node: Any, reason: str) -> None:
    """Each kind of schema that columns cannot hold is named, with where it stands."""
    with pytest.raises(ValueError, match=r".") as caught:
        read_object_schema({"type": "object", "properties": {"a": node}, "$defs": {"p": PERSON}})
    assert reason in str(caught.value)
    assert "a" in str(caught.value).split(":")[0] or reason.startswith("only")


def test_a_definition_that_holds_itself_is_refused_where_it_does() -> None:
    """The place is that of the reference which closes the circle."""
    with pytest.raises(ValueError, match=r"^\$defs.node.properties.child: \$ref .* is recursive"):
        read_object_schema({"$ref": "#/$defs/node", "$defs": {"node": RECURSIVE}})


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "array", "items": PERSON}])
def test_an_answer_is_an_object(schema: dict[str, Any]) -> None:
    """Columns are an object's properties, so another type at the top is refused."""
    with pytest.raises(ValueError, match="an answer is an object"):
        read_object_schema(schema)


def test_a_schema_that_grows_without_measure_is_refused() -> None:
    """References that double at each level end in an error, not in all the memory."""
    with pytest.raises(ValueError, match="more than 10,000 parts"):
        read_object_schema(wide(40))


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    """A schema deeper than Python's stack is an error like any other."""
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="nested too deeply"):
        read_object_schema({"type": "object", "properties": {"a": deep}})
