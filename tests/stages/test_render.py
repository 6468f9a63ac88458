"""Rendering a unit: every row has a prompt or a reject at its own position."""

import datetime as dt
from collections.abc import Sequence

import pyarrow as pa
import pytest
from helpers.factories import job, strings_of_bytes, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import Chat, Tokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.stages.render import Renderer
from tokenmill.tasks.generation.generate import Generate
from tokenmill.tasks.kinds import step_of
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import (
    NOTES_COLUMN,
    PROMPTS_COLUMN,
    RenderedRows,
    without_internal_columns,
)


class PickyTokenizer(FakeTokenizer):
    """A tokenizer whose chat template refuses chats that contain "no"."""

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        encoded = super().encode_chats(chats)
        refusal = Reject(RejectClass.CHAT_TEMPLATE_ERROR, "roles must alternate")
        return [
            refusal if any("no" in content for _, content in chat) else tokens
            for chat, tokens in zip(chats, encoded, strict=True)
        ]


def rendered(
    rows: pa.Table,
    prompt: dict[str, object] | None = None,
    keep: tuple[str, ...] = (),
    tokenizer: Tokenizer | None = None,
) -> pa.Table:
    """The rendered rows, with positions from 10; by default the prompt is `{{ text }}`."""
    positions = pa.array(range(10, 10 + rows.num_rows), pa.int64())
    rows = rows.append_column(pa.field(ROW_COLUMN, pa.int64(), nullable=False), positions)
    context = TaskContext(tokenizer or FakeTokenizer(), max_model_len=100)
    steps = job({"prompt": prompt or {"text": "{{ text }}"}}).steps
    table = Renderer(RowTasks(steps, context), keep).render(rows)
    assert table[ROW_COLUMN].equals(rows[ROW_COLUMN])
    return table


def entries(table: pa.Table) -> list[PreparedRow | Reject]:
    """The entry of each row, which has one task."""
    rows = RenderedRows(table)
    entries_by_row = [rows.entries(row) for row in range(len(rows))]
    assert all(len(row) == 1 for row in entries_by_row)
    return [entry for (entry,) in entries_by_row if entry is not None]


def reject(table: pa.Table, row: int) -> Reject:
    entry = entries(table)[row]
    assert isinstance(entry, Reject)
    return entry


def outcomes(table: pa.Table) -> list[str]:
    """For each row its prompt, or the class of its reject."""
    return [
        str(entry.reject_class) if isinstance(entry, Reject) else text_of(*entry.prompts)
        for entry in entries(table)
    ]


TEXTS = st.lists(st.none() | st.sampled_from(["", " ", "yes", "no", "é\U0001f600"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, chat=st.booleans(), pieces=st.integers(1, 4))
def test_every_row_has_its_prompt_or_reject_at_its_position(
    texts: list[str | None], *, chat: bool, pieces: int
) -> None:
    """This holds for answered rows and for rejects of the template and of the tokenizer."""
    rows = pa.table({"text": pa.array(texts, pa.string()), "id": range(len(texts))})
    chunks = [rows.slice(start, pieces) for start in range(0, len(texts), pieces)]
    table = rendered(
        pa.concat_tables([rows.slice(0, 0), *chunks]),
        {"user" if chat else "text": "{{ text }}"},
        keep=("id",),
        tokenizer=PickyTokenizer(),
    )
    expected = []
    for text in texts:
        if text is None or not text.strip():
            expected.append("empty_input")
        elif chat:
            expected.append("chat_template_error" if text == "no" else f"<|user|>\n{text}\n")
        else:
            expected.append(text)
    assert outcomes(table) == expected
    assert table["id"].to_pylist() == list(range(len(texts)))


def test_a_chat_has_its_messages_in_order() -> None:
    """The model's chat template gets the job's roles and contents in order."""
    prompt = {
        "messages": [
            {"role": "system", "content": "Be {{ how }}."},
            {"role": "user", "content": "{{ text }}"},
            {"role": "assistant", "content": "Sure"},
        ]
    }
    table = rendered(pa.table({"text": ["Hi"], "how": ["brief"]}), prompt)
    assert outcomes(table) == ["<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nSure\n"]


def test_a_chat_that_the_template_refuses_is_a_reject() -> None:
    """The message of the model's chat template becomes the row's message."""
    table = rendered(
        pa.table({"text": ["no", "yes"]}), {"user": "{{ text }}"}, tokenizer=PickyTokenizer()
    )
    refused, prepared = entries(table)
    assert refused == Reject(RejectClass.CHAT_TEMPLATE_ERROR, "roles must alternate", attempts=0)
    assert isinstance(prepared, PreparedRow)


@pytest.mark.parametrize(
    "broken", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x9f\x98"], ids=repr
)
def test_text_that_is_not_utf8_rejects_only_its_row(broken: bytes) -> None:
    """The reject names the column; other rows are prepared."""
    table = rendered(pa.table({"text": strings_of_bytes([b"good", broken, "é".encode()])}))
    assert outcomes(table) == ["good", "bad_text", "é"]
    assert "the column text holds text that is not UTF-8" in reject(table, 1).message


def test_nested_text_that_is_not_utf8_is_rejected() -> None:
    """A list with one invalid text rejects its row."""
    cells = strings_of_bytes([b"a", b"\xff", b"b"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), cells)
    assert outcomes(rendered(pa.table({"text": lists}))) == ["bad_text", "['b']"]


def test_a_lone_surrogate_is_rejected() -> None:
    """A prompt that is not valid Unicode would crash a tokenizer, so it is a reject."""
    prompt = {"text": "{{ '%c' | format(code) }}"}
    table = rendered(pa.table({"code": [0x41, 0xD800, 0x1F600]}), prompt)
    assert outcomes(table) == ["A", "bad_text", "\U0001f600"]
    assert "lone surrogate" in reject(table, 1).message


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.timestamp("us"), 2**62, "148108-07-06 14:00:27.387904"),
        (pa.timestamp("s", "UTC"), 253402300800, "10000-01-01 00:00:00+00:00"),
        (pa.timestamp("ms", "+05:30"), -62135596800001, "0000-12-31 23:59:59.999+00:00"),
        (pa.timestamp("us", "Nowhere/City"), 1, "1970-01-01 00:00:00.000001+00:00"),
        (pa.duration("s"), 2**62, "4611686018427387904 seconds"),
        (pa.date32(), 2**31 - 1, "5881580-07-11"),
        (pa.date64(), 253402300800000, "10000-01-01"),
    ],
    ids=str,
)
def test_a_value_that_python_cannot_hold_is_printed(
    kind: pa.DataType, value: int, text: str
) -> None:
    """A date beyond Python's calendar, or in an unknown time zone, is its text."""
    integer = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    rows = pa.table({"text": pa.array([None, value], integer).cast(kind)})
    table = rendered(rows, {"text": "{% if text %}{{ text }}{% endif %}."})
    assert outcomes(table) == [".", f"{text}."]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["café".encode(), b"\xff"]),
        pa.array(["café".encode(), b"\xff"], pa.large_binary()),
        pa.array(["café".encode(), b"\xff1234"], pa.binary(5)),
        pa.array(["café".encode(), b"\xff"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_bytes_are_texts(values: pa.Array) -> None:
    """Columns without the annotation of texts are decoded, also within lists and structs."""
    prompt = {"text": "{{ text }}{{ text | upper }}{{ text | length }}"}
    assert outcomes(rendered(pa.table({"text": values}), prompt)) == ["caféCAFÉ4", "bad_text"]
    rows = pa.table({"text": pa.array([{"a": [value]} for value in values.to_pylist()])})
    nested = rendered(rows, {"text": "{{ text.a[0] }}"})
    assert outcomes(nested) == ["café", "bad_text"]


VALUES = [
    (pa.array([5, None]), "5"),
    (pa.array([0.1, None]), "0.1"),
    (pa.array([True, None]), "True"),
    (pa.array(["x", None], pa.large_string()), "x"),
    (pa.array(["x", None], pa.string_view()), "x"),
    (pa.array(["x", None]).dictionary_encode(), "x"),
    (pa.array(["café".encode(), None]), "café"),
    (pa.array([dt.date(2024, 1, 2), None]), "2024-01-02"),
    (pa.array(["1.50", None]).cast(pa.decimal128(9, 2)), "1.50"),
    (pa.array([["a", None], None]), "['a', None]"),
    (pa.array([{"k": 1}, None]), "{'k': 1}"),
    (pa.array(["\u202e\u200d", None]), "\u202e\u200d"),
    (pa.nulls(2), "empty_input"),
]


@pytest.mark.parametrize(("values", "expected"), VALUES, ids=[str(v.type) for v, _ in VALUES])
def test_columns_of_any_type_can_be_in_a_prompt(values: pa.Array, expected: str) -> None:
    """A value is formatted as by `str`; null is empty input."""
    assert outcomes(rendered(pa.table({"text": values}))) == [expected, "empty_input"]


def test_kept_columns_are_unchanged() -> None:
    """They keep their types, nulls and bytes, in the order of `keep`; no others are kept."""
    rows = pa.table(
        {
            "text": ["a", None, "c"],
            "bytes": strings_of_bytes([b"\xff", b"", b"x"]),
            "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
            "nested": [[{"k": 1}], None, []],
            "time": pa.array([2**62, None, 0], pa.timestamp("us")),
            "dropped": [1, 2, 3],
        }
    )
    keep = ("time", "nested", "dictionary", "bytes", "text")
    table = rendered(rows, keep=keep)
    assert without_internal_columns(table).schema.names == [*keep, ROW_COLUMN]
    assert table.select(keep).equals(rows.select(keep))


@pytest.mark.parametrize("texts", [[], [None], [None] * 3], ids=["no rows", "one", "three"])
@pytest.mark.parametrize("form", ["text", "user"])
def test_a_unit_without_a_prompt_is_rendered(texts: list[None], form: str) -> None:
    """Without rows, or with rejects only, the columns have their usual types."""
    table = rendered(pa.table({"text": pa.array(texts, pa.string())}), {form: "{{ text }}"})
    assert outcomes(table) == ["empty_input"] * len(texts)
    assert table.schema.field(PROMPTS_COLUMN).type == pa.list_(pa.list_(pa.int32()))
    assert table.schema.field(NOTES_COLUMN).type == pa.string()


def several(*prompts: str) -> RowTasks:
    """Tasks named a, b, …, each with a text prompt."""
    steps = [
        step_of(Generate(name=name, prompt={"text": prompt}, sampling={"max_tokens": 5}))
        for name, prompt in zip("abc", prompts, strict=False)
    ]
    return RowTasks(steps, TaskContext(FakeTokenizer(), max_model_len=100))


def positioned(rows: pa.Table) -> pa.Table:
    """The rows with their positions, as the source reads them."""
    return rows.append_column(ROW_COLUMN, pa.array(range(rows.num_rows), pa.int64()))


def test_a_row_is_prepared_for_each_of_its_tasks() -> None:
    """Each task has an entry: a prompt, a reject, or None if it waits for another task."""
    tasks = several("A{{ x }}", "B{{ y }}", "C{{ a_generated_text }}{{ z }}")
    rows = positioned(pa.table({"x": ["1", "2"], "y": ["3", None], "z": ["4", "5"]}))
    unit = RenderedRows(Renderer(tasks, ()).render(rows))
    first, second = unit.entries(0), unit.entries(1)
    assert [text_of(*entry.prompts) for entry in first if isinstance(entry, PreparedRow)] == [
        "A1",
        "B3",
    ]
    assert first[2] is None and second[2] is None
    assert isinstance(second[0], PreparedRow)
    assert isinstance(second[1], Reject) and second[1].reject_class is RejectClass.EMPTY_INPUT
    assert [unit.late(row) for row in (0, 1)] == [{"z": "4"}, {"z": "5"}]


def test_an_unreadable_value_rejects_the_row_for_all_its_tasks() -> None:
    """Invalid UTF-8 is found before any task sees the row; other rows are prepared."""
    tasks = several("A{{ x }}", "B{{ y }}", "C{{ b_generated_text }}")
    broken = strings_of_bytes([b"good", b"\xff"])
    rows = positioned(pa.table({"x": ["1", "2"], "y": broken}))
    unit = RenderedRows(Renderer(tasks, ()).render(rows))
    assert [isinstance(entry, PreparedRow) for entry in unit.entries(0)] == [True, True, False]
    rejected = unit.entries(1)
    assert [isinstance(entry, Reject) and entry.reject_class for entry in rejected] == [
        RejectClass.BAD_TEXT
    ] * 3


# Whole chats.


def test_the_messages_in_a_row_are_its_prompt() -> None:
    """The row's list of roles and contents goes to the chat template unchanged."""
    chats = [
        [("system", "Be brief."), ("user", "One?"), ("assistant", "{{ text }}"), ("user", "Two?")],
        [("user", "")],
    ]
    column = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    table = rendered(pa.table({"messages": column}), {"chat": "messages"})
    prompts = [entry.prompts[0] for entry in entries(table) if isinstance(entry, PreparedRow)]
    assert prompts == FakeTokenizer().encode_chats(chats)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (None, RejectClass.EMPTY_INPUT),
        ([], RejectClass.EMPTY_INPUT),
        ([None], RejectClass.TEMPLATE_ERROR),
        ([{"role": "user", "content": None}], RejectClass.TEMPLATE_ERROR),
        ([{"role": None, "content": "x"}], RejectClass.TEMPLATE_ERROR),
    ],
)
def test_a_row_without_complete_messages_is_a_reject(cell: object, kind: RejectClass) -> None:
    """The reject names the column; other rows are prepared."""
    messages = [{"role": "user", "content": "x"}]
    table = rendered(pa.table({"m": [cell, messages]}), {"chat": "m"})
    assert reject(table, 0).reject_class is kind
    assert "the column m" in reject(table, 0).message
    assert isinstance(entries(table)[1], PreparedRow)


def test_a_text_is_not_a_list_of_messages() -> None:
    """A column of another type rejects its rows; letters are not taken for messages."""
    table = rendered(pa.table({"m": ["Hello"]}), {"chat": "m"})
    assert reject(table, 0).reject_class is RejectClass.TEMPLATE_ERROR
