"""An output for other programs: one file, or a table of another format.

The committed units are read one after another in the plan's order, a few thousand rows at a time.
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
from tokenmill.exchange.openai_answers import Body, answer_line, body_of
from tokenmill.exchange.table_formats import write_dataset, write_delta, write_iceberg
from tokenmill.output.json_lines import json_rows, write_line
from tokenmill.output.output import OpenedOutput, batches_with_record, committed_units
from tokenmill.output.record import UnitRecord
from tokenmill.output.verify import expected_output
from tokenmill.plan.plan import Unit
from tokenmill.storage.open import open_object

_CUSTOM_ID = "custom_id"
#: Rows of a unit, and what its object says of itself.
Recorded = tuple[UnitRecord, pa.RecordBatch]
RecordedBatches = Iterator[Recorded]


class ExportFormat(StrEnum):
    """What an output can be exported as."""

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
    """The format of a name. Raises `UserError` if there is none."""
    if name not in list(ExportFormat):
        raise UserError(f"--to {name}: unknown; one of {', '.join(ExportFormat)}")
    return ExportFormat(name)


def export(  # noqa: PLR0913 - what a command's options say
    opened: OpenedOutput,
    target: str | Path,
    form: ExportFormat,
    *,
    rejects: bool = True,
    partial: bool = False,
    errors: str | Path | None = None,
) -> int:
    """Write an output's rows to a file or a table, without the rejected ones or with; how many.

    Of a batch's answers the rejected ones may have a file of their own, `errors`. A file has its
    name once it is whole. Raises `UserError` where the name is taken, and for an output of which
    units are missing unless `partial`.
    """
    if errors is not None and (form is not ExportFormat.OPENAI_BATCH or not rejects):
        raise UserError("--errors goes with --to openai-batch, and not with --without-rejects")
    units = committed_units(opened.store, opened.plan)
    missing = len(opened.plan.units) - len(units)
    if missing and not partial:
        raise UserError(
            f"{opened.store.url}: {missing:,} of {len(opened.plan.units):,} units are missing; "
            "run the job to its end, or give --partial"
        )
    rows = Counted(_rows(opened, units, rejects=rejects))
    if form is ExportFormat.OPENAI_BATCH:
        # An output that the form cannot hold is told of before anything is written.
        body = body_of(opened.job.steps)
        with answer_files(str(target), None if errors is None else str(errors)) as files:
            _write_answers(rows, body, *files)
    elif form in _TABLES:
        batches = (batch for _, batch in rows)
        _TABLES[form](batches, expected_output(opened).schema, str(target))
    else:
        store, key = open_object(str(target))
        with store.open_new(key) as file:
            if form is ExportFormat.JSONL:
                _write_json_lines(rows, file)
            else:
                _write_parquet(rows, file, expected_output(opened).schema)
    return rows.num_rows


class Counted:
    """Batches on their way, and how many rows have passed."""

    def __init__(self, batches: RecordedBatches) -> None:
        self._batches = batches
        self.num_rows = 0

    def __iter__(self) -> RecordedBatches:
        for record, batch in self._batches:
            yield record, batch
            self.num_rows += batch.num_rows


@contextmanager
def answer_files(target: str, errors: str | None) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A batch's two files, of the answers and of the errors; one for both without the latter.

    Each is there, whole, when the context ends without an error, that of the errors first.
    """
    if errors == target:
        raise UserError(f"--errors {errors}: the answers are there; name another file")
    store, key = open_object(target)
    with store.open_new(key) as answered:
        if errors is None:
            yield answered, answered
            return
        store, key = open_object(errors)
        with store.open_new(key) as failed:
            yield answered, failed


def _rows(opened: OpenedOutput, units: tuple[Unit, ...], *, rejects: bool) -> RecordedBatches:
    names = expected_output(opened).schema.names
    for unit in units:
        try:
            for record, batch in batches_with_record(opened.store, unit, names):
                kept = batch if rejects else batch.filter(pc.is_null(batch.column("error")))
                yield record, kept
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            # Arrow's word for bytes that it cannot decompress is an OSError.
            reason = " ".join(str(error).split())
            raise UserError(
                f"{opened.store.url}/{unit.key}: {reason}; verify the output"
            ) from error


def _write_parquet(rows: Iterable[Recorded], file: IO[bytes], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for _, batch in rows:
            writer.write_batch(batch)


def _write_json_lines(rows: Iterable[Recorded], file: IO[bytes]) -> None:
    for _, batch in rows:
        for row in json_rows(batch):
            write_line(row, file)


def _write_answers(
    rows: Iterable[Recorded], body: Body, answered: IO[bytes], failed: IO[bytes]
) -> None:
    for record, batch in rows:
        for row in batch.to_pylist():
            place = f"{row['source_file']}:{row['source_row']}"
            own = row.get(_CUSTOM_ID)
            line = answer_line(row, record, body, place, place if own is None else str(own))
            write_line(line, answered if line["error"] is None else failed)
