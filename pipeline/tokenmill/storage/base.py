"""Objects under one root: list, read, write once, replace. Local folders and S3.

Knows nothing of jobs, plans or Parquet. The one operation that everything rests on is
`put_if_absent`: it makes an object exist whole or not at all, and says whether it was the first.
On S3 that is one PUT with `If-None-Match: *`; on a local disk a hidden temporary file in the same
folder, fsync, and `os.link`, which fails if the name exists.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from tokenmill.errors import RunFailed, UserError

# Small reads that wait for a network; the figure is for S3, and harmless on a disk.
_READ_THREADS = 32


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the root, size in bytes, and a version that changes with it.

    The version is the ETag on S3 and the modification time in nanoseconds on a local disk.
    """

    key: str
    size: int
    version: str


class Store(Protocol):
    """Objects under `url`; keys are relative to it, with `/` between their parts.

    Raises `UserError` for what the user can mend (rights, bucket, credentials) and `RunFailed` for
    what a later run may survive (network; a full disk is `NoSpace`). A missing object is
    `FileNotFoundError`.
    """

    url: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with the folder `prefix`, in the order of the keys."""

    def info(self, key: str) -> ObjectInfo:
        """One object's size and version."""

    def read(self, key: str) -> bytes:
        """A whole object."""

    def open(self, key: str) -> BinaryIO:
        """An object for random access, closed by the caller."""

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        """The last bytes of each object, or all of a shorter one, many at a time.

        Raises `RunFailed` for an object that is not the one that was listed any more.
        """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Make the object exist, whole, if it does not: True if this call made it."""

    def open_new(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write a new object in pieces; it exists, whole, if the context ends without an error.

        Raises `UserError` where the name is taken, before anything is written or at the end.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write the object whole, whether it exists or not."""

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        """Write the object whole in the place of its `version`: False if it has another by now."""

    def delete(self, key: str) -> None:
        """Have no such object, whether it is there or not."""


def read_each(read: Callable[[ObjectInfo], bytes], items: Sequence[ObjectInfo]) -> list[bytes]:
    """Read many objects at a time; results in the order of the items."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read, items))


def changed_error(where: str) -> RunFailed:
    """The error for an object that was replaced while it was read."""
    return RunFailed(f"{where}: changed while it was read; run the command again")


@contextmanager
def gone_as_run_failed(where: str) -> Iterator[None]:
    """Turn a missing object that a listing had into `RunFailed`."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunFailed(f"{where}: is gone since it was listed; run the command again") from error


def name_taken(place: str) -> UserError:
    """The error for a name that something has already."""
    return UserError(f"{place} is there already; remove it or name another one")
