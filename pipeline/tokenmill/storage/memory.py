"""Objects in the memory of one process, for tests and notebooks."""

import errno
import io
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import BinaryIO

from tokenmill.errors import UserError
from tokenmill.storage.base import ObjectInfo, changed_error, gone_as_run_failed, name_taken


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    version: str


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The objects of one name, by path."""

    objects: dict[str, _Object] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    # No two writes get the same version, even if the object is deleted in between.
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))


_buckets: dict[str, _Bucket] = {}
_IMPORT_ID = uuid.uuid4().hex


class MemoryStore:
    """Objects in this process under `memory://name` or `memory://name/prefix`.

    All stores of one name share their objects until the process ends. A pickled store is only a
    reference: unpickling it in another process raises `UserError`.
    """

    def __init__(self, url: str) -> None:
        self._root = url.removeprefix("memory://").rstrip("/")
        name = self._root.partition("/")[0]
        if not name:
            raise UserError(f"{url}: has no name; write memory://name")
        self.url = f"memory://{self._root}"
        self._bucket = _buckets.setdefault(name, _Bucket())

    def __reduce__(self) -> tuple[Callable[[str, str], "MemoryStore"], tuple[str, str]]:
        return _reopened, (self.url, _process_id())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = self._path(prefix)
        with self._bucket.lock:
            entries = sorted(self._bucket.objects.items())
        for path, entry in entries:
            if path == folder or path.startswith(f"{folder}/"):
                # As in S3, an object at the root itself has the empty key.
                key = path.removeprefix(self._root).removeprefix("/")
                yield ObjectInfo(key, len(entry.data), entry.version)

    def info(self, key: str) -> ObjectInfo:
        entry = self._get(key)
        return ObjectInfo(key, len(entry.data), entry.version)

    def read(self, key: str) -> bytes:
        return self._get(key).data

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self._get(key).data)

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        return [self._read_end(item, num_bytes) for item in items]

    def _read_end(self, item: ObjectInfo, num_bytes: int) -> bytes:
        where = self._url(item.key)
        with gone_as_run_failed(where):
            entry = self._get(item.key)
        if entry.version != item.version:
            raise changed_error(where)
        return entry.data[max(item.size - num_bytes, 0) :]

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._bucket.lock:
            is_absent = self._path(key) not in self._bucket.objects
            if is_absent:
                self._put(key, data)
            return is_absent

    @contextmanager
    def open_new(self, key: str) -> Iterator[BinaryIO]:
        if self._path(key) in self._bucket.objects:
            raise name_taken(self._url(key))
        file = io.BytesIO()
        yield file
        if not self.put_if_absent(key, file.getvalue()):
            raise name_taken(self._url(key))

    def replace(self, key: str, data: bytes) -> None:
        with self._bucket.lock:
            self._put(key, data)

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        with self._bucket.lock:
            is_match = self._get(key).version == version
            if is_match:
                self._put(key, data)
            return is_match

    def delete(self, key: str) -> None:
        with self._bucket.lock:
            self._bucket.objects.pop(self._path(key), None)

    def _get(self, key: str) -> _Object:
        path = self._path(key)
        entry = self._bucket.objects.get(path)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url(key))
        return entry

    def _put(self, key: str, data: bytes) -> None:
        """Write the object; the caller holds the lock."""
        version = str(next(self._bucket.versions))
        self._bucket.objects[self._path(key)] = _Object(bytes(data), version)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _url(self, key: str) -> str:
        return f"{self.url}/{key}"


def _process_id() -> str:
    # A forked process has the same import id, and ids of processes repeat.
    return f"{_IMPORT_ID}-{os.getpid()}"


def _reopened(url: str, process_id: str) -> MemoryStore:
    if process_id != _process_id():
        raise UserError(
            f"{url}: exists only in the memory of the process that opened it; use a path or s3://"
        )
    return MemoryStore(url)
