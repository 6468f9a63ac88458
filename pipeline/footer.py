"""A Parquet file's footer, read so that a damaged one is an error and not the end of the process.

Arrow's Python binding ends the process (`std::terminate`) where a footer's part on one column is
damaged or encrypted, as soon as it is looked at; reading that column's rows raises instead. So a
read is begun of which no byte of data is given out: Arrow looks at all columns before it asks.
"""

import io
import os
from collections.abc import Collection
from contextlib import suppress
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

# A column of one value takes a byte for some thousands of rows; texts take several for each.
_MOST_ROWS_PER_BYTE = 100_000
# What every file that Arrow writes keeps below.
_MOST_FOOTER_BYTES = 2**30
_TAIL_BYTES = 8
# What Arrow reads first; of most footers it is the whole, and one request of the store.
_END_BYTES = 64 * 2**10


class _DataAsked(Exception):
    """Arrow has looked at the footer, and wants rows now."""


class _FooterAlone(io.RawIOBase):
    """A file of which nothing more can be read once it `is_shut`; its end is read at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._end_at = file.seek(max(self.size - _END_BYTES, 0))
        self._end = file.read(_END_BYTES)
        self._position = 0
        self.is_shut = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if self.is_shut:
            raise _DataAsked
        if self._position >= self._end_at:
            start = self._position - self._end_at
            data = self._end[start:] if size < 0 else self._end[start : start + size]
        else:
            self._file.seek(self._position)
            data = self._file.read(size)
        self._position += len(data)
        return data


def read_footer(file: BinaryIO, columns: Collection[str]) -> tuple[pq.FileMetaData, pa.Schema]:
    """A footer and its Arrow schema; what it says of `columns` may be looked at.

    Raises `pa.ArrowException`, `OSError` or `ValueError` for a file that cannot be read.
    """
    source = _FooterAlone(file)
    size = source.size
    source.seek(max(size - _TAIL_BYTES, 0))
    length = int.from_bytes(source.read(4), "little")
    if length > min(size, _MOST_FOOTER_BYTES):
        raise ValueError(f"its footer of {length:,} bytes is longer than the file")
    reader = pq.ParquetFile(source, pre_buffer=True)
    metadata = reader.metadata
    schema = metadata.schema.to_arrow_schema()
    _refuse_wrong_counts(metadata, size)
    wanted = [name for name in schema.names if name in columns]
    if wanted and metadata.num_row_groups:
        source.is_shut = True
        with suppress(_DataAsked):
            reader.read_row_groups(range(metadata.num_row_groups), wanted, use_threads=False)
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
