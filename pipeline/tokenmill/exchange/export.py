"""Exports an output as one file or as a table of another format.

The committed units are read one after another, in the plan's order, a few thousand rows at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.exchange.openai_answers import BodyBuilder, answer_line, body_builder
from tokenmill.exchange.table_formats import write_dataset, write_delta, write_iceberg
from tokenmill.output.json_lines import json_rows, write_line
from tokenmill.output.output import OpenedOutput, batches_with_record, committed_units
from tokenmill.output.record import UnitRecord
from tokenmill.output.verify import expected_output
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ERROR, SOURCE_FILE, SOURCE_ROW
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


_TABLES: dict[ExportFormat, Callable[[Iterator[pa.RecordBatch], pa.Schema, str], None]] = {
    ExportFormat.HF_DATASET: write_dataset,
    ExportFormat.DELTA: write_delta,
    ExportFormat.ICEBERG: write_iceberg,
}


def format_of(name: str) -> ExportFormat:
    """The format with this name. Raises `UserError` for an unknown name."""
    if name not in list(ExportFormat):
        raise UserError(f"--to {name}: unknown format; known: {', '.join(ExportFormat)}")
    return ExportFormat(name)


def export(  # noqa: PLR0913 - the options of the command
    opened: OpenedOutput,
    target: str | Path,
    format_: ExportFormat,
    *,
    rejects: bool = True,
    partial: bool = False,
    errors: str | Path | None = None,
) -> int:
    """Write an output's rows to a file or a table, and return their number.

    Without `rejects` only answered rows are written. With `errors` the rejected rows of an
    openai-batch export are written to that file. A file appears under its name only when it is
    complete. Raises `UserError` if a target exists, and for an output with missing units unless
    `partial` is set.
    """
    if errors is not None and (format_ is not ExportFormat.OPENAI_BATCH or not rejects):
        raise UserError("--errors needs --to openai-batch, and excludes --without-rejects")
    units = committed_units(opened.store, opened.plan)
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
        store, key = open_object(str(target))
        with store.open_new(key) as file:
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
    if errors == target:
        raise UserError(f"--errors {errors}: this is the file of the answers; choose another one")
    store, key = open_object(target)
    with store.open_new(key) as answer_file:
        if errors is None:
            yield answer_file, answer_file
            return
        store, key = open_object(errors)
        with store.open_new(key) as error_file:
            yield answer_file, error_file


def _read(
    opened: OpenedOutput, units: tuple[Unit, ...], *, rejects: bool
) -> Iterator[RecordedBatch]:
    names = expected_output(opened).schema.names
    for unit in units:
        try:
            for record, batch in batches_with_record(opened.store, unit, names):
                kept = batch if rejects else batch.filter(pc.is_null(batch.column(ERROR)))
                yield record, kept
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            # Arrow raises OSError for bytes that it cannot decompress.
            reason = " ".join(str(error).split())
            raise UserError(
                f"{opened.store.url}/{unit.key}: {reason}; run tokenmill verify to find all damage"
            ) from error


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
        for row in batch.to_pylist():
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
