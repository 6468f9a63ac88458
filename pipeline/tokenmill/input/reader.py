"""Read a unit's rows from its shard: filtered, with the needed columns and each row's position.

Memory is bounded by the unit and one batch, whatever the size of the shard's row groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill.errors import RunFailed
from tokenmill.input.parquet_footer import open_parquet
from tokenmill.input.where import where_expression
from tokenmill.plan.diff import changed_shard_error
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.storage.base import Store

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """The store that units are read from, the columns to read, and the filter of rows.

    `schema` has the needed columns with the common types of all shards.
    """

    store: Store
    schema: pa.Schema
    where: str | None

    def read(self, unit: Unit) -> pa.Table:
        """Read the unit's rows that pass the filter: the columns of `schema` and `ROW_COLUMN`.

        Raises `UserError` if the shard has changed since it was planned, and `RunFailed` if it
        cannot be read.
        """
        self._check_unchanged(unit)
        try:
            with self.store.open(unit.shard) as file:
                return self._read_rows(file, unit)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise RunFailed(
                f"{self.store.url}/{unit.shard}: rows {unit.first_row} to {unit.end_row} cannot be "
                f"read: {reason}; repair the shard, or start a new output without it"
            ) from error

    def _check_unchanged(self, unit: Unit) -> None:
        try:
            current = self.store.info(unit.shard)
        except FileNotFoundError:
            raise changed_shard_error(self.store, unit.shard, "has been deleted") from None
        if (current.size, current.version) != (unit.size, unit.version):
            raise changed_shard_error(self.store, unit.shard, "has changed")

    def _read_rows(self, file: BinaryIO, unit: Unit) -> pa.Table:
        parquet = open_parquet(file)
        where = None if self.where is None else where_expression(self.where, self.schema)
        schema = self.schema.append(pa.field(ROW_COLUMN, pa.int64(), nullable=False))
        pieces = [schema.empty_table()]
        # With the common types: in a shard of nulls, a column of texts has another type.
        possible = None if where is None else _possible_groups(file, where, self.schema)
        for group, group_start in _overlapping_groups(parquet, unit):
            if possible is not None and group not in possible:
                continue
            position = group_start
            for batch in parquet.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=self.schema.names
            ):
                piece = _slice(pa.Table.from_batches([batch]), position, unit)
                position += batch.num_rows
                if piece.num_rows:
                    # The Parquet reader returns columns in the file's order.
                    piece = _copied(piece.select(schema.names)).cast(schema)
                    pieces.append(piece if where is None else piece.filter(where))
                if position >= unit.end_row:
                    break
        return pa.concat_tables(pieces).combine_chunks()


def _overlapping_groups(parquet: pq.ParquetFile, unit: Unit) -> Iterator[tuple[int, int]]:
    """Yield the row groups that contain rows of the unit, with each one's first row."""
    start = 0
    for group in range(parquet.metadata.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        if start < unit.end_row and end > unit.first_row:
            yield group, start
        start = end


def _possible_groups(
    file: BinaryIO, where: pc.Expression, schema: pa.Schema
) -> frozenset[int] | None:
    """The row groups whose statistics do not rule the filter out; None if any may pass."""
    # It imports pandas, which takes half a second; `tokenmill --help` must not wait for it.
    import pyarrow.dataset as ds  # noqa: PLC0415

    fragment = ds.ParquetFileFormat().make_fragment(file)
    try:
        kept = fragment.subset(where, schema=schema)
    except pa.ArrowNotImplementedError:
        # The statistics have a type that Arrow cannot compare, such as UUID.
        return None
    return frozenset(group.id for group in kept.row_groups)


def _slice(table: pa.Table, position: int, unit: Unit) -> pa.Table:
    """The unit's part of `table`, whose first row is row `position` of the shard."""
    first = max(unit.first_row - position, 0)
    end = min(unit.end_row - position, table.num_rows)
    piece = table.slice(first, max(end - first, 0))
    rows = pa.array(range(position + first, position + first + piece.num_rows), pa.int64())
    return piece.append_column(ROW_COLUMN, rows)


def _copied(piece: pa.Table) -> pa.Table:
    """The rows without the others of their batch: Arrow cannot cast slices of some nested types."""
    return pa.concat_tables([piece.schema.empty_table(), piece]).combine_chunks()
