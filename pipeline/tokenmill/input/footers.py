"""Find the input's shards and read their footers; no row is read here.

A shard that cannot be read, or lacks a column, is a `BadShard`: the caller stops or skips.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.input.listing import Listing
from tokenmill.input.parquet_footer import END_BYTES, num_end_bytes, read_footer
from tokenmill.plan.plan import BadShard, RowGroup, Shard
from tokenmill.storage.base import ObjectInfo, Store

# What a prompt says of a value: 5 is not 5.0, and a text is not its bytes.
_KINDS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_decimal,
    lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
)
# Objects whose ends are in memory at a time, and how many such batches: while the footers of one
# are looked at, the other's are read.
_BATCH = 512
_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Footers:
    """What all footers tell: the readable shards, the others, and the columns' common types."""

    shards: tuple[Shard, ...]
    bad: tuple[BadShard, ...]
    schema: pa.Schema


def read_footers(listing: Listing, columns: Mapping[str, str], measured: frozenset[str]) -> Footers:
    """The footers of all shards, read at once.

    `columns` maps each column that the job needs to the place that names it; `measured` are those
    whose text counts into the estimate. Raises `UserError` if no shard can be used or a column's
    type is not the same in all.
    """
    read, bad = _read_all(listing, measured)
    usable = []
    for shard, schema in read:
        wrong = [name for name in columns if schema.names.count(name) != 1]
        if wrong:
            bad.append(BadShard(shard.path, _wrong_column(wrong[0], columns, schema)))
        else:
            usable.append((shard, schema))
    if not usable:
        raise UserError(f"{listing.store.url}/{bad[0].path}: {bad[0].reason}")
    schema = _common_schema(usable, tuple(columns))
    return Footers(
        tuple(shard for shard, _ in usable), tuple(sorted(bad, key=lambda item: item.path)), schema
    )


def read_shared_columns(listing: Listing) -> Footers:
    """All footers, and the columns that every readable shard has: once, and of one type.

    Raises `UserError` if no shard can be read.
    """
    read, bad = _read_all(listing, frozenset())
    if not read:
        raise UserError(f"{listing.store.url}/{bad[0].path}: {bad[0].reason}")
    fields = []
    for name in dict.fromkeys(read[0][1].names):
        if all(schema.names.count(name) == 1 for _, schema in read):
            with suppress(UserError):
                fields.append(_common_schema(read, (name,)).field(0))
    return Footers(tuple(shard for shard, _ in read), tuple(bad), pa.schema(fields))


def _read_all(
    listing: Listing, measured: frozenset[str]
) -> tuple[list[tuple[Shard, pa.Schema]], list[BadShard]]:
    """The readable shards with their schemas, and the others."""
    store, objects = listing.store, listing.objects
    batches = [objects[at : at + _BATCH] for at in range(0, len(objects), _BATCH)]
    readable: list[tuple[Shard, pa.Schema]] = []
    bad: list[BadShard] = []
    # Most shards have the same columns, and a schema of hundreds of them takes 100 KiB.
    known: dict[pa.Schema, pa.Schema] = {}
    with ThreadPoolExecutor(_BATCHES) as pool:
        for outcomes in pool.map(lambda batch: _read_batch(store, batch, measured), batches):
            for shard, schema in outcomes:
                if isinstance(shard, Shard):
                    readable.append((shard, known.setdefault(schema, schema)))
                else:
                    bad.append(shard)
    return readable, bad


def _read_batch(
    store: Store, items: Sequence[ObjectInfo], measured: frozenset[str]
) -> list[tuple[Shard | BadShard, pa.Schema]]:
    ends = store.read_ends(items, END_BYTES)
    return [_read_footer(store, item, end, measured) for item, end in zip(items, ends, strict=True)]


def _read_footer(
    store: Store, item: ObjectInfo, end: bytes, measured: frozenset[str]
) -> tuple[Shard | BadShard, pa.Schema]:
    try:
        num_bytes = num_end_bytes(end, item.size)
        if num_bytes > len(end):
            (end,) = store.read_ends((item,), num_bytes)
        metadata, schema = read_footer(end, item.size, measured)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) if item.size else "it is empty (0 bytes)"
        return BadShard(item.key, f"not a readable Parquet file: {reason}"), pa.schema([])
    chunks = [
        index
        for index in range(metadata.num_columns)
        if _top_level(metadata.schema.column(index).path, schema) in measured
    ]
    groups = []
    for position in range(metadata.num_row_groups):
        group = metadata.row_group(position)
        num_bytes = sum(group.column(index).total_uncompressed_size for index in chunks)
        groups.append(RowGroup(group.num_rows, num_bytes))
    return Shard(item.key, item.size, item.version, tuple(groups)), schema


def _top_level(path: str, schema: pa.Schema) -> str:
    """The column that a leaf belongs to; a dot may be part of a column's own name."""
    return path if path in schema.names else path.split(".", maxsplit=1)[0]


def _wrong_column(name: str, columns: Mapping[str, str], schema: pa.Schema) -> str:
    if name in schema.names:
        return f"{columns[name]} names the column {name}, which is there more than once"
    return (
        f"{columns[name]} names the column {name}, which is not there; "
        f"there are: {', '.join(schema.names)}"
    )


def _common_schema(usable: Sequence[tuple[Shard, pa.Schema]], columns: Sequence[str]) -> pa.Schema:
    """One type per column. Widths may differ (int32 and int64); kinds may not."""
    fields = []
    for name in columns:
        first, field = usable[0][0], usable[0][1].field(name)
        for shard, schema in usable[1:]:
            other = schema.field(name)
            if other.type == field.type:
                continue
            common = _common_field(field, other)
            if common is None:
                raise UserError(
                    f"the column {name} is {field.type} in {first.path} and {other.type} in "
                    f"{shard.path}; make the types equal, or give one of the shards a job of its "
                    "own"
                )
            if common.type != field.type:
                first, field = shard, common
        fields.append(field.with_nullable(True).remove_metadata())
    return pa.schema(fields)


def _common_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    try:
        common = pa.unify_schemas(
            [pa.schema([one]), pa.schema([other])], promote_options="permissive"
        ).field(0)
    except pa.ArrowException:
        return None
    for kind in (one.type, other.type):
        if kind != pa.null() and any(is_of(kind) != is_of(common.type) for is_of in _KINDS):
            return None
    return common
