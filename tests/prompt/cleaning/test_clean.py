"""Cleaning: each step makes its changes, counts them, and finds nothing a second time."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.output.schema import added_fields
from tokenmill.prompt.cleaning.clean import Clean, control, nfc, whitespace
from tokenmill.prompt.cleaning.html import html
from tokenmill.prompt.cleaning.pii import pii
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.run.run import check_job
from tokenmill.stages.render import Renderer
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import RenderedRows, without_internal_columns

Cleaner = Callable[[str], tuple[str, int]]

TEXTS = st.one_of(
    st.text(max_size=60),
    # Lone surrogates included, which must not break any step.
    st.text(st.characters(), max_size=20),
    st.lists(
        st.sampled_from(
            [
                *(
                    "<p>",
                    "</p>",
                    "<br>",
                    "&amp;",
                    "<!--",
                    "-->",
                    " ",
                    "\n",
                    "\t",
                    "\u00a0",
                    "a",
                    "@",
                ),
                *(".", "1", "+4", "::", "-", "\r", "\x1b[1m", "e\u0301", "<pre>", "DE89", "b.org"),
                "\ud800",
            ]
        ),
        max_size=30,
    ).map("".join),
)


def make_job(**changes: Any) -> Job:
    return Job.model_validate(
        {
            "name": "clean",
            "input": {"path": "in/*.parquet", "keep": ["text"]},
            "model": {"source": "fake"},
            "prompt": {"text": "{{ text }}"},
            "sampling": {"max_tokens": 10},
            "output": {"path": "out"},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("text", "cleaned", "count"),
    [
        ("plain", "plain", 0),
        ("cafe\u0301 cafe\u0301", "café café", 2),
        ("\u212b", "Å", 1),
        ("\u1112\u1161\u11ab", "한", 1),
        ("\u09c7\u09be", "\u09cb", 1),
    ],
)
def test_nfc_composes(text: str, cleaned: str, count: int) -> None:
    """Each composed character counts, whether with a mark or with a neighbor."""
    assert nfc(text) == (cleaned, count)


@pytest.mark.parametrize(
    ("text", "cleaned", "count"),
    [
        ("tab\tand\nnewline", "tab\tand\nnewline", 0),
        ("a\0b\x7f\x9f\ufeff", "ab", 4),
        ("red \x1b[1;31mdot\x1b[0m", "red dot", 2),
        ("one\r\ntwo\rthree\x85four", "one\ntwo\nthree\nfour", 3),
        ("🧑\u200d🚀", "🧑\u200d🚀", 0),
    ],
)
def test_control_characters_are_removed(text: str, cleaned: str, count: int) -> None:
    """Newlines, tabs and joiners of emoji remain; terminal colors are removed whole."""
    assert control(text) == (cleaned, count)


@pytest.mark.parametrize(
    ("text", "cleaned", "count"),
    [
        ("a b\n\nc\td", "a b\n\nc\td", 0),
        ("a  b \t c", "a b c", 2),
        ("a \nb\u00a0\n", "a\nb\n", 2),
        ("a\n \n\n\nb", "a\n\nb", 2),
        ("a\u3000\u3000b", "a b", 1),
    ],
)
def test_whitespace_is_normalized(text: str, cleaned: str, count: int) -> None:
    """Runs become one space, lines end without blanks, one blank line separates paragraphs."""
    assert whitespace(text) == (cleaned, count)


@pytest.mark.parametrize(
    ("text", "cleaned", "count"),
    [
        ("1 < 2 & 3 > 2\n\nis no markup", "1 < 2 & 3 > 2\n\nis no markup", 0),
        ("a &lt; b &amp;&#33;", "a < b &!", 3),
        ("<h1>Head</h1><p>One<br>two\nthree</p><p>four</p>", "Head\n\nOne\ntwo three\n\nfour", 7),
        ("<ul><li>a<li>b</ul>c", "a\nb\n\nc", 4),
        ("<table><tr><td>1<td>2<tr><td>3<td>4</table>", "1\t2\n3\t4", 8),
        ("x<script>alert('<p>')</script><style>p{}</style><!-- c -->y", "xy", 6),
        ("<title>t</title><p>a <b>bold</b> , <i>b</i>", "a bold , b", 7),
        ("<pre>if x:\n    y</pre>", "if x:\n    y", 2),
        ("<div><div>a</div></div> <div>b</div>", "a\nb", 6),
        ("&#xD800;<p", "\ufffd", 2),
    ],
)
def test_html_becomes_its_visible_text(text: str, cleaned: str, count: int) -> None:
    """Blocks keep their lines, scripts and styles are removed; plain text is not changed."""
    assert html(text) == (cleaned, count)


def test_html_may_be_nested_deeply() -> None:
    """A document may be as deep as it is long: there is no recursion."""
    assert html("<div>" * 5_000 + "x") == ("x", 5_000)


@pytest.mark.parametrize("step", [nfc, control, whitespace, pii], ids=lambda step: step.__name__)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_a_cleaned_text_is_not_changed_again(step: Cleaner, text: str) -> None:
    """A step finds nothing in a text that it has cleaned, and counts only if it changes one."""
    cleaned, count = step(text)
    assert (count > 0) == (cleaned != text)
    if step is not pii:
        assert step(cleaned) == (cleaned, 0)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_html_accepts_any_text(text: str) -> None:
    """Broken markup and lone surrogates are not errors; without markup nothing changes."""
    cleaned, count = html(text)
    if count == 0:
        assert cleaned == text


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_nfc_is_unicodes_own(text: str) -> None:
    """The result is the standard library's composed form."""
    assert nfc(text)[0] == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "unit",
    ["a", ".", "@", "0 1", "A1", ":", "<", "&", " ", "\n ", "\x1b[", "+1", "a@", "AB12 ", "0033 "],
)
def test_repetitive_texts_take_no_longer_than_others(unit: str) -> None:
    """Every step is linear in the length of a text; with quadratic time these take minutes."""
    for step in (nfc, control, whitespace, html, pii):
        step((unit * 100_000)[:200_000])


def test_steps_are_applied_in_order() -> None:
    """An address in markup is found once the markup is gone; counts are by step, 0 included."""
    text = "a&#64;b<b>.org</b>"
    row = {"text": text, "other": text, "number": 7}
    cleaned, counts = Clean(columns=("text", "number"), steps=("html", "pii", "nfc")).apply(row)
    assert cleaned == {"text": "[EMAIL]", "other": text, "number": 7}
    assert counts == {"html": 3, "pii": 1, "nfc": 0}
    cleaned, counts = Clean(columns=("text",), steps=("pii", "html")).apply(row)
    assert cleaned["text"] == "a@b.org" and counts == {"pii": 0, "html": 3}


def test_prompts_use_cleaned_texts_and_kept_columns_do_not() -> None:
    """Each row has its counts; a null value has no changes."""
    steps = {"columns": ["text"], "steps": ["control", "whitespace"]}
    job = make_job(
        clean=steps,
        prompt=None,
        tasks=[
            {"kind": "generate", "name": "a", "prompt": {"text": "{{ text }}"}},
            {
                "kind": "generate",
                "name": "b",
                "prompt": {"text": "{{ text }}{{ a_generated_text }}"},
            },
        ],
    )
    tasks = RowTasks(job.steps, TaskContext(FakeTokenizer(), 100))
    rows = pa.table({"text": ["a\0  b", None, "c"], ROW_COLUMN: pa.array([0, 1, 2], pa.int64())})
    table = Renderer(tasks, job.input.keep, job.clean).render(rows)
    kept = without_internal_columns(table)
    assert kept.column("text").to_pylist() == ["a\0  b", None, "c"]
    assert kept.column("cleaned").to_pylist() == [
        [("control", 1), ("whitespace", 1)],
        [("control", 0), ("whitespace", 0)],
        [("control", 0), ("whitespace", 0)],
    ]
    rendered = RenderedRows(table)
    entry = rendered.entries(0)[0]
    assert isinstance(entry, PreparedRow)
    assert [list(prompt) for prompt in entry.prompts] == FakeTokenizer().encode_texts(["a b"])
    assert rendered.late(0) == {"text": "a b"} and rendered.late(1) == {"text": None}
    assert added_fields(job)[-1] == pa.field("cleaned", pa.map_(pa.string(), pa.int32()))


def test_a_job_without_cleaning_has_no_column_for_it() -> None:
    """Neither in its schema nor in its rendered tables."""
    job = make_job()
    assert "cleaned" not in [field.name for field in added_fields(job)]
    rows = pa.table({"text": ["a"], ROW_COLUMN: pa.array([0], pa.int64())})
    tasks = RowTasks(job.steps, TaskContext(FakeTokenizer(), 100))
    assert "cleaned" not in Renderer(tasks, job.input.keep).render(rows).schema.names


def test_a_column_that_no_prompt_uses_cannot_be_cleaned() -> None:
    """It would change nothing; the error names the columns that are used."""
    with pytest.raises(UserError, match=r"clean.columns: no task reads body; tasks read text"):
        check_job(make_job(clean={"columns": ["body"], "steps": ["nfc"]}))


@pytest.mark.parametrize(
    "section",
    [
        {"columns": [], "steps": ["nfc"]},
        {"columns": ["text"], "steps": []},
        {"columns": ["text"], "steps": ["nfc", "nfc"]},
        {"columns": ["text"], "steps": ["lower"]},
    ],
)
def test_an_invalid_section_is_refused(section: dict[str, Any]) -> None:
    """No columns, no steps, a repeated step, or an unknown one."""
    with pytest.raises(ValidationError):
        make_job(clean=section)


def test_cleaning_is_part_of_the_fingerprint() -> None:
    """So is the order of the steps."""
    one, other = (
        make_job(clean={"columns": ["text"], "steps": steps})
        for steps in (["nfc", "html"], ["html", "nfc"])
    )
    assert len({one.fingerprint, other.fingerprint, make_job().fingerprint}) == 3
