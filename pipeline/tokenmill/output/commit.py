"""Commit a unit: encode its rows in memory, then create its object in one conditional write.

If the object exists, the unit is done; otherwise it is not. A second writer of the same unit (a
retry, a leftover process, another driver) finds the object and discards its own.
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
from tokenmill.output.counts import Counts
from tokenmill.output.record import METADATA_KEY, UnitRecord, body_sha256, read_record, record_from
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ERROR, NUM_GENERATED_TOKENS, NUM_INPUT_TOKENS, SOURCE_ROW
from tokenmill.storage.base import Store

# Large enough to compress well, small enough that readers can skip and split.
_ROW_GROUP_ROWS = 16_384
# How often a repair starts over because another one changed the unit's object first.
_MAX_REPAIR_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Repair:
    """The run that answers rejected rows again, its attempt, and the job's fields it changes."""

    run: str
    attempt: str
    changes: Mapping[str, Any]


class Stage(StrEnum):
    """The stages in which a unit spends its time."""

    READ = "read"
    RENDER = "render"
    ENGINE = "engine"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome of a commit: the record of the unit's object, and whether this attempt wrote it.

    `stage_times` holds the start and the end of each stage in Unix seconds, by the clock of the
    machine that ran it. `repaired` counts the rows that a repair has answered again; it is None if
    all rows of the unit were answered. `was_skipped` if another run had committed the unit before
    this attempt asked an engine. `num_empty` counts, by task, the rows whose answer is empty.
    """

    record: UnitRecord
    is_ours: bool
    stage_times: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    repaired: Counts | None = None
    was_skipped: bool = False
    num_empty: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        """What the attempt adds to the counts of its run."""
        return self.record.counts if self.repaired is None else self.repaired


def encode(table: pa.Table, record: UnitRecord) -> bytes:
    """The object's bytes: Parquet with zstd, and in its metadata the record with the checksum."""
    # The stages' notes in the schema's metadata are not part of the output.
    table = table.replace_schema_metadata(None)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
        # All pages are written by now. Only the footer follows, which holds their checksum.
        with sink.getbuffer() as body:
            whole = replace(record, body_sha256=hashlib.sha256(body).hexdigest())
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(asdict(whole))})
    return sink.getvalue()


def commit(store: Store, unit: Unit, table: pa.Table, record: UnitRecord) -> Commit:
    """Write the unit's object, unless it exists.

    An existing object was written by an earlier attempt: by another writer, or by this one if the
    store's reply to its PUT was lost. Either way the unit is committed.

    Raises `UserError` if the existing object belongs to another job or another tool.
    """
    data = encode(table, record)
    if store.put_if_absent(unit.key, data):
        return Commit(replace(record, body_sha256=body_sha256(data)), is_ours=True)
    existing = committed_record(store, unit, record.fingerprint)
    return Commit(existing, is_ours=existing.attempt == record.attempt)


def committed_record(store: Store, unit: Unit, fingerprint: str) -> UnitRecord:
    """The record of a unit that another attempt has committed. Raises as `commit`."""
    try:
        existing = read_record(store, unit.key)
    except FileNotFoundError as error:
        raise RunFailed(
            f"{store.url}/{unit.key} was deleted during the run; run the command again"
        ) from error
    if (existing.unit, existing.fingerprint) != (unit.key, fingerprint):
        raise UserError(f"{store.url}/{unit.key} belongs to another job; use another output")
    return existing


def commit_repair(store: Store, unit: Unit, answered: pa.Table, repair: Repair) -> Commit:
    """Replace rows of the unit's object with newly answered ones, in one conditional write.

    `answered` holds some of the object's rows, with the same columns. A row that has an answer
    keeps it unless there is a new one.

    Raises `FileNotFoundError` if there is no object, and `RunFailed` if other writers keep changing
    it.
    """
    for _ in range(_MAX_REPAIR_ATTEMPTS):
        version = store.info(unit.key).version
        data = store.read(unit.key)
        before = record_from(pq.read_metadata(io.BytesIO(data)))
        if any(earlier["attempt"] == repair.attempt for earlier in before.repairs):
            # This attempt did write it, and the store's reply was lost. Others may have repaired
            # the object since.
            return Commit(before, is_ours=True)
        rows = _repaired_rows(pq.read_table(io.BytesIO(data)), answered)
        record = _repaired_record(before, rows, answered, repair)
        data = encode(rows, record)
        if store.put_if_match(unit.key, data, version):
            return Commit(replace(record, body_sha256=body_sha256(data)), is_ours=True)
    raise RunFailed(
        f"{store.url}/{unit.key}: other writers keep changing it; run the command again later"
    )


def _repaired_record(
    before: UnitRecord, rows: pa.Table, answered: pa.Table, repair: Repair
) -> UnitRecord:
    counts = answered_counts(answered)
    entry = {
        "run": repair.run,
        "attempt": repair.attempt,
        "changes": dict(repair.changes),
        "num_rows": counts.rows,
    }
    return replace(
        before,
        attempt=repair.attempt,
        rejects=count_rejects(rows),
        input_tokens=before.input_tokens + counts.input_tokens,
        generated_tokens=before.generated_tokens + counts.generated_tokens,
        repairs=(*before.repairs, entry),
    )


def _repaired_rows(existing: pa.Table, answered: pa.Table) -> pa.Table:
    source_rows = existing.column(SOURCE_ROW).to_pylist()
    positions = {row: position for position, row in enumerate(source_rows)}
    had_answer = existing.column(ERROR).is_null().to_pylist()
    has_answer = answered.column(ERROR).is_null().to_pylist()
    order = list(range(existing.num_rows))
    for index, row in enumerate(answered.column(SOURCE_ROW).to_pylist()):
        position = positions[row]
        if has_answer[index] or not had_answer[position]:
            order[position] = existing.num_rows + index
    return pa.concat_tables([existing, answered]).take(pa.array(order, pa.int64()))


def count_rejects(rows: pa.Table) -> dict[str, int]:
    """The number of rejected rows of an output table, by class."""
    classes = pc.struct_field(rows.column(ERROR), "class").drop_null()
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(classes).to_pylist()}


def answered_counts(rows: pa.Table) -> Counts:
    """The counts of some rows of a unit, as they were just answered."""
    return Counts(
        units=1,
        rows=rows.num_rows,
        filtered=0,
        rejects=count_rejects(rows),
        input_tokens=_column_sum(rows, NUM_INPUT_TOKENS),
        generated_tokens=_column_sum(rows, NUM_GENERATED_TOKENS),
    )


def _column_sum(table: pa.Table, column: str) -> int:
    """The sum of an integer column; nulls count as 0."""
    return pc.sum(table.column(column), min_count=0).as_py() or 0
