"""A unit's table on its way between processes: one row of an Arrow table, opaque to Ray Data.

Ray Data sees only blocks of exactly one row. So it cannot split a large unit, or drop one whose
rows were all filtered out, and it changes no column's type or metadata between two stages.
"""

import pyarrow as pa

_SCHEMA = pa.schema([pa.field("unit", pa.int64()), pa.field("rows", pa.large_binary())])


def to_block(unit: int, rows: pa.Table) -> pa.Table:
    """The block of the unit at position `unit` of the run."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    # The binary cell is built around the buffer, without a second copy of a large unit.
    buffer = sink.getvalue()
    offsets = pa.array([0, buffer.size], pa.int64()).buffers()[1]
    cell = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])
    return pa.Table.from_arrays([pa.array([unit], pa.int64()), cell], schema=_SCHEMA)


def from_block(block: pa.Table) -> list[tuple[int, pa.Table]]:
    """The units in a block, with their positions; their rows are not copied."""
    cells = zip(block.column("unit"), block.column("rows"), strict=True)
    return [(unit.as_py(), pa.ipc.open_stream(rows.as_buffer()).read_all()) for unit, rows in cells]
