"""A unit's result, whole or not at all: encode in memory, one conditional create, done.

If the object is there the unit is done; if it is not, it is not. A second writer of the same
unit (a retry, a zombie, another driver) finds the object and drops its own.
"""

import io
import json
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunFailed, UserError
from pipeline.plan import Unit
from pipeline.store import Store

_METADATA_KEY = b"tokenmill"
# Large enough to compress well, small enough that readers prune and split.
_ROW_GROUP_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What an object says of itself, in its Parquet key-value metadata under `tokenmill`.

    `attempt` names the one write that made it; `num_rows` counts the object's rows, rejects
    included, `num_filtered` the unit's rows that `input.where` left out.
    """

    version: str
    run: str
    attempt: str
    fingerprint: str
    model: str
    revision: str | None
    engine: str
    engine_version: str
    unit: str
    num_rows: int
    num_filtered: int
    num_rejected: int
    input_tokens: int
    generated_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """The outcome of a commit: the record of the object that stands, and whether it is ours."""

    record: UnitRecord
    is_ours: bool


def encode(table: pa.Table, record: UnitRecord) -> bytes:
    """The object's bytes: Parquet, zstd, the record in its metadata."""
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(record))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
    return sink.getvalue()


def commit(store: Store, unit: Unit, table: pa.Table, record: UnitRecord) -> Commit:
    """Make the unit's object exist. Raises `UserError` if something foreign has its name.

    An object that is there already was made by an earlier attempt: by another writer, or by this
    very one if the store's answer to its PUT was lost. Either way the unit is committed.
    """
    if store.create(unit.key, encode(table, record)):
        return Commit(record, is_ours=True)
    try:
        standing = read_record(store, unit.key)
    except FileNotFoundError as error:
        raise RunFailed(
            f"{store.url}/{unit.key} was there and is gone; run the command again"
        ) from error
    if (standing.unit, standing.fingerprint) != (unit.key, record.fingerprint):
        raise UserError(f"{store.url}/{unit.key}: belongs to another job; use another output")
    return Commit(standing, is_ours=standing.attempt == record.attempt)


def read_record(store: Store, key: str) -> UnitRecord:
    """The record in an object's footer. Raises `UserError` if it is no object of ours."""
    try:
        with store.open(key) as file:
            metadata = pq.read_metadata(file)
        record = UnitRecord(**json.loads((metadata.metadata or {})[_METADATA_KEY]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and not _is_about_the_footer(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{store.url}/{key}: not written by tokenmill ({reason}); "
            "remove it or use another output"
        ) from error
    if record.num_rows != metadata.num_rows:
        raise UserError(
            f"{store.url}/{key}: holds {metadata.num_rows} rows, its record says "
            f"{record.num_rows}; remove it and run again"
        )
    return record


def _is_about_the_footer(error: OSError) -> bool:
    """Arrow's word for a footer that it cannot decode is an OSError; only a system's has more."""
    return type(error) is OSError and error.errno is None
