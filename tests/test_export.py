"""Export: every row once and in order, in each form; the file is whole or not there."""

import base64
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inprocess import drive, job_over
from stores import refusal
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commit import read_record
from pipeline.errors import ExitCode, UserError
from pipeline.export import Format, as_json, export
from pipeline.job import Job
from pipeline.output import Opened, open_output
from pipeline.store import LocalStore

KEPT = pa.schema(
    [
        pa.field("custom_id", pa.string()),
        pa.field("blob", pa.binary()),
        pa.field("at", pa.timestamp("ns", "UTC")),
        pa.field("day", pa.timestamp("s")),
        pa.field("number", pa.float64()),
        pa.field("big", pa.int64()),
        pa.field("price", pa.decimal128(9, 2)),
        pa.field("nested", pa.struct([pa.field("values", pa.list_(pa.float32()))])),
    ]
)
NANOSECONDS = 1_700_000_000_123_456_789
ROWS: list[dict[str, Any]] = [
    {
        "custom_id": "första",
        "blob": b"\x00\xff",
        "at": NANOSECONDS,
        "day": 86_400,
        "number": math.nan,
        "big": 2**62 + 1,
        "price": Decimal("1.50"),
        "nested": {"values": [1.5, None, math.inf]},
    },
    {"custom_id": "empty"},
    {"custom_id": None, "number": -0.25, "blob": b"", "nested": {"values": []}},
]
TEXTS = ["one", "", "three"]


def output_of(folder: Path, keep: list[str] | None = None, **changes: Any) -> Opened:
    """An output of three rows, the second rejected, in two units."""
    shard = pa.Table.from_arrays(
        [pa.array([row.get(field.name) for row in ROWS], field.type) for field in KEPT],
        schema=KEPT,
    )
    corpus = folder / "corpus"
    corpus.mkdir()
    pq.write_table(shard.append_column("text", pa.array(TEXTS)), corpus / "a.parquet")
    read = {"path": str(corpus), "keep": KEPT.names if keep is None else keep}
    keys = job_over(corpus, folder / "out", **{"input": read, **changes})
    if "task" in changes:
        del keys["sampling"], keys["prompt"]
    drive(Job.model_validate(keys), LocalStore(str(folder / "out")))
    return open_output(str(folder / "out"))


def stored(opened: Opened) -> pa.Table:
    tables = [pq.read_table(Path(opened.store.url, unit.key)) for unit in opened.plan.units]
    return pa.concat_tables(tables)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    """One file has all rows with the columns, types and values of the objects."""
    opened, target = output_of(tmp_path), tmp_path / "all.parquet"
    assert export(opened, target, Format.PARQUET) == len(ROWS)
    found, wanted = pq.read_table(target), stored(opened)
    assert found.schema.equals(wanted.schema)
    # NaN is not equal to itself.
    columns = [name for name in wanted.schema.names if name != "number"]
    assert found.select(columns).equals(wanted.select(columns))
    assert repr(found.column("number").to_pylist()) == repr([math.nan, None, -0.25])


def test_json_lines_hold_every_value(tmp_path: Path) -> None:
    """Each column is in each line, and reads back as the value that the object has."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    assert export(opened, target, Format.JSONL) == len(ROWS)
    found, wanted = lines(target), stored(opened)
    assert [list(row) for row in found] == [wanted.schema.names] * len(ROWS)
    simple = [name for name in wanted.schema.names if name not in KEPT.names or name == "custom_id"]
    assert [{name: row[name] for name in simple} for row in found] == wanted.select(
        simple
    ).to_pylist()
    first, second, third = found
    assert base64.b64decode(first["blob"]) == ROWS[0]["blob"]
    assert first["at"] == "2023-11-14T22:13:20.123456789Z"
    assert datetime.fromisoformat(first["day"]).replace(tzinfo=UTC).timestamp() == 86_400
    assert (first["number"], first["big"], first["price"]) == (None, 2**62 + 1, "1.50")
    assert first["nested"] == {"values": [1.5, None, None]}
    assert [second[name] for name in KEPT.names[1:]] == [None] * (len(KEPT.names) - 1)
    assert (third["blob"], third["number"], third["nested"]) == ("", -0.25, {"values": []})


@pytest.mark.parametrize("form", list(Format))
def test_rejects_can_be_left_out(tmp_path: Path, form: Format) -> None:
    """Without rejects just the rows with an answer are written."""
    target = tmp_path / "answers"
    assert export(output_of(tmp_path), target, form, rejects=False) == 2
    if form == Format.PARQUET:
        assert pq.read_table(target).column("source_row").to_pylist() == [0, 2]
    else:
        assert all(row["error"] is None for row in lines(target))
        assert len(lines(target)) == 2


@pytest.mark.parametrize("samples", [1, 2])
def test_batch_lines_hold_generated_texts(tmp_path: Path, samples: int) -> None:
    """A row's answers are choices beside its tokens; a reject is an error; ids are the user's."""
    task = {"kind": "generate", "name": "short", "n": samples, "prompt": {"user": "{{ text }}"}}
    task["sampling"] = {"max_tokens": 4}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    assert export(opened, target, Format.OPENAI_BATCH) == len(ROWS)
    found, rows = lines(target), stored(opened).to_pylist()
    assert [line["custom_id"] for line in found] == ["första", "empty", "a.parquet:2"]
    assert len({line["id"] for line in found}) == len(ROWS)
    assert found[1]["response"] is None
    error = rows[1]["error"]
    assert found[1]["error"] == {"code": error["class"], "message": error["message"]}
    for at in (0, 2):
        body, row = found[at]["response"]["body"], rows[at]
        record = read_record(opened.store, opened.plan.units[at // 2].key)
        assert found[at]["error"] is None
        assert (body["model"], body["created"]) == (record.model, int(record.written_at))
        asked, made = row["num_input_tokens"], row["num_generated_tokens"]
        assert body["usage"] == {
            "prompt_tokens": asked,
            "completion_tokens": made,
            "total_tokens": asked + made,
        }
        texts = [choice["message"]["content"] for choice in body["choices"]]
        reasons = [choice["finish_reason"] for choice in body["choices"]]
        if samples == 1:
            wanted = [row["short_generated_text"]], [row["short_finish_reason"]]
        else:
            wanted = row["short_generated_texts"], row["short_finish_reasons"]
        assert (texts, reasons) == wanted


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batch_lines_hold_embeddings(tmp_path: Path, dtype: str) -> None:
    """A vector is the one entry of a list, number by number."""
    task = {"kind": "embed", "dtype": dtype, "prompt": {"text": "{{ text }}"}}
    opened, target = output_of(tmp_path, keep=["big"], task=task), tmp_path / "batch.jsonl"
    export(opened, target, Format.OPENAI_BATCH)
    found, rows = lines(target), stored(opened).to_pylist()
    assert [line["custom_id"] for line in found] == [f"a.parquet:{row}" for row in range(3)]
    (entry,) = found[0]["response"]["body"]["data"]
    assert entry["embedding"] == [float(number) for number in rows[0]["embedding"]]
    asked = rows[0]["num_input_tokens"]
    assert found[0]["response"]["body"]["usage"] == {"prompt_tokens": asked, "total_tokens": asked}
    export(opened, tmp_path / "all.parquet", Format.PARQUET)
    assert pq.read_table(tmp_path / "all.parquet").equals(stored(opened))


def test_other_tasks_have_no_batch_form(tmp_path: Path) -> None:
    """Labels are refused before anything is written."""
    task = {"kind": "classify", "choices": ["a", "b"], "prompt": {"user": "{{ text }}"}}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    said = refusal(UserError, lambda: export(opened, target, Format.OPENAI_BATCH))
    assert "generate or embed" in said
    assert not target.exists()


def test_an_unfinished_output_needs_a_word(tmp_path: Path) -> None:
    """With units missing it is refused, and `partial` takes those that are there."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    Path(opened.store.url, opened.plan.units[0].key).unlink()
    assert "--partial" in refusal(UserError, lambda: export(opened, target, Format.JSONL))
    assert not target.exists()
    assert export(opened, target, Format.JSONL, partial=True) == 1
    assert [row["source_row"] for row in lines(target)] == [2]


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("whole_footer", [True, False])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, form: Format, whole_footer: bool
) -> None:
    """If a later unit is damaged, neither the target nor a part of it is there."""
    opened = output_of(tmp_path)
    damaged = Path(opened.store.url, opened.plan.units[-1].key)
    data = damaged.read_bytes()
    body = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged.write_bytes(b"\xff" * body + data[body:] if whole_footer else data[:body])
    folder = tmp_path / "exports"
    folder.mkdir()
    said = refusal(UserError, lambda: export(opened, folder / "all", form))
    assert opened.plan.units[-1].key in said
    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """A taken name and a folder that is missing are told in one line by the command."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    target.write_text("mine")
    done = CliRunner().invoke(app, ["export", opened.store.url, str(target)])
    assert done.exit_code == ExitCode.USER_ERROR
    assert target.read_text() == "mine"
    nowhere = tmp_path / "no" / "where"
    assert str(nowhere) in refusal(UserError, lambda: export(opened, nowhere, Format.JSONL))
    done = CliRunner().invoke(
        app, ["export", opened.store.url, str(tmp_path / "new"), "--without-rejects"]
    )
    assert (done.exit_code, done.stdout.strip()) == (0, f"{tmp_path / 'new'}: 2 rows")


def test_a_form_that_there_is_not_is_told_in_one_line(tmp_path: Path) -> None:
    """It is refused with those that there are, and nothing is written."""
    opened, target = output_of(tmp_path), tmp_path / "all.csv"
    done = CliRunner().invoke(app, ["export", opened.store.url, str(target), "--to", "csv"])
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "jsonl, parquet, openai-batch" in line
    assert not target.exists()


def test_cells_are_as_json_has_them() -> None:
    """Maps are pairs, durations their text, a flag stays a flag."""
    assert as_json([("a", True), ("b", None)]) == [["a", True], ["b", None]]
    assert as_json(datetime(2024, 5, 6, tzinfo=UTC)) == "2024-05-06T00:00:00+00:00"
    assert as_json(-math.inf) is None
