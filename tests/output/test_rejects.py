"""Rejects: which rows are meant, what is shown of them, and what an export holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import refusal
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.output.output import Opened, open_output
from tokenmill.output.rejects import Selection, example, export_rows, rejected_rows
from tokenmill.storage.local import LocalStore

EMPTY, LONG, FAILED = "empty_input", "prompt_too_long", "engine_error"
CORPUS = {
    "a.parquet": ["one", "", "x" * 9000, "four", "five", "six"],
    "b/c.parquet": ["", None, "nine", "ten"],
    "d.parquet": ["eleven", "twelve"],
}
ENGINE = {"max_model_len": 200, "error_rate": 0.3}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """An output with rejects of three classes and cut answers."""
    return output_of(tmp_path_factory.mktemp("rejects"))


def output_of(folder: Path, **changes: Any) -> Opened:
    corpus = write_corpus(folder / "corpus", CORPUS)
    model = {"source": "fake", "engine": ENGINE}
    keys = job_over(corpus, folder / "out", model=model, sampling={"max_tokens": 6}, **changes)
    drive(Job.model_validate(keys), LocalStore(str(folder / "out")))
    return open_output(LocalStore(str(folder / "out")))


def all_rows(opened: Opened) -> list[dict[str, Any]]:
    return pq.read_table(Path(opened.store.url, "data")).to_pylist()


def places(rows: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(row["source_file"], row["source_row"]) for row in rows}


def selected(opened: Opened, selection: Selection) -> list[dict[str, Any]]:
    """The selected rows, each found in the unit that it is of."""
    rows = []
    for unit, table in rejected_rows(opened, selection):
        assert table.num_rows
        for row in table.to_pylist():
            assert row["source_file"] == unit.shard
            assert unit.first_row <= row["source_row"] < unit.end_row
            rows.append(row)
    return rows


def class_of(row: Mapping[str, Any]) -> str | None:
    return None if row["error"] is None else str(row["error"]["class"])


@pytest.mark.parametrize(
    "classes",
    [None, {EMPTY}, {LONG}, {FAILED}, {EMPTY, LONG}, {EMPTY, "timeout"}],
    ids=lambda classes: "all" if classes is None else "+".join(sorted(classes)),
)
def test_rejects_are_chosen_by_class(opened: Opened, classes: set[str] | None) -> None:
    """Just the rejected rows of the classes come, or those of all, each once and as they stand."""
    wanted = [
        row
        for row in all_rows(opened)
        if class_of(row) is not None and (classes is None or class_of(row) in classes)
    ]
    assert wanted
    found = selected(opened, Selection(None if classes is None else frozenset(classes)))
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_classes_that_are_not_there_choose_nothing(opened: Opened) -> None:
    """A class without rows has no units either."""
    assert list(rejected_rows(opened, Selection(frozenset({"timeout"})))) == []


def test_truncated_answers_are_chosen_beside_rejects(opened: Opened) -> None:
    """With `truncated` also answers that ended at their longest length, and no whole ones."""
    rows = all_rows(opened)
    cut = [row for row in rows if row["finish_reason"] == "length"]
    whole = [row for row in rows if row["finish_reason"] == "stop"]
    assert cut and whole
    found = selected(opened, Selection(frozenset({EMPTY}), truncated=True))
    empty = [row for row in rows if class_of(row) == EMPTY]
    assert places(found) == places(cut) | places(empty)
    assert len(found) == len(cut) + len(empty)


TWO_TASKS = [
    {"kind": "generate", "name": "short", "sampling": {"max_tokens": 1}},
    {"kind": "generate", "name": "long", "sampling": {"max_tokens": 500}},
    {"kind": "generate", "name": "cut", "sampling": {"max_tokens": 4}},
]


def test_a_row_is_truncated_if_any_of_its_answers_is(tmp_path: Path) -> None:
    """Of several tasks' finish reasons one at the limit is enough; nulls are none."""
    opened = output_of(tmp_path, tasks=TWO_TASKS)
    rows = all_rows(opened)
    reasons = ("short_finish_reason", "long_finish_reason", "cut_finish_reason")
    cut = [row for row in rows if "length" in [row[name] for name in reasons]]
    # Rows that differ in which of the tasks it was, and rows in which it was none.
    assert len({tuple(row[name] for name in reasons) for row in cut}) > 1
    nothing = Selection(frozenset({"timeout"}), truncated=True)
    assert places(selected(opened, nothing)) == places(cut)
    assert len(cut) < len(rows)


def test_a_task_without_a_finish_reason_has_no_truncated_rows(tmp_path: Path) -> None:
    """To ask for what cannot be told is the user's mistake, named by its option."""
    task = {"kind": "embed", "prompt": {"text": "{{ text }}"}}
    corpus = write_corpus(tmp_path / "corpus", CORPUS)
    keys = job_over(corpus, tmp_path / "out", task=task)
    del keys["prompt"], keys["sampling"]
    drive(Job.model_validate(keys), LocalStore(str(tmp_path / "out")))
    opened = open_output(LocalStore(str(tmp_path / "out")))
    chosen = Selection(truncated=True)
    assert "--truncated" in refusal(UserError, lambda: list(rejected_rows(opened, chosen)))


def test_units_that_are_not_committed_are_left_out(tmp_path: Path) -> None:
    """An output of which a part is missing shows the rejects of what is there."""
    opened = output_of(tmp_path)
    before = selected(opened, Selection())
    (tmp_path / "out" / opened.plan.units[0].key).unlink()
    found = selected(opened, Selection())
    lost = opened.plan.units[0]
    assert places(found) == {
        (shard, row)
        for shard, row in places(before)
        if shard != lost.shard or not lost.first_row <= row < lost.end_row
    }


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    """An object that is not ours is neither read nor written over."""
    opened = output_of(tmp_path)
    broken = tmp_path / "out" / opened.plan.units[0].key
    broken.write_bytes(b"something else")
    assert str(broken) in refusal(UserError, lambda: selected(opened, Selection()))
    assert broken.read_bytes() == b"something else"


def test_an_example_says_where_and_why(opened: Opened) -> None:
    """One row of a class in a unit's object, in words; None where there is none."""
    key = next(unit.key for unit in opened.plan.units if unit.shard == "b/c.parquet")
    told = example(opened.store, key, EMPTY)
    assert told is not None and told.startswith("b/c.parquet row 0: ")
    assert example(opened.store, key, "timeout") is None


# Export.


def test_an_export_holds_the_rows_whole(opened: Opened, tmp_path: Path) -> None:
    """As Parquet it has the output's columns and types, as JSON lines one row a line."""
    tables = [table for _, table in rejected_rows(opened, Selection())]
    rows = pa.concat_tables(tables)
    export_rows(tables, tmp_path / "rejects.parquet")
    written = pq.read_table(tmp_path / "rejects.parquet")
    assert written.equals(rows)
    assert written.schema.equals(rows.schema)
    export_rows(tables, tmp_path / "rejects.jsonl")
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows.to_pylist()


def test_what_json_has_no_word_for_is_written_as_text(tmp_path: Path) -> None:
    """Times are ISO 8601 and bytes base64, as `export` writes them; texts keep their letters."""
    stamp = pa.scalar(1_700_000_000, pa.timestamp("s", "UTC"))
    rows = pa.table({"at": [stamp.as_py()], "raw": [b"\x00\xff"], "text": ["Grüße, 漢字"]})
    export_rows([rows], tmp_path / "rejects.jsonl")
    text = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8")
    row = json.loads(text)
    assert (row["at"], row["raw"]) == ("2023-11-14T22:13:20.000000Z", "AP8=")
    assert "Grüße, 漢字" in text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("rejects.csv", ".parquet or .jsonl"),
        ("rejects", ".parquet or .jsonl"),
        ("no/such/folder/rejects.jsonl", "No such file"),
        ("no/such/folder/rejects.parquet", "No such file"),
    ],
)
def test_a_target_that_cannot_be_is_the_users_mistake(
    opened: Opened, tmp_path: Path, name: str, part: str
) -> None:
    """A suffix that says no format, or a folder that is not there, is named with the option."""
    tables = [table for _, table in rejected_rows(opened, Selection())]
    message = refusal(UserError, lambda: export_rows(tables, tmp_path / name))
    assert message.startswith(f"--export {tmp_path / name}")
    assert part in message


def test_nothing_cannot_be_exported(tmp_path: Path) -> None:
    """Without rejects no file is written."""
    target = tmp_path / "rejects.parquet"
    assert "no rejects" in refusal(UserError, lambda: export_rows([], target))
    assert not target.exists()
