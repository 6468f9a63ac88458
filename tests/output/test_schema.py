"""The output's columns follow from the job alone, and kept columns are not changed."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from helpers.factories import completion, job, rendered, row_tasks, token_counts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.output.schema import output_rows, output_schema
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult
from tokenmill.tasks.task import Dialogue, PreparedRow
from tokenmill.tasks.unit_tables import answered_table

SHARD = "day=1/a.parquet"
REJECT = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)
NO_KEPT = pa.schema([])
TASKS = row_tasks()
TASK_TYPES = {
    "generated_text": pa.string(),
    "finish_reason": pa.string(),
    "cumulative_logprob": pa.float64(),
    "mean_logprob": pa.float64(),
}
COST_TYPES = {"num_input_tokens": pa.int32(), "num_generated_tokens": pa.int32()}
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


def result_of(answer: Answer) -> RowResult:
    """The result that the job's task derives from its request's answer."""
    dialogue: Dialogue[RowResult] = TASKS.answer([PreparedRow([[1]])], {})
    next(dialogue)
    with pytest.raises(StopIteration) as end:
        dialogue.send([answer])
    assert isinstance(end.value.value, RowResult)
    return end.value.value


def answered_row(answer: Answer) -> AnsweredRow:
    """A row whose only request got this answer."""
    if isinstance(answer, Reject):
        return AnsweredRow(result_of(answer))
    counts = token_counts(answer.num_input_tokens, answer.num_generated_tokens)
    return AnsweredRow(result_of(answer), counts)


def with_columns(unit: pa.Table, kept: pa.Table) -> pa.Table:
    """A rendered unit with kept columns before its other columns."""
    for position, field in enumerate(kept.schema):
        unit = unit.add_column(position, field, kept.column(field.name))
    return unit


def output(answers: Sequence[Answer], kept: pa.Table | None = None) -> pa.Table:
    """The output rows of a unit with these answers and kept columns."""
    unit = rendered([[1]] * len(answers))
    if kept is not None:
        unit = with_columns(unit, kept)
    schema = output_schema(job(), NO_KEPT if kept is None else kept.schema)
    return output_rows(answered_unit(unit, answers), SHARD, schema)


def answered_unit(unit: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    return answered_table(unit, [answered_row(answer) for answer in answers], TASKS.fields)


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
def test_the_schema_does_not_depend_on_the_answers(answers: list[Answer]) -> None:
    """Every file of a job has the same columns and types, whatever its rows hold."""
    kept = pa.table({"id": pa.array(["x"] * len(answers), pa.large_string())})
    schema = output(answers, kept).schema
    expected = [
        pa.field("id", pa.large_string()),
        *(pa.field(name, kind) for name, kind in (TASK_TYPES | COST_TYPES).items()),
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
    assert schema.equals(pa.schema(expected), check_metadata=True)


def test_the_columns_have_a_fixed_order() -> None:
    """Kept columns, answers, token counts, the error, and the row's source."""
    names = output_schema(job(), pa.schema([pa.field("id", pa.int8())])).names
    assert names == ["id", *TASK_TYPES, *COST_TYPES, "error", "source_file", "source_row"]


@settings(max_examples=100, deadline=None)
@given(st.lists(ANSWERS, max_size=8))
def test_each_row_has_either_an_answer_or_an_error(answers: list[Answer]) -> None:
    """Rows keep their order; each has all answer columns, or an error and none of them."""
    rows = output(answers).to_pylist()
    assert [row["source_row"] for row in rows] == list(range(len(answers)))
    assert {row["source_file"] for row in rows} <= {SHARD}
    for row, answer in zip(rows, answers, strict=True):
        cells = [row[name] for name in (*TASK_TYPES, *COST_TYPES)]
        if isinstance(answer, Reject):
            assert set(cells) == {None}
            assert row["error"] == {
                "class": answer.reject_class.value,
                "message": answer.message,
                "attempts": answer.attempts,
            }
        else:
            assert row["error"] is None
            del cells[3]
            assert cells == [
                answer.text,
                answer.finish_reason,
                answer.cumulative_logprob,
                answer.num_input_tokens,
                answer.num_generated_tokens,
            ]


@pytest.mark.parametrize(
    ("logprob", "tokens", "mean"),
    [(-6.0, 4, -1.5), (0.0, 4, 0.0), (None, 4, None), (0.0, 0, None), (None, 0, None)],
)
def test_the_mean_logprob_is_per_generated_token(
    logprob: float | None, tokens: int, mean: float | None
) -> None:
    """It is the sum divided by the tokens; null without log-probabilities or tokens."""
    row = only_row(completion(tokens=tokens, logprob=logprob))
    assert row["cumulative_logprob"] == logprob
    assert row["mean_logprob"] == mean


@pytest.mark.parametrize("reject_class", RejectClass)
def test_an_error_holds_the_class_name(reject_class: RejectClass) -> None:
    """The class is the enum's value, which users filter on."""
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
def test_a_kept_column_is_not_changed(name: str) -> None:
    """A kept column of any type keeps its values, type and metadata."""
    field = pa.field(name, KEPT[name].type, metadata={b"unit": b"mm"})
    kept = pa.table([KEPT[name]], pa.schema([field]))
    rows = output([completion(), REJECT, completion()], kept)
    assert rows.schema.field(name).equals(field, check_metadata=True)
    assert rows.column(name).combine_chunks().equals(kept.column(name).combine_chunks())


def test_kept_columns_come_first_in_the_jobs_order() -> None:
    """They follow `input.keep`; a column that is not nullable stays so."""
    kept = pa.table(
        [pa.array([1]), pa.array(["x"])],
        pa.schema([pa.field("b", pa.int64(), nullable=False), pa.field("a", pa.string())]),
    )
    rows = output([completion()], kept)
    assert rows.schema.names[:3] == ["b", "a", "generated_text"]
    assert not rows.schema.field("b").nullable


def test_source_rows_are_positions_in_the_input() -> None:
    """If `input.where` leaves rows out, the others keep their positions in the shard."""
    unit = rendered([[1]] * 10).filter(pa.array([row in (3, 7) for row in range(10)]))
    answered = answered_unit(unit, [REJECT, completion()])
    rows = output_rows(answered, SHARD, output_schema(job(), NO_KEPT)).to_pylist()
    assert [(row["source_row"], row["error"] is None) for row in rows] == [(3, False), (7, True)]


def test_notes_in_the_metadata_are_not_stored() -> None:
    """What a stage notes in the schema's metadata is not part of the output's schema."""
    answered = answered_unit(rendered([[1]]), [completion()])
    answered = answered.replace_schema_metadata({b"a": b"b"})
    stored = output_rows(answered, SHARD, output_schema(job(), NO_KEPT))
    assert stored.schema.metadata is None


def test_a_row_may_have_cells_and_an_error() -> None:
    """If one of several tasks fails, the cells of the others and the token counts are kept."""
    fields = [pa.field("a_label", pa.string()), pa.field("b_label", pa.string())]
    row = AnsweredRow(RowResult({"a_label": "x"}, REJECT), token_counts(12, 3))
    (cells,) = answered_table(rendered([[1]]), [row], fields).to_pylist()
    assert (cells["a_label"], cells["b_label"]) == ("x", None)
    assert (cells["num_input_tokens"], cells["num_generated_tokens"]) == (12, 3)
    assert cells["error"]["class"] == "engine_error"


UNSTORABLE = [
    ("\ud800", pa.string()),
    (["x", "\udfff"], pa.list_(pa.string())),
    (2**63, pa.int64()),
    (300, pa.int8()),
    ("five", pa.int64()),
    (5, pa.string()),
    ("x", pa.struct([pa.field("k", pa.string())])),
    ([1.0], pa.list_(pa.float32(), 2)),
]


@pytest.mark.parametrize(("cell", "kind"), UNSTORABLE, ids=ascii)
def test_an_answer_that_its_column_cannot_hold_is_rejected(cell: object, kind: pa.DataType) -> None:
    """Half a surrogate pair or too large a number rejects its row, not the whole unit."""
    fields = [pa.field("first", pa.int8()), pa.field("second", kind)]
    rows = [
        AnsweredRow(RowResult({"first": number, "second": second}, None), token_counts(5, 2))
        for number, second in enumerate([None, cell, None])
    ]
    cells = answered_table(rendered([[1]] * 3), rows, fields).to_pylist()
    assert [row["first"] for row in cells] == [0, None, 2]
    assert [row["second"] for row in cells] == [None] * 3
    assert [row["num_input_tokens"] for row in cells] == [5] * 3
    assert [row["error"] is None for row in cells] == [True, False, True]
    assert cells[1]["error"]["class"] == "task_error"
    assert "the column second cannot hold the answer: " in cells[1]["error"]["message"]
    assert "\n" not in cells[1]["error"]["message"]


def test_a_message_that_is_not_valid_unicode_is_escaped() -> None:
    """A message may quote a lone surrogate."""
    reject = Reject(RejectClass.TASK_ERROR, "no label is called \ud800 é")
    assert only_row(reject)["error"]["message"] == "no label is called \\ud800 é"
