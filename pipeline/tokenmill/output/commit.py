"""A unit's result, whole or not at all: encode in memory, one conditional PUT, done.

If the object is there the unit is done; if it is not, it is not. A second writer of the same
unit (a retry, a zombie, another driver) finds the object and drops its own.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.errors import RunFailed, UserError
from tokenmill.output.record import METADATA_KEY, UnitRecord, body_sha256, read_record, record_from
from tokenmill.plan.plan import Unit
from tokenmill.storage.base import Store

# Large enough to compress well, small enough that readers prune and split.
_ROW_GROUP_ROWS = 16_384
# Of a repair that meets another one on the same unit.
_MOST_EXCHANGES = 5


@dataclass(frozen=True, slots=True)
class Repair:
    """Who answers rejected rows again, and with which of the job's fields changed."""

    run: str
    attempt: str
    changes: Mapping[str, Any]


class Stage(StrEnum):
    """Where a unit's time goes."""

    READ = "read"
    RENDER = "render"
    ENGINE = "engine"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome of a commit: the record of the object that stands, and whether it is ours.

    `stage_times` has when each stage of the unit began and ended, in Unix seconds by the clock of
    its machine.
    """

    record: UnitRecord
    is_ours: bool
    stage_times: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def encode(table: pa.Table, record: UnitRecord) -> bytes:
    """The object's bytes: Parquet, zstd, the record with the body's checksum in its metadata."""
    # What stages note on their way is not the output's.
    table = table.replace_schema_metadata(None)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
        # All pages are written by now; what follows is the footer, which holds their checksum.
        with sink.getbuffer() as body:
            whole = replace(record, body_sha256=hashlib.sha256(body).hexdigest())
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(asdict(whole))})
    return sink.getvalue()


def commit(store: Store, unit: Unit, table: pa.Table, record: UnitRecord) -> Commit:
    """Make the unit's object exist. Raises `UserError` if something foreign has its name.

    An object that is there already was made by an earlier attempt: by another writer, or by this
    very one if the store's answer to its PUT was lost. Either way the unit is committed.
    """
    data = encode(table, record)
    if store.put_if_absent(unit.key, data):
        return Commit(replace(record, body_sha256=body_sha256(data)), is_ours=True)
    try:
        standing = read_record(store, unit.key)
    except FileNotFoundError as error:
        raise RunFailed(
            f"{store.url}/{unit.key} was there and is gone; run the command again"
        ) from error
    if (standing.unit, standing.fingerprint) != (unit.key, record.fingerprint):
        raise UserError(f"{store.url}/{unit.key}: belongs to another job; use another output")
    return Commit(standing, is_ours=standing.attempt == record.attempt)


def repair(store: Store, unit: Unit, answered: pa.Table, mend: Repair) -> Commit:
    """Put rows that were answered again into their places in the unit's object, in one step.

    `answered` holds some of the object's rows in its columns. A row that had an answer keeps it
    unless there is a new one. Raises `RunFailed` if others change the object again and again.
    """
    for _ in range(_MOST_EXCHANGES):
        version = store.info(unit.key).version
        data = store.read(unit.key)
        before = record_from(pq.read_metadata(io.BytesIO(data)))
        if any(made["attempt"] == mend.attempt for made in before.repairs):
            # It was made and the store's answer was lost; others may have come after it.
            return Commit(before, is_ours=True)
        rows = _mended(pq.read_table(io.BytesIO(data)), answered)
        record = _mended_record(before, rows, answered, mend)
        data = encode(rows, record)
        if store.put_if_match(unit.key, data, version):
            return Commit(replace(record, body_sha256=body_sha256(data)), is_ours=True)
    raise RunFailed(f"{store.url}/{unit.key}: others keep changing it; run the command again later")


def _mended_record(
    before: UnitRecord, rows: pa.Table, answered: pa.Table, mend: Repair
) -> UnitRecord:
    made = {
        "run": mend.run,
        "attempt": mend.attempt,
        "changes": dict(mend.changes),
        "num_rows": answered.num_rows,
    }
    return replace(
        before,
        attempt=mend.attempt,
        rejects=count_rejects(rows),
        input_tokens=before.input_tokens + column_sum(answered, "num_input_tokens"),
        generated_tokens=before.generated_tokens + column_sum(answered, "num_generated_tokens"),
        repairs=(*before.repairs, made),
    )


def _mended(standing: pa.Table, answered: pa.Table) -> pa.Table:
    places = {row: place for place, row in enumerate(standing.column("source_row").to_pylist())}
    had_answer = standing.column("error").is_null().to_pylist()
    has_answer = answered.column("error").is_null().to_pylist()
    order = list(range(standing.num_rows))
    for position, row in enumerate(answered.column("source_row").to_pylist()):
        place = places[row]
        if has_answer[position] or not had_answer[place]:
            order[place] = standing.num_rows + position
    return pa.concat_tables([standing, answered]).take(pa.array(order, pa.int64()))


def count_rejects(rows: pa.Table) -> dict[str, int]:
    """The rejected rows of an output table, by class."""
    classes = pc.struct_field(rows.column("error"), "class").drop_null()
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(classes).to_pylist()}


def column_sum(table: pa.Table, column: str) -> int:
    """The sum of a column of integers; nulls count nothing."""
    return pc.sum(table.column(column), min_count=0).as_py() or 0
