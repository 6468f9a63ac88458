"""A run cut into units: pure functions from shards' footers to a `Plan`, and back from its file.

A plan is immutable and covers every row of every shard exactly once. It is written once, and it
carries the job's fingerprint, so that it alone decides what an output is the output of.
"""

import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.plan.keys import output_folder

PLAN_FORMAT = 1
_COLUMNS = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("estimated_tokens", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What a footer tells of one row group; `num_bytes` counts the prompt's columns, unpacked."""

    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One input Parquet file: its key below the input's root, size in bytes, version, groups."""

    path: str
    size: int
    version: str
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that was left out of the plan, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Contiguous rows of one shard: what is dispatched, committed and resumed as a whole."""

    shard: str
    size: int
    version: str
    first_row: int
    num_rows: int
    estimated_tokens: int

    @property
    def end_row(self) -> int:
        """The row behind the last one."""
        return self.first_row + self.num_rows

    @property
    def key(self) -> str:
        """The output object's key; it is the unit's identity."""
        return f"{output_folder(self.shard)}/rows-{self.first_row:012d}-{self.end_row:012d}.parquet"


@dataclass(frozen=True, slots=True)
class Plan:
    """The units of an output, and what they are units of.

    `answer_fields` is what the job's fingerprint covers; `schema` the Arrow types of the columns
    that the job reads, the same for all shards.
    """

    input_url: str
    fingerprint: str
    answer_fields: dict[str, Any]
    schema: pa.Schema
    units: tuple[Unit, ...]
    skipped: tuple[BadShard, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    @property
    def num_shards(self) -> int:
        """The shards that units are of."""
        return len({unit.shard for unit in self.units})


def plan_to_bytes(plan: Plan) -> bytes:
    """The plan as a Parquet file; equal plans give equal bytes."""
    metadata = {
        "format": PLAN_FORMAT,
        "input_url": plan.input_url,
        "fingerprint": plan.fingerprint,
        "answer_fields": plan.answer_fields,
        "skipped": [asdict(shard) for shard in plan.skipped],
    }
    # The columns' types lie beside it as an Arrow message: JSON has no words for them.
    types = plan.schema.serialize().to_pybytes()
    table = pa.Table.from_pylist([asdict(unit) for unit in plan.units], schema=_COLUMNS)
    table = table.replace_schema_metadata(
        {b"tokenmill": json.dumps(metadata, sort_keys=True).encode(), b"tokenmill.schema": types}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def plan_from_bytes(data: bytes, where: str) -> Plan:
    """The inverse of `plan_to_bytes`. Raises `UserError` naming `where` if it is no plan."""
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = json.loads((table.schema.metadata or {})[b"tokenmill"])
        types = (table.schema.metadata or {})[b"tokenmill.schema"]
        plan_format = metadata["format"]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{where}: not a tokenmill plan ({error}); use another output") from error
    if plan_format != PLAN_FORMAT:
        raise UserError(
            f"{where}: written in plan format {plan_format}, this version reads "
            f"{PLAN_FORMAT}; use the tokenmill that began this output, or another output"
        )
    return Plan(
        input_url=metadata["input_url"],
        fingerprint=metadata["fingerprint"],
        answer_fields=metadata["answer_fields"],
        schema=pa.ipc.read_schema(pa.py_buffer(types)),
        units=tuple(Unit(**row) for row in table.to_pylist()),
        skipped=tuple(BadShard(**entry) for entry in metadata["skipped"]),
    )
