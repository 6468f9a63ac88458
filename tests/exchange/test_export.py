"""Export: every row once and in order, in each format; a target is complete or missing."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import ON_S3, refusal
from pyiceberg.table import StaticTable
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange.export import ExportFormat, export
from tokenmill.job.job import Job
from tokenmill.output.json_lines import as_json
from tokenmill.output.output import OpenedOutput, all_batches, committed_objects, open_output
from tokenmill.output.record import read_record
from tokenmill.storage.base import ObjectInfo
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
    """An output of three rows in two units; the second row is rejected."""
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
    """The rows of all units of the output."""
    tables = [pq.read_table(Path(opened.store.url, unit.key)) for unit in opened.plan.units]
    return pa.concat_tables(tables)


def lines(path: Path | str) -> list[dict[str, Any]]:
    store, key = open_object(str(path))
    return [json.loads(line) for line in store.read(key).decode().splitlines()]


def read_back(target: Path, format_: ExportFormat) -> list[dict[str, Any]]:
    """The rows as read by the format's own library."""
    match format_:
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
            dataset = datasets.load_dataset(str(target), split="train", cache_dir=str(cache))
            return list(dataset)


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    """The file has the columns, types and values of the output's objects."""
    opened, target = output_of(tmp_path), tmp_path / "all.parquet"
    assert export(opened, target, ExportFormat.PARQUET) == len(ROWS)
    exported, expected = pq.read_table(target), stored(opened)
    assert exported.schema.equals(expected.schema)
    # NaN is not equal to itself.
    columns = [name for name in expected.schema.names if name != "number"]
    assert exported.select(columns).equals(expected.select(columns))
    assert repr(exported.column("number").to_pylist()) == repr([math.nan, None, -0.25])


def test_json_lines_hold_every_value(tmp_path: Path) -> None:
    """Each line has all columns, and each value reads back as the output holds it."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    assert export(opened, target, ExportFormat.JSONL) == len(ROWS)
    exported, expected = lines(target), stored(opened)
    names = expected.schema.names
    assert [list(row) for row in exported] == [names] * len(ROWS)
    simple = [name for name in names if name not in KEPT.names or name == "custom_id"]
    simple_rows = [{name: row[name] for name in simple} for row in exported]
    assert simple_rows == expected.select(simple).to_pylist()
    first, second, third = exported
    assert base64.b64decode(first["blob"]) == ROWS[0]["blob"]
    assert first["at"] == "2023-11-14T22:13:20.123456789Z"
    assert datetime.fromisoformat(first["day"]).replace(tzinfo=UTC).timestamp() == 86_400
    assert (first["number"], first["big"], first["price"]) == (None, 2**62 + 1, "1.50")
    assert first["nested"] == {"values": [1.5, None, None]}
    assert [second[name] for name in KEPT.names[1:]] == [None] * (len(KEPT.names) - 1)
    assert (third["blob"], third["number"], third["nested"]) == ("", -0.25, {"values": []})


@pytest.mark.parametrize("format_", list(ExportFormat))
def test_rejects_can_be_left_out(tmp_path: Path, format_: ExportFormat) -> None:
    """Without rejects only the answered rows are written."""
    target = tmp_path / "answers"
    opened = output_of(tmp_path, keep=["custom_id", "blob", "nested"])
    assert export(opened, target, format_, rejects=False) == 2
    rows = read_back(target, format_)
    assert [row["error"] for row in rows] == [None, None]
    assert "första" in [row["custom_id"] for row in rows]


@pytest.mark.parametrize(
    "format_", [ExportFormat.HF_DATASET, ExportFormat.DELTA, ExportFormat.ICEBERG]
)
def test_tables_hold_the_same_rows(tmp_path: Path, format_: ExportFormat) -> None:
    """Read by the format's own library, each value is as the output holds it."""
    keep = ["custom_id", "blob", "day", "big", "price", "nested"]
    opened, target = output_of(tmp_path, keep=keep), tmp_path / "table"
    assert export(opened, target, format_) == len(ROWS)
    # A table has no row order.
    rows = sorted(read_back(target, format_), key=lambda row: row["source_row"])
    assert rows == stored(opened).to_pylist()


@pytest.mark.parametrize("place", ["local", ON_S3])
def test_errors_can_have_a_separate_file(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    """The two files together hold each row once; existing files are not overwritten."""
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
    message = refusal(UserError, lambda: export(opened, target, ExportFormat.JSONL))
    assert message.startswith(target)
    message = refusal(
        UserError, lambda: export(opened, f"{folder}/new", ExportFormat.OPENAI_BATCH, errors=errors)
    )
    assert message.startswith(errors)
    for format_, rejects in ((ExportFormat.JSONL, True), (ExportFormat.OPENAI_BATCH, False)):
        message = refusal(
            UserError,
            lambda format_=format_, rejects=rejects: export(
                opened, f"{folder}/new", format_, rejects=rejects, errors=f"{folder}/other"
            ),
        )
        assert message.startswith("--errors needs")
    store, _ = open_object(target)
    assert [item.key for item in store.list() if item.key.endswith(("new", "other"))] == []


@pytest.mark.parametrize("samples", [1, 2])
def test_batch_lines_hold_generated_texts(tmp_path: Path, samples: int) -> None:
    """A row's answers are choices, a reject is an error, and ids come from the input."""
    task = {"kind": "generate", "name": "short", "n": samples, "prompt": {"user": "{{ text }}"}}
    task["sampling"] = {"max_tokens": 4}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    assert export(opened, target, ExportFormat.OPENAI_BATCH) == len(ROWS)
    exported, rows = lines(target), stored(opened).to_pylist()
    assert [line["custom_id"] for line in exported] == ["första", "empty", "a.parquet:2"]
    assert len({line["id"] for line in exported}) == len(ROWS)
    assert exported[1]["response"] is None
    error = rows[1]["error"]
    assert exported[1]["error"] == {"code": error["class"], "message": error["message"]}
    for number in (0, 2):
        body, row = exported[number]["response"]["body"], rows[number]
        record = read_record(opened.store, opened.plan.units[number // 2].key)
        assert exported[number]["error"] is None
        assert (body["model"], body["created"]) == (record.model, int(record.written_at))
        num_input, num_output = row["num_input_tokens"], row["num_generated_tokens"]
        assert body["usage"] == {
            "prompt_tokens": num_input,
            "completion_tokens": num_output,
            "total_tokens": num_input + num_output,
        }
        texts = [choice["message"]["content"] for choice in body["choices"]]
        reasons = [choice["finish_reason"] for choice in body["choices"]]
        if samples == 1:
            expected = [row["short_generated_text"]], [row["short_finish_reason"]]
        else:
            expected = row["short_generated_texts"], row["short_finish_reasons"]
        assert (texts, reasons) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batch_lines_hold_embeddings(tmp_path: Path, dtype: str) -> None:
    """A vector is the only element of a list response."""
    task = {"kind": "embed", "dtype": dtype, "prompt": {"text": "{{ text }}"}}
    opened, target = output_of(tmp_path, keep=["big"], task=task), tmp_path / "batch.jsonl"
    export(opened, target, ExportFormat.OPENAI_BATCH)
    exported, rows = lines(target), stored(opened).to_pylist()
    assert [line["custom_id"] for line in exported] == [f"a.parquet:{row}" for row in range(3)]
    body = exported[0]["response"]["body"]
    (entry,) = body["data"]
    assert entry["embedding"] == [float(number) for number in rows[0]["embedding"]]
    num_input = rows[0]["num_input_tokens"]
    assert body["usage"] == {"prompt_tokens": num_input, "total_tokens": num_input}
    export(opened, tmp_path / "all.parquet", ExportFormat.PARQUET)
    assert pq.read_table(tmp_path / "all.parquet").equals(stored(opened))


def test_the_batch_format_is_for_generate_and_embed(tmp_path: Path) -> None:
    """For another task the export is an error before anything is written."""
    task = {"kind": "classify", "choices": ["a", "b"], "prompt": {"user": "{{ text }}"}}
    opened, target = output_of(tmp_path, task=task), tmp_path / "batch.jsonl"
    message = refusal(UserError, lambda: export(opened, target, ExportFormat.OPENAI_BATCH))
    assert "generate or embed" in message
    assert not target.exists()


def test_an_unfinished_output_is_exported_only_with_partial(tmp_path: Path) -> None:
    """With missing units the export is an error, unless `partial` is set."""
    opened, target = output_of(tmp_path), tmp_path / "all.jsonl"
    Path(opened.store.url, opened.plan.units[0].key).unlink()
    assert "--partial" in refusal(UserError, lambda: export(opened, target, ExportFormat.JSONL))
    assert not target.exists()
    assert export(opened, target, ExportFormat.JSONL, partial=True) == 1
    assert [row["source_row"] for row in lines(target)] == [2]


@pytest.mark.parametrize("format_", list(ExportFormat))
@pytest.mark.parametrize("whole_footer", [True, False])
def test_a_failed_export_leaves_nothing(
    tmp_path: Path, format_: ExportFormat, whole_footer: bool
) -> None:
    """If a later unit is damaged, neither the target nor a part of it exists."""
    opened = output_of(tmp_path, keep=["big"])
    damaged = Path(opened.store.url, opened.plan.units[-1].key)
    data = damaged.read_bytes()
    body = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged.write_bytes(b"\xff" * body + data[body:] if whole_footer else data[:body])
    folder = tmp_path / "exports"
    folder.mkdir()
    message = refusal(UserError, lambda: export(opened, folder / "all", format_))
    assert opened.plan.units[-1].key in message
    assert list(folder.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    """An existing target and a missing folder are errors; the command exits with 2."""
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


def test_an_unknown_format_is_an_error(tmp_path: Path) -> None:
    """One line lists the known formats, and nothing is written."""
    opened, target = output_of(tmp_path), tmp_path / "all.csv"
    done = CliRunner().invoke(app, ["export", opened.store.url, str(target), "--to", "csv"])
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert all(format_ in line for format_ in ExportFormat)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("all.jsonl", ExportFormat.JSONL),
        ("all.NDJSON", ExportFormat.JSONL),
        ("all", ExportFormat.JSONL),
        ("all.parquet", ExportFormat.PARQUET),
    ],
)
def test_a_suffix_says_the_format(tmp_path: Path, name: str, format_: ExportFormat) -> None:
    """Without `--to` the target's suffix decides, and JSON lines are the default."""
    opened, target = output_of(tmp_path, keep=["big"]), tmp_path / name
    done = CliRunner().invoke(app, ["export", opened.store.url, str(target)])
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert [row["source_row"] for row in read_back(target, format_)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("all.csv", [], [".csv", *ExportFormat]),
        ("all.json", [], [".json", *ExportFormat]),
        ("all.jsonl.gz", [], ["| gzip"]),
        ("all.jsonl.gz", ["--to", "jsonl"], ["| gzip"]),
        ("all.parquet.zst", ["--to", "parquet"], ["| gzip"]),
        ("-", ["--to", "parquet"], ["standard output", "jsonl"]),
        ("-", ["--to", "delta"], ["standard output", "jsonl"]),
        ("same", ["--to", "openai-batch", "--errors", "./same"], ["--errors"]),
        ("-", ["--to", "openai-batch", "--errors", "-"], ["--errors"]),
    ],
)
def test_a_target_that_does_not_fit_its_format_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
    parts: list[str],
) -> None:
    """The error names the formats or the way out, and nothing is written."""
    opened = output_of(tmp_path, keep=["big"])
    (tmp_path / "exports").mkdir()
    monkeypatch.chdir(tmp_path / "exports")
    done = CliRunner().invoke(app, ["export", opened.store.url, name, *options])
    assert (done.exit_code, done.stdout) == (ExitCode.USER_ERROR, "")
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in parts)
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("format_", ["jsonl", "openai-batch"])
def test_lines_can_be_written_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    """Standard output has the rows only; their number is on stderr, and no file is made."""
    opened = output_of(tmp_path, keep=["big"])
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    done = CliRunner().invoke(app, ["export", opened.store.url, "-", "--to", format_])
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == len(ROWS)
    assert "3 rows" in done.stderr
    assert set(tmp_path.iterdir()) == before


class _CountingStore(LocalStore):
    """A store that counts how often it is asked for objects, and how many it has read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.num_calls = 0
        self.num_read = 0

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        self.num_calls += 1
        self.num_read += len(items)
        return super().read_ends(items, num_bytes)

    def open(self, key: str) -> BinaryIO:
        self.num_calls += 1
        return super().open(key)


def many_units(folder: Path) -> tuple[OpenedOutput, _CountingStore]:
    """An output of 200 units of one row, and its store."""
    corpus = write_corpus(folder / "corpus", {"a.parquet": [f"text {n}" for n in range(200)]})
    job = Job.model_validate(job_over(corpus, folder / "out", units={"rows": 1}))
    drive(job, LocalStore(str(folder / "out")))
    counting = _CountingStore(str(folder / "out"))
    return replace(open_output(counting), store=counting), counting


def test_units_are_read_together_and_written_in_order(tmp_path: Path) -> None:
    """200 small units cost four calls of the store, not one each."""
    opened, store = many_units(tmp_path)
    assert export(opened, tmp_path / "all.jsonl", ExportFormat.JSONL) == 200
    assert [row["source_row"] for row in lines(tmp_path / "all.jsonl")] == list(range(200))
    assert (store.num_calls, store.num_read) == (4, 200)


def test_few_units_are_held_at_a_time(tmp_path: Path) -> None:
    """However slowly the rows are taken, a bounded number of units is read ahead."""
    opened, store = many_units(tmp_path)
    objects = committed_objects(store, opened.plan).values()
    rows = all_batches(opened, objects, ["source_row"])
    for taken, _ in enumerate(rows, start=1):
        assert store.num_read <= taken + 128


def test_large_units_are_not_read_ahead(tmp_path: Path) -> None:
    """An object of more than 32 MiB is opened when its turn comes."""
    opened, store = many_units(tmp_path)
    objects = [replace(item, size=2**26) for item in committed_objects(store, opened.plan).values()]
    rows = all_batches(opened, objects, ["source_row"])
    assert [batch.column(0).to_pylist() for _, batch in rows] == [[row] for row in range(200)]
    assert store.num_read == 0


def test_values_become_json() -> None:
    """Maps become pairs, times ISO 8601, infinity null; a boolean stays a boolean."""
    assert as_json([("a", True), ("b", None)]) == [["a", True], ["b", None]]
    assert as_json(datetime(2024, 5, 6, tzinfo=UTC)) == "2024-05-06T00:00:00+00:00"
    assert as_json(-math.inf) is None
