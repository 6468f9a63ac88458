"""The output's columns: fixed by the job alone, and the input's columns unchanged."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from factories import completion, rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.schema import Answer, Completion, Reject, RejectClass
from pipeline.tasks import GENERATE_FIELDS, OUTPUT_NAMES, answer_rows, output_rows, output_schema

SHARD = "day=1/a.parquet"
REJECT = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)
NO_KEPT = pa.schema([])
ANSWER_TYPES = {
    "generated_text": pa.string(),
    "finish_reason": pa.string(),
    "num_input_tokens": pa.int32(),
    "num_generated_tokens": pa.int32(),
    "cumulative_logprob": pa.float64(),
    "mean_logprob": pa.float64(),
}
ANSWERS = st.one_of(
    st.builds(Reject, st.sampled_from(RejectClass), st.text(max_size=9), st.integers(0, 3)),
    st.builds(
        Completion,
        key=st.just(0),
        text=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        finish_reason=st.sampled_from(["stop", "length"]),
        num_input_tokens=st.integers(0, 2**31 - 1),
        num_generated_tokens=st.integers(0, 2**31 - 1),
        cumulative_logprob=st.none() | st.floats(-1e6, 0),
    ),
)


def with_columns(unit: pa.Table, kept: pa.Table) -> pa.Table:
    """A rendered unit with kept columns before its own."""
    for position, field in enumerate(kept.schema):
        unit = unit.add_column(position, field, kept.column(field.name))
    return unit


def output(answers: Sequence[Answer], kept: pa.Table | None = None) -> pa.Table:
    """What is stored of a unit with these answers and kept columns."""
    unit = rendered([[1]] * len(answers))
    if kept is not None:
        unit = with_columns(unit, kept)
    schema = output_schema(NO_KEPT if kept is None else kept.schema)
    return output_rows(answer_rows(unit, answers), SHARD, schema)


def only_row(answer: Answer) -> dict[str, Any]:
    (row,) = output([answer]).to_pylist()
    return dict(row)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [completion()] * 3,
        [REJECT] * 3,
        [completion(), REJECT],
        [completion(logprob=None)] * 2,
        [completion(text="", tokens=0)],
    ],
    ids=["no rows", "none fail", "all fail", "some fail", "no log-probabilities", "empty answers"],
)
def test_the_schema_does_not_follow_from_the_answers(answers: list[Answer]) -> None:
    """Every file of a job has the same columns and types, whatever became of its rows."""
    kept = pa.table({"id": pa.array(["x"] * len(answers), pa.large_string())})
    found = output(answers, kept).schema
    expected = [
        pa.field("id", pa.large_string()),
        *(pa.field(name, kind) for name, kind in ANSWER_TYPES.items()),
        pa.field(
            "error",
            pa.struct(
                [
                    pa.field("class", pa.string(), nullable=False),
                    pa.field("message", pa.string(), nullable=False),
                    pa.field("attempts", pa.int32(), nullable=False),
                ]
            ),
        ),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
    ]
    assert found.equals(pa.schema(expected), check_metadata=True)


def test_the_names_of_the_outputs_own_columns_are_reserved() -> None:
    """A kept column may have none of the names that the output gives to its own."""
    assert set(output_schema(NO_KEPT).names) == OUTPUT_NAMES
    assert {*ANSWER_TYPES, "error", "source_file", "source_row"} == OUTPUT_NAMES


@settings(max_examples=100, deadline=None)
@given(st.lists(ANSWERS, max_size=8))
def test_a_row_has_an_answer_or_an_error_in_its_own_place(answers: list[Answer]) -> None:
    """In = answered + rejected: each row has all of its answer, or none of it and an error."""
    rows = output(answers).to_pylist()
    assert [row["source_row"] for row in rows] == list(range(len(answers)))
    assert {row["source_file"] for row in rows} <= {SHARD}
    for row, answer in zip(rows, answers, strict=True):
        cells = [row[field.name] for field in GENERATE_FIELDS]
        if isinstance(answer, Reject):
            assert set(cells) == {None}
            assert row["error"] == {
                "class": answer.reject_class.value,
                "message": answer.message,
                "attempts": answer.attempts,
            }
        else:
            assert row["error"] is None
            assert cells[:5] == [
                answer.text,
                answer.finish_reason,
                answer.num_input_tokens,
                answer.num_generated_tokens,
                answer.cumulative_logprob,
            ]


@pytest.mark.parametrize(
    ("logprob", "tokens", "mean"),
    [(-6.0, 4, -1.5), (0.0, 4, 0.0), (None, 4, None), (0.0, 0, None), (None, 0, None)],
)
def test_the_mean_is_per_generated_token(
    logprob: float | None, tokens: int, mean: float | None
) -> None:
    """`mean_logprob` is the sum by the tokens; null without log-probabilities or without tokens."""
    row = only_row(completion(tokens=tokens, logprob=logprob))
    assert row["cumulative_logprob"] == logprob
    assert row["mean_logprob"] == mean


@pytest.mark.parametrize("reject_class", RejectClass)
def test_an_error_has_its_stable_class_name(reject_class: RejectClass) -> None:
    """The class is the enum's own value, as users filter on it."""
    error = only_row(Reject(reject_class, "why", attempts=2))["error"]
    assert error == {"class": str(reject_class), "message": "why", "attempts": 2}


KEPT = {
    "int": pa.array([1, None, 3], pa.int8()),
    "unsigned": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "float": pa.array([1.5, float("inf"), None], pa.float16()),
    "decimal": pa.array(["1.25", None, "9.00"]).cast(pa.decimal128(9, 2)),
    "large text": pa.array(["a", "", None], pa.large_string()),
    "text view": pa.array(["a", "", None], pa.string_view()),
    "bytes": pa.array([b"\xff", None, b""], pa.binary()),
    "fixed bytes": pa.array([b"ab", b"cd", None], pa.binary(2)),
    "time with zone": pa.array([0, 1, None], pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([0, 1, None], pa.duration("ms")),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "nulls": pa.nulls(3),
    "list": pa.array([[1, None], [], None], pa.list_(pa.int16())),
    "named list": pa.array([[1], [], None], pa.list_(pa.field("element", pa.int16()))),
    "large list": pa.array([["x"], [], None], pa.large_list(pa.string())),
    "fixed list": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, {"a": None, "b": None}, None]),
    "empty struct": pa.array([{}, None, {}], pa.struct([])),
    "list of struct": pa.array([[{"a": [1.5]}], [], [None]]),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "list of dictionary": pa.array(
        [["a"], [], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16))
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_column_is_unchanged(name: str) -> None:
    """Whatever its type, a kept column has its values, its type and its metadata in the output."""
    field = pa.field(name, KEPT[name].type, metadata={b"unit": b"mm"})
    kept = pa.table([KEPT[name]], pa.schema([field]))
    found = output([completion(), REJECT, completion()], kept)
    assert found.schema.field(name).equals(field, check_metadata=True)
    assert found.column(name).combine_chunks().equals(kept.column(name).combine_chunks())


def test_kept_columns_stand_first_in_the_jobs_order() -> None:
    """The columns follow `input.keep`; a column that may not be null stays so."""
    kept = pa.table(
        [pa.array([1]), pa.array(["x"])],
        pa.schema([pa.field("b", pa.int64(), nullable=False), pa.field("a", pa.string())]),
    )
    found = output([completion()], kept)
    assert found.schema.names[:3] == ["b", "a", "generated_text"]
    assert not found.schema.field("b").nullable


def test_source_rows_are_the_input_positions_of_what_the_filter_left() -> None:
    """Where `input.where` leaves rows out, the others keep their positions in the shard."""
    unit = rendered([[1]] * 10).filter(pa.array([row in (3, 7) for row in range(10)]))
    answered = answer_rows(unit, [REJECT, completion()])
    rows = output_rows(answered, SHARD, output_schema(NO_KEPT)).to_pylist()
    assert [(row["source_row"], row["error"] is None) for row in rows] == [(3, False), (7, True)]


def test_what_travels_in_the_metadata_is_not_stored() -> None:
    """Facts that a stage hangs onto an answered unit do not become a part of the schema."""
    answered = answer_rows(rendered([[1]]), [completion()]).replace_schema_metadata({b"a": b"b"})
    stored = output_rows(answered, SHARD, output_schema(NO_KEPT))
    assert stored.schema.metadata is None
