"""An output as one file for other programs: JSON lines, Parquet, OpenAI's batch output.

The committed units are read one after another in the plan's order, a few thousand rows at a time.
"""

import base64
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit import UnitRecord, read_record
from pipeline.errors import UserError
from pipeline.output import Opened, batches, committed_units
from pipeline.plan import Unit
from pipeline.run import expected_of
from pipeline.tasks.base import TaskSection
from pipeline.tasks.embed import Embed
from pipeline.tasks.generate import Generate
from pipeline.tasks.policy import fields_of
from pipeline.tasks.row import answer_fields

_CUSTOM_ID = "custom_id"

Batches = Iterator[tuple[Unit, pa.RecordBatch]]
#: A row of a unit's object to the body of its response.
Body = Callable[[Mapping[str, Any], UnitRecord], dict[str, Any]]


class Format(StrEnum):
    """What an output can be exported as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    OPENAI_BATCH = "openai-batch"


def named_format(name: str) -> Format:
    """The format of a name. Raises `UserError` if there is none."""
    if name not in list(Format):
        raise UserError(f"--to {name}: unknown; one of {', '.join(Format)}")
    return Format(name)


def export(
    opened: Opened, target: Path, form: Format, *, rejects: bool = True, partial: bool = False
) -> int:
    """Write an output's rows to a file, without the rejected ones or with; how many they are.

    The file has its name once it is whole. Raises `UserError` where the name is taken, and for an
    output of which units are missing unless `partial`.
    """
    units = committed_units(opened.store, opened.plan)
    missing = len(opened.plan.units) - len(units)
    if missing and not partial:
        raise UserError(
            f"{opened.store.url}: {missing:,} of {len(opened.plan.units):,} units are missing; "
            "run the job to its end, or give --partial"
        )
    # An output that the form cannot hold is told of before anything is written.
    write = _writer(opened, form)
    with _whole_or_nothing(target) as file:
        return write(_rows(opened, units, rejects=rejects), file)


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its name at the end, and is gone after an error."""
    if os.path.lexists(target):
        raise UserError(f"{target} is there already; remove it or name another file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _rows(opened: Opened, units: tuple[Unit, ...], *, rejects: bool) -> Batches:
    names = expected_of(opened).schema.names
    for unit in units:
        try:
            for batch in batches(opened.store, unit, names):
                yield unit, batch if rejects else batch.filter(pc.is_null(batch.column("error")))
        except (pa.ArrowException, OSError) as error:
            # Arrow's word for bytes that it cannot decompress is an OSError.
            reason = " ".join(str(error).split())
            raise UserError(
                f"{opened.store.url}/{unit.key}: {reason}; verify the output"
            ) from error


def _writer(opened: Opened, form: Format) -> Callable[[Batches, IO[bytes]], int]:
    if form == Format.PARQUET:
        schema = expected_of(opened).schema
        return lambda rows, file: _write_parquet(rows, file, schema)
    if form == Format.JSONL:
        return lambda rows, file: _write_lines(_plain_lines(rows), file)
    body = _body_of(opened.job.steps)
    return lambda rows, file: _write_lines(_batch_lines(opened, rows, body), file)


def _write_parquet(rows: Batches, file: IO[bytes], schema: pa.Schema) -> int:
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for _, batch in rows:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


def _write_lines(lines: Iterator[Mapping[str, Any]], file: IO[bytes]) -> int:
    num_rows = 0
    for line in lines:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False)
        file.write(text.encode() + b"\n")
        num_rows += 1
    return num_rows


def _plain_lines(rows: Batches) -> Iterator[Mapping[str, Any]]:
    for _, batch in rows:
        for row in _as_iso(batch).to_pylist():
            yield as_json(row)


def _as_iso(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With timestamps written out by Arrow: Python's know no nanoseconds."""
    for position, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type):
            text = batch.column(position).cast(pa.string())
            text = pc.replace_substring(text, " ", "T", max_replacements=1)
            batch = batch.set_column(position, field.name, text)
    return batch


def as_json(value: Any) -> Any:
    """A cell as JSON has it.

    Bytes are base64, dates and times ISO 8601, numbers that are not finite null, maps lists of
    pairs; what else JSON does not know is its text.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            number = float(value)
            return number if math.isfinite(number) else None
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case Mapping():
            return {name: as_json(each) for name, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
        case _:
            return str(value)


def _batch_lines(opened: Opened, rows: Batches, body: Body) -> Iterator[Mapping[str, Any]]:
    seen, record = None, None
    for unit, batch in rows:
        if record is None or unit is not seen:
            seen, record = unit, read_record(opened.store, unit.key)
        for row in batch.to_pylist():
            yield _batch_line(row, record, body)


def _batch_line(row: Mapping[str, Any], record: UnitRecord, body: Body) -> dict[str, Any]:
    place = f"{row['source_file']}:{row['source_row']}"
    own = row.get(_CUSTOM_ID)
    line = {"id": f"batch_req_{place}", "custom_id": place if own is None else str(own)}
    if row["error"] is not None:
        error = {"code": row["error"]["class"], "message": row["error"]["message"]}
        return {**line, "response": None, "error": error}
    response = {"status_code": 200, "request_id": place, "body": body(row, record)}
    return {**line, "response": response, "error": None}


def _body_of(steps: tuple[TaskSection, ...]) -> Body:
    """How the answers of a job's only task become bodies. Raises `UserError` for another job."""
    if len(steps) == 1:
        (section,) = steps
        columns = {
            own.name: column.name
            for own, column in zip(fields_of(section), answer_fields(steps), strict=True)
        }
        if isinstance(section, Embed):
            return lambda row, record: _embedding(row, record, columns)
        if isinstance(section, Generate):
            return lambda row, record: _chat(row, record, columns)
    raise UserError(
        "--to openai-batch: the form holds the answers of one task, generate or embed; use jsonl"
    )


def _chat(row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str]) -> dict[str, Any]:
    if "generated_texts" in columns:
        texts, reasons = row[columns["generated_texts"]], row[columns["finish_reasons"]]
    else:
        texts, reasons = [row[columns["generated_text"]]], [row[columns["finish_reason"]]]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    asked, made = row["num_input_tokens"] or 0, row["num_generated_tokens"] or 0
    return {
        "id": f"chatcmpl-{row['source_file']}:{row['source_row']}",
        "object": "chat.completion",
        "created": int(record.written_at),
        "model": record.model,
        "choices": choices,
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }


def _embedding(
    row: Mapping[str, Any], record: UnitRecord, columns: Mapping[str, str]
) -> dict[str, Any]:
    asked = row["num_input_tokens"] or 0
    vector = as_json(row[columns["embedding"]])
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": record.model,
        "usage": {"prompt_tokens": asked, "total_tokens": asked},
    }
