"""A unit's record: the metadata that its Parquet object holds about itself."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.output.counts import Counts
from tokenmill.storage.base import Store

METADATA_KEY = b"tokenmill"
# Reading footers is mostly waiting for the store.
_FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A unit's metadata, stored as JSON in the key-value metadata of its Parquet object.

    `attempt` identifies the write that made the object. `shard_version` is the version of the input
    shard that was read. `num_rows` counts the object's rows, rejects included; `num_filtered` the
    unit's rows that `input.where` left out; `rejects` the rejected rows by class. `num_reused`
    counts requests that were not sent because an equal request had been: their tokens are counted
    although no engine computed them. `seconds` is the time from the first row sent to the engine to
    the last answer. `written_at` is in Unix seconds, by the writer's clock. `replica` names the
    engine's process; objects of early versions leave it empty. `body_sha256` is the SHA-256 of the
    object's bytes before its footer. `repairs` lists later runs that answered rejected rows again,
    each with its run, its attempt, the job's fields that it changed and the number of rows it
    answered.
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
        """The inverse of `asdict`, also after a round trip through JSON."""
        return cls(**{**facts, "repairs": tuple(facts["repairs"])})

    @property
    def counts(self) -> Counts:
        """What the unit adds to the totals of a run or an output."""
        return Counts(
            units=1,
            rows=self.num_rows,
            filtered=self.num_filtered,
            rejects=self.rejects,
            input_tokens=self.input_tokens,
            generated_tokens=self.generated_tokens,
        )


def body_sha256(data: bytes) -> str:
    """The SHA-256 of a Parquet file's bytes before its footer, as `UnitRecord.body_sha256` has it.

    A Parquet file ends with its footer, the footer's length as four little-endian bytes, and
    `PAR1`.
    """
    footer = int.from_bytes(data[-8:-4], "little")
    return hashlib.sha256(data[: max(len(data) - 8 - footer, 0)]).hexdigest()


def read_record(store: Store, key: str) -> UnitRecord:
    """The record in an object's footer.

    Raises `FileNotFoundError` if there is no object, and `UserError` if tokenmill did not write it.
    """
    try:
        with store.open(key) as file:
            metadata = pq.read_metadata(file)
        record = record_from(metadata)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and not _is_about_the_footer(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{store.url}/{key} was not written by tokenmill ({reason}); "
            "remove it or use another output"
        ) from error
    if record.num_rows != metadata.num_rows:
        raise UserError(
            f"{store.url}/{key} holds {metadata.num_rows:,} rows, but its record says "
            f"{record.num_rows:,}; remove it and run the job again"
        )
    return record


def read_records(store: Store, keys: Sequence[str]) -> Iterator[UnitRecord]:
    """The records of several units, in the order of the keys. Reads only the objects' footers."""
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        yield from pool.map(partial(read_record, store), keys)


def record_from(metadata: pq.FileMetaData) -> UnitRecord:
    """The record in a Parquet footer. Raises `KeyError`, `TypeError` or `ValueError`."""
    return UnitRecord.from_facts(json.loads((metadata.metadata or {})[METADATA_KEY]))


def _is_about_the_footer(error: OSError) -> bool:
    """Whether Arrow raised the error for a footer that it cannot decode: it sets no errno."""
    return type(error) is OSError and error.errno is None
