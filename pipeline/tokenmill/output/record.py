"""A unit's record: what its object says about itself in the Parquet metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.storage.base import Store

METADATA_KEY = b"tokenmill"


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What an object says of itself, in its Parquet key-value metadata under `tokenmill`.

    `attempt` names the one write that made it; `shard_version` the input that was read; `num_rows`
    counts the object's rows, rejects included, `num_filtered` the unit's rows that `input.where`
    left out; `rejects` counts the rejected rows by class; `num_reused` the requests that were not
    sent, as others had asked the same: their tokens are counted, though no engine made them;
    `written_at` is in Unix seconds, by the writer's clock.
    `replica` names the engine's process; it is empty in objects of versions that did not tell.
    `body_sha256` is the SHA-256 of the object's bytes before its footer. `repairs` tells of later
    runs that answered rejected rows again, each with its run, its attempt, the job's fields that it
    changed and the number of rows that it answered.
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
    shard_version: str
    num_rows: int
    num_filtered: int
    rejects: Mapping[str, int]
    input_tokens: int
    generated_tokens: int
    seconds: float
    num_reused: int = 0
    written_at: float = 0.0
    replica: str = ""
    body_sha256: str = ""
    repairs: tuple[Mapping[str, Any], ...] = field(default=())

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "UnitRecord":
        """The inverse of `asdict`, also after a way through JSON."""
        return cls(**{**facts, "repairs": tuple(facts["repairs"])})

    @property
    def num_rejected(self) -> int:
        """Rows without an answer."""
        return sum(self.rejects.values())


def body_sha256(data: bytes) -> str:
    """The checksum that `UnitRecord.body_sha256` of these bytes of an object must be.

    A Parquet file ends with its footer, the footer's length as four little-endian bytes, `PAR1`.
    """
    footer = int.from_bytes(data[-8:-4], "little")
    return hashlib.sha256(data[: max(len(data) - 8 - footer, 0)]).hexdigest()


def read_record(store: Store, key: str) -> UnitRecord:
    """The record in an object's footer. Raises `UserError` if it is no object of ours."""
    try:
        with store.open(key) as file:
            metadata = pq.read_metadata(file)
        record = record_from(metadata)
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


def record_from(metadata: pq.FileMetaData) -> UnitRecord:
    """The record in a footer that was read. Raises `KeyError`, `TypeError` or `ValueError`."""
    return UnitRecord.from_facts(json.loads((metadata.metadata or {})[METADATA_KEY]))


def _is_about_the_footer(error: OSError) -> bool:
    """Arrow's word for a footer that it cannot decode is an OSError; only a system's has more."""
    return type(error) is OSError and error.errno is None
