"""The interface of all stores: objects under one root, in a local folder, S3 or memory.

A store knows nothing of jobs, plans or Parquet. Everything rests on one operation,
`put_if_absent`: it creates an object whole or not at all, and returns whether this call created it.
On S3 that is one PUT with `If-None-Match: *`. On a local disk it is a hidden temporary file in the
same folder, fsync, and `os.link`, which fails if the name exists.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from tokenmill.errors import RunFailed, UserError

# For small reads over a network; harmless on a disk.
_READ_THREADS = 32


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's key below the root, its size in bytes, and its version.

    Every write changes the version: the ETag on S3, the modification time in nanoseconds on a disk,
    a counter in memory.
    """

    key: str
    size: int
    version: str


class Store(Protocol):
    """Objects under `url`. A key is relative to it, with `/` between its parts.

    Methods raise `FileNotFoundError` for a missing object, `UserError` for what the user can fix
    (rights, bucket, credentials), and `RunFailed` for what may be gone in a later run (network; a
    full disk is `NoSpace`).
    """

    url: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects in the folder `prefix`, at any depth, in the order of their keys."""

    def info(self, key: str) -> ObjectInfo:
        """Return an object's size and version."""

    def read(self, key: str) -> bytes:
        """Return a whole object."""

    def open(self, key: str) -> BinaryIO:
        """Open an object for random access. The caller closes it."""

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        """Return the last `num_bytes` of each object, or all of a shorter one.

        The objects are read concurrently. Raises `RunFailed` if one has changed since it was
        listed.
        """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object if it does not exist. Returns whether this call created it."""

    def open_new(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write a new object in pieces. It appears when the context ends without an error.

        Raises `UserError` if the object exists, at the start or at the end.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write the object, whether it exists or not. Readers see the old or the new one, whole."""

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        """Replace the object if it still has this `version`. Returns whether it was replaced.

        If the object is missing, some S3 servers answer as if it had another version.
        """

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""


def read_each(read: Callable[[ObjectInfo], bytes], items: Sequence[ObjectInfo]) -> list[bytes]:
    """Read objects concurrently. Results are in the order of the items."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read, items))


def changed_error(where: str) -> RunFailed:
    """The error for an object that was replaced while it was being read."""
    return RunFailed(f"{where}: changed while it was read; run the command again")


@contextmanager
def gone_as_run_failed(where: str) -> Iterator[None]:
    """Raise `RunFailed` if an object that was listed is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunFailed(
            f"{where}: has been deleted since it was listed; run the command again"
        ) from error


def name_taken(where: str) -> UserError:
    """The error for a new object whose name is taken."""
    return UserError(f"{where} already exists; remove it or choose another name")
