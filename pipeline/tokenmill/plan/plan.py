"""The plan of an output: its units, and its form as a Parquet file.

A plan is immutable and covers every row of every shard exactly once. It is written once and
contains the job's fingerprint: the plan alone determines which job an output belongs to.
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
    """A row group of a shard. `num_bytes` is the uncompressed size of the prompt's columns."""

    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One input Parquet file. `path` is its key below the input's root, `size` is in bytes."""

    path: str
    size: int
    version: str
    row_groups: tuple[RowGroup, ...]

    @property
    def num_rows(self) -> int:
        """The rows of all row groups."""
        return sum(group.num_rows for group in self.row_groups)


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that is not in the plan, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Contiguous rows of one shard, which are dispatched, committed and resumed as a whole."""

    shard: str
    size: int
    version: str
    first_row: int
    num_rows: int
    estimated_tokens: int

    @property
    def end_row(self) -> int:
        """The position after the last row."""
        return self.first_row + self.num_rows

    @property
    def key(self) -> str:
        """The key of the output object, which identifies the unit."""
        return f"{output_folder(self.shard)}/rows-{self.first_row:012d}-{self.end_row:012d}.parquet"


@dataclass(frozen=True, slots=True)
class Plan:
    """The units of an output, and the job and input that they belong to.

    `answer_fields` are the job's values that the fingerprint covers. `schema` has the columns that
    the job reads, with the common types of all shards.
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
        """The number of shards that have units."""
        return len({unit.shard for unit in self.units})


def plan_to_bytes(plan: Plan) -> bytes:
    """Encode the plan as a Parquet file. Equal plans give equal bytes."""
    metadata = {
        "format": PLAN_FORMAT,
        "input_url": plan.input_url,
        "fingerprint": plan.fingerprint,
        "answer_fields": plan.answer_fields,
        "skipped": [asdict(shard) for shard in plan.skipped],
    }
    # The types of the columns are an Arrow message, since JSON cannot express them.
    types = plan.schema.serialize().to_pybytes()
    table = pa.Table.from_pylist([asdict(unit) for unit in plan.units], schema=_COLUMNS)
    table = table.replace_schema_metadata(
        {b"tokenmill": json.dumps(metadata, sort_keys=True).encode(), b"tokenmill.schema": types}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def plan_from_bytes(data: bytes, where: str) -> Plan:
    """The inverse of `plan_to_bytes`. Raises `UserError` naming `where` if it is not a plan."""
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = json.loads((table.schema.metadata or {})[b"tokenmill"])
        types = (table.schema.metadata or {})[b"tokenmill.schema"]
        plan_format = metadata["format"]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{where}: not a tokenmill plan ({error}); use another output") from error
    if plan_format != PLAN_FORMAT:
        raise UserError(
            f"{where}: has plan format {plan_format}, but this version reads format {PLAN_FORMAT}; "
            "use the tokenmill version that started this output, or another output"
        )
    return Plan(
        input_url=metadata["input_url"],
        fingerprint=metadata["fingerprint"],
        answer_fields=metadata["answer_fields"],
        schema=pa.ipc.read_schema(pa.py_buffer(types)),
        units=tuple(Unit(**row) for row in table.to_pylist()),
        skipped=tuple(BadShard(**entry) for entry in metadata["skipped"]),
    )
