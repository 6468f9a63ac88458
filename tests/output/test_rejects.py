"""Rejects: selecting rows, describing them and exporting them."""

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
from tokenmill.output.output import OpenedOutput, open_output
from tokenmill.output.rejects import Selection, example_reject, export_rows, rejected_rows
from tokenmill.storage.local import LocalStore

EMPTY, LONG, FAILED = "empty_input", "prompt_too_long", "engine_error"
CORPUS = {
    "a.parquet": ["one", "", "x" * 9000, "four", "five", "six"],
    "b/c.parquet": ["", None, "nine", "ten"],
    "d.parquet": ["eleven", "twelve"],
}
ENGINE = {"max_model_len": 200, "error_rate": 0.3}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedOutput:
    """An output with rejects of three classes and truncated answers."""
    return output_of(tmp_path_factory.mktemp("rejects"))


def output_of(folder: Path, **changes: Any) -> OpenedOutput:
    corpus = write_corpus(folder / "corpus", CORPUS)
    model = {"source": "fake", "engine": ENGINE}
    keys = job_over(corpus, folder / "out", model=model, sampling={"max_tokens": 6}, **changes)
    drive(Job.model_validate(keys), LocalStore(str(folder / "out")))
    return open_output(LocalStore(str(folder / "out")))


def all_rows(opened: OpenedOutput) -> list[dict[str, Any]]:
    return pq.read_table(Path(opened.store.url, "data")).to_pylist()


def sources(rows: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(row["source_file"], row["source_row"]) for row in rows}


def selected(opened: OpenedOutput, selection: Selection) -> list[dict[str, Any]]:
    """The selected rows, after checking that each belongs to its unit."""
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
def test_rejects_are_selected_by_class(opened: OpenedOutput, classes: set[str] | None) -> None:
    """Exactly the rejected rows of the classes, or of all classes, each once and unchanged."""
    expected = [
        row
        for row in all_rows(opened)
        if class_of(row) is not None and (classes is None or class_of(row) in classes)
    ]
    assert expected
    rows = selected(opened, Selection(None if classes is None else frozenset(classes)))
    assert sorted(rows, key=str) == sorted(expected, key=str)


def test_a_class_without_rows_selects_nothing(opened: OpenedOutput) -> None:
    """No unit is returned for it."""
    assert list(rejected_rows(opened, Selection(frozenset({"timeout"})))) == []


def test_truncated_answers_can_be_selected_too(opened: OpenedOutput) -> None:
    """With `truncated`, answers that stopped at their maximum length are added, and no others."""
    rows = all_rows(opened)
    truncated = [row for row in rows if row["finish_reason"] == "length"]
    whole = [row for row in rows if row["finish_reason"] == "stop"]
    assert truncated and whole
    chosen = selected(opened, Selection(frozenset({EMPTY}), truncated=True))
    empty = [row for row in rows if class_of(row) == EMPTY]
    assert sources(chosen) == sources(truncated) | sources(empty)
    assert len(chosen) == len(truncated) + len(empty)


TWO_TASKS = [
    {"kind": "generate", "name": "short", "sampling": {"max_tokens": 1}},
    {"kind": "generate", "name": "long", "sampling": {"max_tokens": 500}},
    {"kind": "generate", "name": "cut", "sampling": {"max_tokens": 4}},
]


def test_a_row_is_truncated_if_any_of_its_answers_is(tmp_path: Path) -> None:
    """One task that stopped at its limit is enough; nulls do not count."""
    opened = output_of(tmp_path, tasks=TWO_TASKS)
    rows = all_rows(opened)
    reasons = ("short_finish_reason", "long_finish_reason", "cut_finish_reason")
    truncated = [row for row in rows if "length" in [row[name] for name in reasons]]
    # There are rows with different truncated tasks, and rows with none.
    assert len({tuple(row[name] for name in reasons) for row in truncated}) > 1
    nothing = Selection(frozenset({"timeout"}), truncated=True)
    assert sources(selected(opened, nothing)) == sources(truncated)
    assert len(truncated) < len(rows)


def test_truncated_needs_a_task_with_a_finish_reason(tmp_path: Path) -> None:
    """Without one it is a UserError that names the option."""
    task = {"kind": "embed", "prompt": {"text": "{{ text }}"}}
    corpus = write_corpus(tmp_path / "corpus", CORPUS)
    keys = job_over(corpus, tmp_path / "out", task=task)
    del keys["prompt"], keys["sampling"]
    drive(Job.model_validate(keys), LocalStore(str(tmp_path / "out")))
    opened = open_output(LocalStore(str(tmp_path / "out")))
    selection = Selection(truncated=True)
    assert "--truncated" in refusal(UserError, lambda: list(rejected_rows(opened, selection)))


def test_missing_units_are_skipped(tmp_path: Path) -> None:
    """An unfinished output has the rejects of its committed units."""
    opened = output_of(tmp_path)
    before = selected(opened, Selection())
    (tmp_path / "out" / opened.plan.units[0].key).unlink()
    lost = opened.plan.units[0]
    assert sources(selected(opened, Selection())) == {
        (shard, row)
        for shard, row in sources(before)
        if shard != lost.shard or not lost.first_row <= row < lost.end_row
    }


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    """An object that is not ours is a UserError; it is not changed."""
    opened = output_of(tmp_path)
    broken = tmp_path / "out" / opened.plan.units[0].key
    broken.write_bytes(b"something else")
    assert str(broken) in refusal(UserError, lambda: selected(opened, Selection()))
    assert broken.read_bytes() == b"something else"


def test_an_example_names_the_row_and_the_reason(opened: OpenedOutput) -> None:
    """One row of the class as text; None if the unit has none."""
    key = next(unit.key for unit in opened.plan.units if unit.shard == "b/c.parquet")
    text = example_reject(opened.store, key, EMPTY)
    assert text is not None and text.startswith("b/c.parquet row 0: ")
    assert example_reject(opened.store, key, "timeout") is None


# Export.


def test_an_export_holds_whole_rows(opened: OpenedOutput, tmp_path: Path) -> None:
    """A Parquet export keeps columns and types; a JSON lines export has one row per line."""
    tables = [table for _, table in rejected_rows(opened, Selection())]
    rows = pa.concat_tables(tables)
    export_rows(tables, tmp_path / "rejects.parquet")
    written = pq.read_table(tmp_path / "rejects.parquet")
    assert written.equals(rows)
    assert written.schema.equals(rows.schema)
    export_rows(tables, tmp_path / "rejects.jsonl")
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows.to_pylist()


def test_values_that_json_lacks_become_text(tmp_path: Path) -> None:
    """Times become ISO 8601 and bytes base64, as in `export`; other scripts are not escaped."""
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
def test_a_target_that_cannot_be_written_is_a_user_error(
    opened: OpenedOutput, tmp_path: Path, name: str, part: str
) -> None:
    """The error for an unknown suffix or a missing folder names the option and the file."""
    tables = [table for _, table in rejected_rows(opened, Selection())]
    message = refusal(UserError, lambda: export_rows(tables, tmp_path / name))
    assert message.startswith(f"--export {tmp_path / name}")
    assert part in message


def test_an_export_without_rejects_is_refused(tmp_path: Path) -> None:
    """No file is written."""
    target = tmp_path / "rejects.parquet"
    assert "no rejects" in refusal(UserError, lambda: export_rows([], target))
    assert not target.exists()
