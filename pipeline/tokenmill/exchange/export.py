"""Exports an output as one file or as a table of another format.

The committed units are written in the plan's order, a few thousand rows at a time.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.exchange.openai_answers import BodyBuilder, answer_line, body_builder
from tokenmill.exchange.table_formats import write_dataset, write_delta, write_iceberg
from tokenmill.input.values import readable_rows
from tokenmill.output.json_lines import json_rows, write_line
from tokenmill.output.output import OpenedOutput, all_batches, committed_objects
from tokenmill.output.record import UnitRecord
from tokenmill.output.verify import expected_output
from tokenmill.row_columns import ERROR, SOURCE_FILE, SOURCE_ROW
from tokenmill.storage.base import ObjectInfo
from tokenmill.storage.open import open_object

_CUSTOM_ID = "custom_id"
#: Some rows of a unit, and the unit's record.
RecordedBatch = tuple[UnitRecord, pa.RecordBatch]


class ExportFormat(StrEnum):
    """The formats of an export."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    OPENAI_BATCH = "openai-batch"
    HF_DATASET = "hf-dataset"
    DELTA = "delta"
    ICEBERG = "iceberg"


_LINES = (ExportFormat.JSONL, ExportFormat.OPENAI_BATCH)
_TABLES: dict[ExportFormat, Callable[[Iterator[pa.RecordBatch], pa.Schema, str], None]] = {
    ExportFormat.HF_DATASET: write_dataset,
    ExportFormat.DELTA: write_delta,
    ExportFormat.ICEBERG: write_iceberg,
}


#: The name of standard output as a target.
STDOUT = "-"
_OF_SUFFIX = {
    "": ExportFormat.JSONL,
    ".jsonl": ExportFormat.JSONL,
    ".ndjson": ExportFormat.JSONL,
    ".parquet": ExportFormat.PARQUET,
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")


def format_of(name: str | None, target: str) -> ExportFormat:
    """The format with this name or, without one, that of the target's suffix.

    Raises `UserError` for an unknown name or suffix, and for the suffix of a compressed file.
    """
    known = ", ".join(ExportFormat)
    if name is not None and name not in list(ExportFormat):
        raise UserError(f"--to {name}: unknown format; known: {known}")
    suffix = PurePosixPath(target).suffix.lower()
    if suffix in _COMPRESSED and name not in _TABLES:
        raise UserError(
            f"{target}: exports are not compressed; write to standard output and pipe it to a "
            "program: tokenmill export OUTPUT - | gzip > FILE"
        )
    if name is None and suffix not in _OF_SUFFIX:
        raise UserError(
            f"{target}: no format has the suffix {suffix}; pass --to with one of {known}, or end "
            f"the name in .jsonl or .parquet"
        )
    return _OF_SUFFIX[suffix] if name is None else ExportFormat(name)


def export(  # noqa: PLR0913 - the options of the command
    opened: OpenedOutput,
    target: str | Path,
    format_: ExportFormat,
    *,
    rejects: bool = True,
    partial: bool = False,
    errors: str | Path | None = None,
) -> int:
    """Write an output's rows to a file, `STDOUT` or a table, and return their number.

    Without `rejects` only answered rows are written. With `errors` the rejected rows of an
    openai-batch export are written to that file. A file appears under its name only when it is
    complete. Raises `UserError` if a target exists, and for an output with missing units unless
    `partial` is set.
    """
    if errors is not None and (format_ is not ExportFormat.OPENAI_BATCH or not rejects):
        raise UserError("--errors needs --to openai-batch, and excludes --without-rejects")
    if str(target) == STDOUT and format_ not in _LINES:
        raise UserError(
            f"--to {format_}: only {' and '.join(_LINES)} can be written to standard output; name "
            "a target"
        )
    committed = committed_objects(opened.store, opened.plan)
    units = [committed[unit.key] for unit in opened.plan.units if unit.key in committed]
    missing = len(opened.plan.units) - len(units)
    if missing and not partial:
        raise UserError(
            f"{opened.store.url}: {missing:,} of {len(opened.plan.units):,} units are missing; "
            "finish the run, or export what is there with --partial"
        )
    rows = CountedRows(_read(opened, units, rejects=rejects))
    if format_ is ExportFormat.OPENAI_BATCH:
        # Before a file is opened: this raises for an output that the format cannot hold.
        build_body = body_builder(opened.job)
        with answer_files(str(target), None if errors is None else str(errors)) as files:
            _write_answers(rows, build_body, *files)
    elif format_ in _TABLES:
        batches = (batch for _, batch in rows)
        _TABLES[format_](batches, expected_output(opened).schema, str(target))
    else:
        with _new_file(str(target)) as file:
            if format_ is ExportFormat.JSONL:
                _write_json_lines(rows, file)
            else:
                _write_parquet(rows, file, expected_output(opened).schema)
    return rows.num_rows


class CountedRows:
    """Batches, with the number of rows that have been read from them so far."""

    def __init__(self, batches: Iterator[RecordedBatch]) -> None:
        self._batches = batches
        self.num_rows = 0

    def __iter__(self) -> Iterator[RecordedBatch]:
        for record, batch in self._batches:
            yield record, batch
            self.num_rows += batch.num_rows


@contextmanager
def answer_files(target: str, errors: str | None) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open the two result files of a batch, for answers and errors; without `errors` one for both.

    The files appear when the context ends without an error: first that of the errors.
    """
    if errors is not None:
        check_separate(target, errors)
    with _new_file(target) as answer_file:
        if errors is None:
            yield answer_file, answer_file
            return
        with _new_file(errors) as error_file:
            yield answer_file, error_file


def check_separate(target: str, errors: str) -> None:
    """Raise `UserError` if the files of answers and errors are the same, however they are named."""
    (store, key), (other_store, other_key) = open_object(target), open_object(errors)
    if (store.url, key) == (other_store.url, other_key):
        raise UserError(f"--errors {errors}: this is the file of the answers; choose another one")


@contextmanager
def _new_file(target: str) -> Iterator[IO[bytes]]:
    """A new file that appears when the context ends without an error, or standard output."""
    if target == STDOUT:
        yield sys.stdout.buffer
        return
    store, key = open_object(target)
    with store.open_new(key) as file:
        yield file


def _read(
    opened: OpenedOutput, units: Sequence[ObjectInfo], *, rejects: bool
) -> Iterator[RecordedBatch]:
    for record, batch in all_batches(opened, units, expected_output(opened).schema.names):
        yield record, batch if rejects else batch.filter(pc.is_null(batch.column(ERROR)))


def _write_parquet(rows: Iterable[RecordedBatch], file: IO[bytes], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for _, batch in rows:
            writer.write_batch(batch)


def _write_json_lines(rows: Iterable[RecordedBatch], file: IO[bytes]) -> None:
    for _, batch in rows:
        for row in json_rows(batch):
            write_line(row, file)


def _write_answers(
    rows: Iterable[RecordedBatch],
    build_body: BodyBuilder,
    answer_file: IO[bytes],
    error_file: IO[bytes],
) -> None:
    for record, batch in rows:
        for row in readable_rows(batch):
            request_id = f"{row[SOURCE_FILE]}:{row[SOURCE_ROW]}"
            custom_id = row.get(_CUSTOM_ID)
            line = answer_line(
                row,
                record,
                build_body,
                request_id,
                request_id if custom_id is None else str(custom_id),
            )
            write_line(line, answer_file if line["error"] is None else error_file)
