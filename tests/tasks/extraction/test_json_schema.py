"""JSON schemas as Arrow types, and answers as cells of those types."""

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
    """A schema, its expected type, and pairs of a JSON value and the expected Arrow value."""

    schema: dict[str, Any]
    type: pa.DataType
    values: Pairs


def same(values: st.SearchStrategy[Any]) -> Pairs:
    return values.map(lambda value: (value, value))


def timestamps() -> Pairs:
    """Pairs of an RFC 3339 timestamp in any time zone and the same time in UTC."""
    zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    first, last = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001 - the zone is drawn
    times = st.datetimes(first, last, timezones=zones)
    return times.map(lambda time: (time.isoformat(), time.astimezone(UTC)))


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
            Case(
                {"type": "string", "format": "date-time"}, pa.timestamp("us", "UTC"), timestamps()
            ),
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
    """The case in a form that also allows null, or wrapped in a form that changes nothing."""
    values = case.values | st.just((None, None))
    forms = [
        Case({"allOf": [case.schema], "title": "same"}, case.type, case.values),
        Case({"anyOf": [case.schema, {"type": "null"}]}, case.type, values),
    ]
    if isinstance(case.schema.get("type"), str):
        with_null = {**case.schema, "type": [case.schema["type"], "null"]}
        forms.append(Case(with_null, case.type, values))
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
            is_present = name in required or draw(st.booleans())
            written, cells[name] = draw(case.values if is_present else absent)
            if is_present:
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
    """Valid JSON, written to Parquet and read back, has the expected type and values."""
    case = data.draw(objects(CASES))
    value, cells = data.draw(case.values)
    typed = read_object_schema(case.schema)
    assert typed.type == case.type
    answer = AnswerReader(typed).read(json.dumps(value, ensure_ascii=data.draw(st.booleans())))
    table = pa.table({"answer": pa.array([answer, None], typed.type)})
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).column("answer").to_pylist() == [cells, None]


@settings(max_examples=100, deadline=None)
@given(objects(CASES))
def test_reading_a_schema_is_idempotent(case: Case) -> None:
    """Reading a schema that was read before changes neither its text nor its type."""
    typed = read_object_schema(case.schema)
    reread = read_object_schema(typed.schema)
    assert json.dumps(reread.schema) == json.dumps(typed.schema)
    assert reread.type == typed.type


@settings(max_examples=100, deadline=None)
@given(objects(CASES))
def test_the_fake_engine_writes_a_valid_answer(case: Case) -> None:
    """For a request with a schema, the fake engine generates a small valid instance."""
    typed = read_object_schema(case.schema)
    engine = FakeEngine(FakeSettings())
    sampling = Sampling({"max_tokens": None, "structured_outputs": {"json": typed.schema}})
    engine.add(0, Request([1], sampling))
    completions: list[Completion] = []
    while not completions:
        completions += engine.step()
    assert completions[0].finish_reason == "stop"
    AnswerReader(typed).read(completions[0].text)


def test_max_tokens_truncates_the_answer_of_the_fake_engine() -> None:
    """As with a model, JSON longer than max_tokens ends with finish reason `length`."""
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
def test_any_answer_gives_cells_or_a_value_error(text: str) -> None:
    """For any text, the reader returns cells that Arrow accepts or raises `ValueError`."""
    typed = read_object_schema(NESTED)
    try:
        cells = AnswerReader(typed).read(text)
    except ValueError as error:
        # The message must be valid in the error column.
        pa.array([str(error)], pa.string())
    else:
        assert pa.array([cells], typed.type).to_pylist()[0].keys() == NESTED["properties"].keys()


def reader(**properties: Any) -> AnswerReader:
    return AnswerReader(read_object_schema({"type": "object", "properties": properties}))


@pytest.mark.parametrize(
    ("schema", "answer", "reason"),
    [
        ({"type": "integer"}, "9223372036854775808", "a: the number does not fit in 64 bits"),
        ({"type": "integer"}, "-9223372036854775809", "does not fit in 64 bits"),
        ({"type": "integer"}, "9" * 5000, "is not of type 'integer'"),
        ({"type": "integer"}, "1.5", "a: 1.5 is not of type 'integer'"),
        ({"type": "integer", "multipleOf": 0.1}, "9" * 310, "is not of type 'integer'"),
        ({"type": "integer", "multipleOf": 0.1}, "9" * 300, "does not fit in 64 bits"),
        ({"type": "number"}, "1e999", "the number is too large"),
        ({"type": "number", "multipleOf": 0.5}, "1e999", "a number is too large"),
        ({"type": "number"}, "NaN", "NaN is not a JSON number"),
        ({"type": "number"}, "-Infinity", "-Infinity is not a JSON number"),
        ({"type": "number"}, '"1"', "a: '1' is not of type 'number'"),
        ({"type": "number"}, "true", "True is not of type 'number'"),
        ({"type": "string", "format": "date"}, '"2024-02-30"', "a: '2024-02-30' is not a 'date'"),
        ({"type": "string", "format": "date"}, '"20240228"', "20240228"),
        ({"type": "string", "format": "date-time"}, '"2024-02-30T10:00:00Z"', "out of range"),
        ({"type": "string", "format": "date-time"}, '"2024-02-28T10:00:00"', "with a time zone"),
        ({"type": "string", "format": "date-time"}, '"2024-02-28"', "with a time zone"),
        (
            {"type": "string", "format": "date-time"},
            '"0001-01-01T00:00:00+10:00"',
            "date value out",
        ),
        ({"type": "string"}, '"\\ud800"', "a: the string contains a lone surrogate"),
        ({"type": "string"}, "null", "None is not of type 'string'"),
        ({"enum": ["x", "y"]}, '"z"', "a: 'z' is not one of ['x', 'y']"),
        ({"type": "array", "items": {"type": "integer"}}, '[1, "x"]', "a.1: 'x' is not of type"),
        ({"type": "array", "items": {"type": "integer"}}, "[" * 9000, "nested too deeply"),
        ({"type": "string"}, '"x", "a": "y"', "the property 'a' occurs twice"),
        ({"type": "string"}, '"x", "b": 1', "Additional properties are not allowed"),
        ({"type": "string"}, '"cut', "the answer is not JSON: Unterminated string"),
    ],
)
def test_a_value_that_the_column_cannot_hold_is_an_error(
    schema: Mapping[str, Any], answer: str, reason: str
) -> None:
    """Numbers beyond 64 bits, NaN, impossible dates and wrong types give short error messages."""
    with pytest.raises(ValueError, match=r".") as caught:
        reader(a=schema).read(f'{{"a": {answer}}}')
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_required_property_must_be_present() -> None:
    """An absent optional property is null; an absent required property is an error."""
    properties = {"a": {"type": "string"}, "b": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["a"]}
    answers = AnswerReader(read_object_schema(schema))
    assert answers.read('{"a": "x"}') == {"a": "x", "b": None}
    with pytest.raises(ValueError, match="'a' is a required property"):
        answers.read('{"b": 1}')


PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}


def test_references_are_expanded_and_objects_closed() -> None:
    """References and annotations are removed, and no object allows additional properties."""
    typed = read_object_schema(
        {
            "type": "object",
            "title": "A letter",
            "properties": {
                "from": {"$ref": "#/$defs/per~1son", "description": "the sender"},
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
    """Columns have the order of the schema, not that of the answer."""
    answers = reader(b={"type": "string"}, a={"type": "string"})
    assert list(answers.read('{"a": "1", "b": "2"}')) == ["b", "a"]


RECURSIVE = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}


def wide(levels: int) -> dict[str, Any]:
    """A schema that doubles at each level when its references are expanded."""
    nodes = [
        {
            "type": "object",
            "properties": {
                "a": {"$ref": f"#/$defs/d{level + 1}"},
                "b": {"$ref": f"#/$defs/d{level + 1}"},
            },
        }
        for level in range(levels)
    ]
    definitions = {f"d{level}": node for level, node in enumerate(nodes)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "properties.a: type is missing; add one"),
        ({"type": "null"}, "properties.a: type allows only null"),
        ({"anyOf": [{"type": "null"}]}, "properties.a: anyOf allows only null"),
        (True, "properties.a: the schema True has no type"),
        ({"type": "strin"}, "properties.a.type: 'strin' is not valid"),
        ({"type": ["string", "integer"]}, "string and integer; a column has one type"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "anyOf mixes string and int64"),
        (
            {"oneOf": [PERSON, {"type": "object", "properties": {"b": {"type": "string"}}}]},
            "properties.a: oneOf mixes struct<name: string> and struct<b: string>",
        ),
        ({"allOf": [PERSON, PERSON]}, "properties.a: allOf has several"),
        ({"anyOf": [PERSON], "type": "object"}, "type next to anyOf"),
        ({"$ref": "#/$defs/p", "minLength": 3}, "minLength next to $ref"),
        ({"$ref": "#/$defs/missing"}, "$ref #/$defs/missing: not found in the schema"),
        ({"$ref": "other.json#/x"}, "only references inside the schema"),
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
        ({**PERSON, "required": ["nam"]}, "required: nam is not one of the properties"),
        ({**PERSON, "additionalProperties": True}, "additionalProperties: columns need names"),
        ({"type": "string", "nullable": True}, 'write type: [string, "null"]'),
        ({"type": "string", "minlength": 3}, "properties.a: minlength: not supported"),
        ({"type": "string", "pattern": "("}, "properties.a.pattern: '(' is not a 'regex'"),
        ({"enum": ["a", 1]}, "values mix integer and string"),
        ({"enum": [{}]}, "must be strings, numbers or booleans"),
        (
            {"type": "string", "enum": [True, "maybe"]},
            "type is string, but a value has type boolean",
        ),
        ({"enum": [2**63]}, "does not fit in 64 bits"),
        ({"type": "string", "format": "date", "const": "tomorrow"}, "is not a date"),
        ({"const": date(2024, 1, 1)}, "is not a JSON value; put quotes around it"),
        ({"const": math.nan}, "nan is not a JSON number"),
        (
            {"type": "object", "properties": {True: {"type": "string"}}},
            "the key True is not a string",
        ),
    ],
)
def test_an_unsupported_schema_is_an_error_that_names_the_path(node: Any, reason: str) -> None:
    """The error says what is not supported, and where in the schema."""
    with pytest.raises(ValueError, match=r".") as caught:
        read_object_schema({"type": "object", "properties": {"a": node}, "$defs": {"p": PERSON}})
    assert reason in str(caught.value)
    assert "a" in str(caught.value).split(":")[0] or reason.startswith("only")


def test_a_recursive_definition_is_an_error_at_its_reference() -> None:
    """The path is that of the reference that closes the cycle."""
    with pytest.raises(ValueError, match=r"^\$defs.node.properties.child: \$ref .* is recursive"):
        read_object_schema({"$ref": "#/$defs/node", "$defs": {"node": RECURSIVE}})


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "array", "items": PERSON}])
def test_an_answer_must_be_an_object(schema: dict[str, Any]) -> None:
    """The columns are the properties of an object, so no other type is allowed at the root."""
    with pytest.raises(ValueError, match="type: must be object"):
        read_object_schema(schema)


def test_a_schema_that_expands_too_far_is_rejected() -> None:
    """References that double at each level are an error and do not exhaust the memory."""
    with pytest.raises(ValueError, match="more than 10,000 parts"):
        read_object_schema(wide(40))


def test_a_schema_nested_too_deeply_is_rejected() -> None:
    """A schema that exceeds the recursion limit of Python is a `ValueError`."""
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="nested too deeply"):
        read_object_schema({"type": "object", "properties": {"a": deep}})
