"""Export: every row once and in order, in each form; the target is whole or not there."""

import base64
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, job_over
from helpers.stores import ON_S3, refusal
from pyiceberg.table import StaticTable
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange.export import ExportFormat, export
from tokenmill.job.job import Job
from tokenmill.output.json_lines import as_json
from tokenmill.output.output import OpenedOutput, open_output
from tokenmill.output.record import read_record
from tokenmill.storage.local import LocalStore
from tokenmill.storage.open import open_object
from typer.testing import CliRunner

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


def output_of(folder: Path, keep: list[str] | None = None, **changes: Any) -> OpenedOutput:
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
    return open_output(LocalStore(str(folder / "out")))


def stored(opened: OpenedOutput) -> pa.Table:
    tables = [pq.read_table(Path(opened.store.url, unit.key)) for unit in opened.plan.units]
    return pa.concat_tables(tables)


def lines(path: Path | str) -> list[dict[str, Any]]:
    store, key = open_object(str(path))
    return [json.loads(line) for line in store.read(key).decode().splitlines()]


def read_back(target: Path, form: ExportFormat) -> list[dict[str, Any]]:
    """The rows as a program that knows the form finds them."""
    match form:
        case ExportFormat.JSONL | ExportFormat.OPENAI_BATCH:
            return lines(target)
        case ExportFormat.PARQUET:
            return list(pq.read_table(target).to_pylist())
        case ExportFormat.DELTA:
            return list(deltalake.DeltaTable(target).to_pyarrow_table().to_pylist())
        case ExportFormat.ICEBERG:
            return list(StaticTable.from_metadata(str(target)).scan().to_arrow().to_pylist())
        case ExportFormat.HF_DATASET:
            datasets.disable_progress_bars()
            cache = target.with_name("cache")
            found = datasets.load_dataset(str(target), split="train", cache_dir=str(cache))
            return list(found)


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    """One file has all rows with the columns, types and values of the objects."""
    opened, target = output_of(tmp_path), tmp_path / "all.parquet"
    assert export(opened, target, ExportFormat.PARQUET) == len(ROWS)
    found, wanted = pq.read_table(target), stored(opened)
    assert found.schema.equals(wanted.schema)
    # NaN is not equal to itself.
    columns = [name for name in wanted.schema.names if name != "number"]
    assert found.select(columns).equals(wanted.select(columns))
    assert repr(found.column("number").to_pylist()) == repr([math.nan, None, -0.25])


def test_json_lines_hold_every_value(tmp_path: Path) -> None:
    """Each column is in each line, and reads back as the value that the object has."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    assert export(opened, target, ExportFormat.JSONL) == len(ROWS)
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


@pytest.mark.parametrize("form", list(ExportFormat))
def test_rejects_can_be_left_out(tmp_path: Path, form: ExportFormat) -> None:
    """Without rejects just the rows with an answer are written."""
    target = tmp_path / "answers"
    opened = output_of(tmp_path, keep=["custom_id", "blob", "nested"])
    assert export(opened, target, form, rejects=False) == 2
    rows = read_back(target, form)
    assert [row["error"] for row in rows] == [None, None]
    assert "första" in [row["custom_id"] for row in rows]


@pytest.mark.parametrize(
    "form", [ExportFormat.HF_DATASET, ExportFormat.DELTA, ExportFormat.ICEBERG]
)
def test_tables_hold_the_same_rows(tmp_path: Path, form: ExportFormat) -> None:
    """Each column reads back in the format's own library as the output holds it."""
    keep = ["custom_id", "blob", "day", "big", "price", "nested"]
    opened, target = output_of(tmp_path, keep=keep), tmp_path / "table"
    assert export(opened, target, form) == len(ROWS)
    # A table has no order of its own.
    found = sorted(read_back(target, form), key=lambda row: row["source_row"])
    assert found == stored(opened).to_pylist()


@pytest.mark.parametrize("place", ["local", ON_S3])
def test_errors_may_have_their_own_file(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    """The two files together hold each row once; in S3 as on a disk, where names stay too."""
    folder = str(tmp_path)
    if place == "s3":
        folder = f"s3://{request.getfixturevalue('s3_bucket')}/exports"
    opened = output_of(tmp_path)
    target, errors = f"{folder}/answers.jsonl", f"{folder}/errors.jsonl"
    assert export(opened, target, ExportFormat.OPENAI_BATCH, errors=errors) == len(ROWS)
    assert [line["custom_id"] for line in lines(target)] == ["första", "a.parquet:2"]
    assert all(line["error"] is None for line in lines(target))
    (line,) = lines(errors)
    assert (line["custom_id"], line["response"]) == ("empty", None)
    said = refusal(UserError, lambda: export(opened, target, ExportFormat.JSONL))
    assert said.startswith(f"{target} already exists")
    said = refusal(
        UserError, lambda: export(opened, f"{folder}/new", ExportFormat.OPENAI_BATCH, errors=errors)
    )
    assert said.startswith(f"{errors} already exists")
    for form, rejects in ((ExportFormat.JSONL, True), (ExportFormat.OPENAI_BATCH, False)):
        said = refusal(
            UserError,
            lambda form=form, rejects=rejects: export(
                opened, f"{folder}/new", form, rejects=rejects, errors=f"{folder}/other"
            ),
        )
        assert said.startswith("--errors goes with")
    store, _ = open_object(target)
    left = {item.key for item in store.list() if item.key.endswith(("new", "other"))}
    assert left == set()


@pytest.mark.parametrize("samples", [1, 2])
def test_batch_lines_hold_generated_texts(tmp_path: Path, samples: int) -> None:
    """A row's answers are choices beside its tokens; a reject is an error; ids are the user's."""
    task = {"kind": "generate", "name": "short", "n": samples, "prompt": {"user": "{{ text }}"}}
    task["sampling"] = {"max_tokens": 4}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    assert export(opened, target, ExportFormat.OPENAI_BATCH) == len(ROWS)
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
    export(opened, target, ExportFormat.OPENAI_BATCH)
    found, rows = lines(target), stored(opened).to_pylist()
    assert [line["custom_id"] for line in found] == [f"a.parquet:{row}" for row in range(3)]
    (entry,) = found[0]["response"]["body"]["data"]
    assert entry["embedding"] == [float(number) for number in rows[0]["embedding"]]
    asked = rows[0]["num_input_tokens"]
    assert found[0]["response"]["body"]["usage"] == {"prompt_tokens": asked, "total_tokens": asked}
    export(opened, tmp_path / "all.parquet", ExportFormat.PARQUET)
    assert pq.read_table(tmp_path / "all.parquet").equals(stored(opened))


def test_other_tasks_have_no_batch_form(tmp_path: Path) -> None:
    """Labels are refused before anything is written."""
    task = {"kind": "classify", "choices": ["a", "b"], "prompt": {"user": "{{ text }}"}}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    said = refusal(UserError, lambda: export(opened, target, ExportFormat.OPENAI_BATCH))
    assert "generate or embed" in said
    assert not target.exists()


def test_an_unfinished_output_needs_a_word(tmp_path: Path) -> None:
    """With units missing it is refused, and `partial` takes those that are there."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    Path(opened.store.url, opened.plan.units[0].key).unlink()
    assert "--partial" in refusal(UserError, lambda: export(opened, target, ExportFormat.JSONL))
    assert not target.exists()
    assert export(opened, target, ExportFormat.JSONL, partial=True) == 1
    assert [row["source_row"] for row in lines(target)] == [2]


@pytest.mark.parametrize("form", list(ExportFormat))
@pytest.mark.parametrize("whole_footer", [True, False])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, form: ExportFormat, whole_footer: bool
) -> None:
    """If a later unit is damaged, neither the target nor a part of it is there."""
    opened = output_of(tmp_path, keep=["big"])
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
    assert str(nowhere) in refusal(UserError, lambda: export(opened, nowhere, ExportFormat.JSONL))
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
    assert all(form in line for form in ExportFormat)
    assert not target.exists()


def test_cells_are_as_json_has_them() -> None:
    """Maps are pairs, durations their text, a flag stays a flag."""
    assert as_json([("a", True), ("b", None)]) == [["a", True], ["b", None]]
    assert as_json(datetime(2024, 5, 6, tzinfo=UTC)) == "2024-05-06T00:00:00+00:00"
    assert as_json(-math.inf) is None
