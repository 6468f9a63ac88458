"""Read a Parquet file's footer, so that a damaged one is an error and does not end the process.

If a column's part of the footer is damaged or encrypted, Arrow's Python binding ends the process
(`std::terminate`) when that part is accessed; reading the column's rows raises an error instead.
So this module starts to read rows, from a file that returns no data: Arrow checks the parts of all
columns before it requests data.
"""

import io
import os
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

# A column with a single value takes a byte for some thousands of rows, texts take several per row.
_MAX_ROWS_PER_BYTE = 100_000
# No file that Arrow writes has a larger footer.
_MAX_FOOTER_BYTES = 2**30
_TAIL_BYTES = 8
#: What Arrow reads first. It holds most footers whole, in one request to the store.
END_BYTES = 64 * 2**10


class _FooterOnly(io.RawIOBase):
    """A file that has only its end, and nothing once it `is_shut`.

    A read elsewhere returns no bytes, which makes Arrow raise an error. Raising one here would work
    too, but Arrow formats the traceback, which takes a fifth of the time of a footer.
    """

    def __init__(self, end: bytes, size: int) -> None:
        self._end = end
        self._end_at = size - len(end)
        self._size = size
        self._position = 0
        self.is_shut = False
        self.was_data_requested = False

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
            self.was_data_requested = True
            return b""
        start = self._position - self._end_at
        data = self._end[start:] if size < 0 else self._end[start : start + size]
        self._position += len(data)
        return data


def has_magic(end: bytes) -> bool:
    """Whether a file with these last bytes ends like a Parquet file, with a plain footer or not."""
    return end.endswith((b"PAR1", b"PARE"))


def num_end_bytes(end: bytes, size: int) -> int:
    """The size of a file's footer, read from the file's last bytes.

    Raises `ValueError` if the footer would be longer than the file.
    """
    length = int.from_bytes(end[-_TAIL_BYTES:][:4], "little")
    if length > min(size, _MAX_FOOTER_BYTES):
        raise ValueError(f"its footer of {length:,} bytes is longer than the file")
    return min(length + _TAIL_BYTES, size)


def read_footer(
    end: bytes, size: int, columns: Collection[str]
) -> tuple[pq.FileMetaData, pa.Schema]:
    """Parse the footer at the `end` of a file of `size` bytes. Returns it with its Arrow schema.

    Of the columns, only the metadata of `columns` are safe to access. Raises `pa.ArrowException`,
    `OSError` or `ValueError` for a file that cannot be read.
    """
    source = _FooterOnly(end, size)
    reader = pq.ParquetFile(source, pre_buffer=True)
    metadata = reader.metadata
    schema = metadata.schema.to_arrow_schema()
    _check_counts(metadata, size)
    checked = [name for name in schema.names if name in columns]
    if checked and metadata.num_row_groups:
        source.is_shut = True
        try:
            reader.read_row_groups(range(metadata.num_row_groups), checked, use_threads=False)
        except (pa.ArrowException, OSError):
            # Arrow has checked the footer, and requests rows now.
            if not source.was_data_requested:
                raise
    return metadata, schema


def _check_counts(metadata: pq.FileMetaData, size: int) -> None:
    """Raise `ValueError` for a footer whose row counts are impossible."""
    counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise ValueError(
            f"its row groups have {sum(counts):,} rows, its footer says {metadata.num_rows:,}"
        )
    if metadata.num_rows > size * _MAX_ROWS_PER_BYTE:
        raise ValueError(f"its footer claims {metadata.num_rows:,} rows in {size:,} bytes")
