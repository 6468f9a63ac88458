"""A run cut into units: pure functions from shards' footers to a `Plan`, and back from its file.

A plan is immutable and covers every row of every shard exactly once. It is written once, and it
carries the job's fingerprint, so that it alone decides what an output is the output of.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

PLAN_FORMAT = 1

#: Every key below `data/` that is ours.
UNIT_KEY = re.compile(r"data/(?:[A-Za-z0-9.=+-]|%[0-9A-F]{2}|[_/])+/rows-\d{12}-\d{12}\.parquet")

# A name's limit on the usual file systems is 255 bytes; percent-encoding triples most of Unicode.
_LONGEST_NAME = 200

# Bytes of text a token, for estimates only: English runs at 4 to 5 with the usual vocabularies.
_BYTES_PER_TOKEN = 4
# No unit holds more rows than this, however short they are: a unit is built in memory.
_MOST_ROWS = 100_000

# Of a replica: rows for its engine, and units of which only the longest rows are left.
_BATCHES_IN_FLIGHT = 8
_UNITS_AT_THEIR_END = 3
# Each of them waits in a thread.
_MOST_UNITS_IN_FLIGHT = 64

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
class UnitSize:
    """How large units are cut: exactly `rows`, or about `tokens`."""

    rows: int | None = None
    tokens: int | None = None


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


def output_folder(shard: str) -> str:
    """`data/` plus the shard's path without its suffix, as a key that every store and reader takes.

    Everything but letters, digits and `.=+-_/` is percent-encoded, as are parts that a store would
    resolve (`..`) and leading dots and underscores, at which readers skip a folder. Of a name that
    no disk would take, the end is a hash. Injective up to the suffix.
    """
    stem = re.sub(r"\.(parquet|pq|parq)$", "", shard, flags=re.IGNORECASE)
    return "/".join(["data", *(_encode(part) for part in stem.split("/"))])


def _encode(part: str) -> str:
    encoded = quote(part, safe="=+").replace("~", "%7E")
    if encoded[:1] in (".", "_"):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > _LONGEST_NAME:
        digest = hashlib.sha256(part.encode()).hexdigest()[:32]
        start = re.sub(r"%.?$", "", encoded[: _LONGEST_NAME - 40])
        # A `-` is never encoded elsewhere: no other name looks like this one.
        return f"{start}%2D{digest}"
    # An empty part (`a//b`) would vanish on a local disk.
    return encoded or "%00"


def cut(shard: Shard, size: UnitSize, overhead_tokens: int) -> Iterator[Unit]:
    """The units of one shard, covering each of its rows once, in order.

    By tokens, units follow row groups (so that few groups are read twice): small groups are
    joined, large ones split evenly. `overhead_tokens` is what each row costs beyond its text:
    the template and the answer.
    """
    if size.rows is not None:
        pieces = list(_equal_rows(shard.row_groups, size.rows, overhead_tokens))
    else:
        pieces = list(_near_tokens(shard.row_groups, size.tokens or 1, overhead_tokens))
    first_row = 0
    for num_rows, tokens in pieces:
        yield Unit(shard.path, shard.size, shard.version, first_row, num_rows, tokens)
        first_row += num_rows


def _tokens(group: RowGroup, overhead_tokens: int) -> int:
    return group.num_bytes // _BYTES_PER_TOKEN + group.num_rows * overhead_tokens


def _equal_rows(
    groups: Sequence[RowGroup], rows: int, overhead_tokens: int
) -> Iterator[tuple[int, int]]:
    total = sum(group.num_rows for group in groups)
    tokens = sum(_tokens(group, overhead_tokens) for group in groups)
    for first in range(0, total, rows):
        num_rows = min(rows, total - first)
        yield num_rows, tokens * num_rows // total


def _near_tokens(
    groups: Sequence[RowGroup], tokens: int, overhead_tokens: int
) -> Iterator[tuple[int, int]]:
    open_rows = open_tokens = 0
    for group in groups:
        group_tokens = _tokens(group, overhead_tokens)
        fits = open_tokens + group_tokens <= tokens and open_rows + group.num_rows <= _MOST_ROWS
        if open_rows and not fits:
            yield open_rows, open_tokens
            open_rows = open_tokens = 0
        parts = max(math.ceil(group_tokens / tokens), math.ceil(group.num_rows / _MOST_ROWS))
        if parts > 1:
            yield from _split_evenly(group.num_rows, group_tokens, min(parts, group.num_rows))
        else:
            open_rows += group.num_rows
            open_tokens += group_tokens
    if open_rows:
        yield open_rows, open_tokens


def _split_evenly(num_rows: int, tokens: int, parts: int) -> Iterator[tuple[int, int]]:
    for part in range(parts):
        rows = num_rows * (part + 1) // parts - num_rows * part // parts
        yield rows, tokens * rows // num_rows


def plan_units(shards: Sequence[Shard], size: UnitSize, overhead_tokens: int) -> tuple[Unit, ...]:
    """All units, shard by shard. Raises `UserError` where two shards would share an output."""
    refuse_shared_folders(shard.path for shard in shards)
    return tuple(unit for shard in shards for unit in cut(shard, size, overhead_tokens))


def refuse_shared_folders(paths: Iterable[str]) -> None:
    """Raise `UserError` for two shards whose output would stand in the same folder."""
    folders: dict[str, str] = {}
    for path in paths:
        other = folders.setdefault(output_folder(path), path)
        if other != path:
            raise UserError(
                f"the shards {other} and {path} differ only in their suffix and would "
                f"write to the same folder {output_folder(path)}; rename one"
            )


def units_in_flight(units: Sequence[Unit], max_num_seqs: int) -> int:
    """How many units a replica has at a time, so that its engine's batch is always full.

    A unit's place is taken until its last row is answered, and with log-normal lengths (sigma 1)
    the longest of a hundred rows takes ten times the mean. Eight batches and three units keep the
    batch full then. Four batches leave it so empty that a run of 64 sequences takes 1.6 times as
    long (`python -m bench tail`). More would only wait: what a slow replica has been given is no
    other's any more.
    """
    rows_per_unit = max(1, sum(unit.num_rows for unit in units) // len(units))
    ahead = math.ceil(_BATCHES_IN_FLIGHT * max_num_seqs / rows_per_unit)
    return min(_MOST_UNITS_IN_FLIGHT, ahead + _UNITS_AT_THEIR_END)


def first_rows(shards: Sequence[Shard], limit: int) -> tuple[Shard, ...]:
    """The shards, the last one cut short, that hold the first `limit` rows."""
    kept = []
    for shard in shards:
        groups = []
        for group in shard.row_groups:
            rows = min(group.num_rows, limit)
            limit -= rows
            if rows:
                groups.append(RowGroup(rows, group.num_bytes * rows // group.num_rows))
        if groups:
            kept.append(replace(shard, row_groups=tuple(groups)))
    return tuple(kept)


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
