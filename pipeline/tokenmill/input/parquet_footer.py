"""A Parquet file's footer, read so that a damaged one is an error and not the end of the process.

Arrow's Python binding ends the process (`std::terminate`) where a footer's part on one column is
damaged or encrypted, as soon as it is looked at; reading that column's rows raises instead. So a
read is begun of which no byte of data is given out: Arrow looks at all columns before it asks.
"""

import io
import os
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

# A column of one value takes a byte for some thousands of rows; texts take several for each.
_MOST_ROWS_PER_BYTE = 100_000
# What every file that Arrow writes keeps below.
_MOST_FOOTER_BYTES = 2**30
_TAIL_BYTES = 8
#: What Arrow reads first; of most footers it is the whole, and one request of the store.
END_BYTES = 64 * 2**10


class _FooterAlone(io.RawIOBase):
    """A file of which only the end is there, and nothing once it `is_shut`.

    What is asked for beyond that comes out empty, which ends the read in an error of Arrow's. An
    exception from here would too, but Arrow writes its traceback down: a fifth of a footer's time.
    """

    def __init__(self, end: bytes, size: int) -> None:
        self._end = end
        self._end_at = size - len(end)
        self._size = size
        self._position = 0
        self.is_shut = False
        self.was_asked_for_data = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if self.is_shut or self._position < self._end_at:
            self.was_asked_for_data = True
            return b""
        start = self._position - self._end_at
        data = self._end[start:] if size < 0 else self._end[start : start + size]
        self._position += len(data)
        return data


def num_end_bytes(end: bytes, size: int) -> int:
    """How many of a file's last bytes are its footer, by the last of them.

    Raises `ValueError` for more than the file has.
    """
    length = int.from_bytes(end[-_TAIL_BYTES:][:4], "little")
    if length > min(size, _MOST_FOOTER_BYTES):
        raise ValueError(f"its footer of {length:,} bytes is longer than the file")
    return min(length + _TAIL_BYTES, size)


def read_footer(
    end: bytes, size: int, columns: Collection[str]
) -> tuple[pq.FileMetaData, pa.Schema]:
    """The footer at the end of a file of `size` bytes, and its Arrow schema.

    What it says of `columns` may be looked at. Raises `pa.ArrowException`, `OSError` or
    `ValueError` for a file that cannot be read.
    """
    source = _FooterAlone(end, size)
    reader = pq.ParquetFile(source, pre_buffer=True)
    metadata = reader.metadata
    schema = metadata.schema.to_arrow_schema()
    _refuse_wrong_counts(metadata, size)
    wanted = [name for name in schema.names if name in columns]
    if wanted and metadata.num_row_groups:
        source.is_shut = True
        try:
            reader.read_row_groups(range(metadata.num_row_groups), wanted, use_threads=False)
        except (pa.ArrowException, OSError):
            # Arrow has looked at the footer, and wants rows now.
            if not source.was_asked_for_data:
                raise
    return metadata, schema


def _refuse_wrong_counts(metadata: pq.FileMetaData, size: int) -> None:
    """Raise `ValueError` for a footer whose counts cannot be."""
    counts = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise ValueError(
            f"its row groups have {sum(counts):,} rows, its footer says {metadata.num_rows:,}"
        )
    if metadata.num_rows > size * _MOST_ROWS_PER_BYTE:
        raise ValueError(f"it says that it has {metadata.num_rows:,} rows in {size:,} bytes")
