"""Read the footers of the input's shards. No row is read here.

A shard that cannot be read or that lacks a column becomes a `BadShard`; the caller stops or skips
it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.formatting import listed
from tokenmill.input.file_kinds import HEAD_BYTES, appearance
from tokenmill.input.listing import Listing
from tokenmill.input.parquet_footer import END_BYTES, has_magic, num_end_bytes, read_footer
from tokenmill.plan.plan import BadShard, RowGroup, Shard
from tokenmill.storage.base import ObjectInfo, Store

# A column must have one kind in all shards, since a prompt prints 5 and 5.0, or a text and its
# bytes, differently.
_KINDS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_decimal,
    lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
)
# Objects whose ends are in memory at a time. While the footers of one batch are parsed, the next
# batch is read.
_BATCH_OBJECTS = 512
_NUM_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Footers:
    """The content of all footers: readable shards, bad shards, and the columns' common types."""

    shards: tuple[Shard, ...]
    bad: tuple[BadShard, ...]
    schema: pa.Schema


def read_footers(
    listing: Listing,
    columns: Mapping[str, str],
    measured: frozenset[str],
    *,
    keeps_all: bool = False,
) -> Footers:
    """Read the footers of all shards, concurrently.

    `columns` maps each column that the job needs to the job key that names it; with `keeps_all` it
    needs all columns. `measured` are the columns whose text counts in the estimate. Raises
    `UserError` if no shard can be used, if a column has different types in two shards, and if all
    columns are needed but the shards differ in which they have.
    """
    read, bad = _read_all(listing, measured)
    if keeps_all:
        columns = {**dict.fromkeys(_all_columns(read), "input.keep"), **columns}
    usable = []
    for shard, schema in read:
        counts = Counter(schema.names)
        bad_names = [name for name in columns if counts[name] != 1]
        if bad_names:
            bad.append(BadShard(shard.path, _wrong_column(bad_names[0], columns, schema)))
        else:
            usable.append((shard, schema))
    if not usable:
        raise UserError(f"{listing.store.url}/{bad[0].path}: {bad[0].reason}")
    schema = _common_schema(usable, tuple(columns))
    return Footers(
        tuple(shard for shard, _ in usable), tuple(sorted(bad, key=lambda item: item.path)), schema
    )


def _all_columns(read: Sequence[tuple[Shard, pa.Schema]]) -> Sequence[str]:
    """The columns of the shards, in the first one's order. Raises `UserError` if they differ."""
    if not read:
        return ()
    first, schema = read[0]
    names = frozenset(schema.names)
    for shard, other in read[1:]:
        if other is schema:
            continue
        for has, lacks, odd in (
            (shard, first, frozenset(other.names) - names),
            (first, shard, names - frozenset(other.names)),
        ):
            if odd:
                raise UserError(
                    f'input.keep: "*" needs the same columns in all shards, and {has.path} has a '
                    f"column {min(odd)} that {lacks.path} lacks; list the columns to keep"
                )
    return tuple(dict.fromkeys(schema.names))


def read_shared_columns(listing: Listing) -> Footers:
    """Read all footers; `schema` has the columns that every shard has once, with one type.

    Raises `UserError` if no shard can be read.
    """
    read, bad = _read_all(listing, frozenset())
    if not read:
        raise UserError(f"{listing.store.url}/{bad[0].path}: {bad[0].reason}")
    unique = {id(schema): Counter(schema.names) for _, schema in read}.values()
    fields = []
    for name in read[0][1].names:
        if all(counts[name] == 1 for counts in unique):
            with suppress(UserError):
                fields.append(_common_schema(read, (name,)).field(0))
    return Footers(tuple(shard for shard, _ in read), tuple(bad), pa.schema(fields))


def _read_all(
    listing: Listing, measured: frozenset[str]
) -> tuple[list[tuple[Shard, pa.Schema]], list[BadShard]]:
    """The readable shards with their schemas, and the bad shards."""
    store, objects = listing.store, listing.objects
    batches = [
        objects[start : start + _BATCH_OBJECTS] for start in range(0, len(objects), _BATCH_OBJECTS)
    ]
    readable: list[tuple[Shard, pa.Schema]] = []
    bad: list[BadShard] = []
    # Most shards have equal schemas, and one of hundreds of columns takes 100 KiB.
    unique: dict[pa.Schema, pa.Schema] = {}
    with ThreadPoolExecutor(_NUM_BATCHES) as pool:
        for outcomes in pool.map(lambda batch: _read_batch(store, batch, measured), batches):
            for shard, schema in outcomes:
                if isinstance(shard, Shard):
                    readable.append((shard, unique.setdefault(schema, schema)))
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
    if item.size and not has_magic(end):
        with store.open(item.key) as file:
            kind = appearance(file.read(HEAD_BYTES))
        reason = f"not a readable Parquet file: its end is not PAR1; it looks like {kind}"
        return BadShard(item.key, reason), pa.schema([])
    try:
        num_bytes = num_end_bytes(end, item.size)
        if num_bytes > len(end):
            (end,) = store.read_ends((item,), num_bytes)
        metadata, schema = read_footer(end, item.size, measured)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) if item.size else "it is empty (0 bytes)"
        return BadShard(item.key, f"not a readable Parquet file: {reason}"), pa.schema([])
    chunks = _chunks_of(metadata, schema, measured) if measured else []
    groups = []
    for position in range(metadata.num_row_groups):
        group = metadata.row_group(position)
        num_bytes = sum(group.column(index).total_uncompressed_size for index in chunks)
        groups.append(RowGroup(group.num_rows, num_bytes))
    return Shard(item.key, item.size, item.version, tuple(groups)), schema


def _chunks_of(metadata: pq.FileMetaData, schema: pa.Schema, columns: frozenset[str]) -> list[int]:
    """The positions of the leaves that belong to the columns."""
    names = frozenset(schema.names)
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    # A column's name may contain a dot.
    return [
        index
        for index, path in enumerate(paths)
        if (path if path in names else path.split(".", maxsplit=1)[0]) in columns
    ]


def _wrong_column(name: str, columns: Mapping[str, str], schema: pa.Schema) -> str:
    if name in schema.names:
        return f"{columns[name]} names the column {name}, which occurs more than once"
    return (
        f"{columns[name]} names the column {name}, which does not exist; "
        f"the shard has: {listed(name, schema.names)}"
    )


def _common_schema(usable: Sequence[tuple[Shard, pa.Schema]], columns: Sequence[str]) -> pa.Schema:
    """One type per column. Widths may differ between shards (int32 and int64), kinds may not."""
    fields = []
    for name in columns:
        widest, field = usable[0][0], usable[0][1].field(name)
        for shard, schema in usable[1:]:
            other = schema.field(name)
            if other.type == field.type:
                continue
            common = _common_field(field, other)
            if common is None:
                raise UserError(
                    f"the column {name} is {field.type} in {widest.path} and {other.type} in "
                    f"{shard.path}; make the types equal, or use a separate job for one of them"
                )
            if common.type != field.type:
                widest, field = shard, common
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
