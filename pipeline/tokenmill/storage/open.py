"""Opens the store of a URL. Only this file and the stores know URL schemes."""

import os

from tokenmill.errors import UserError
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.memory import MemoryStore
from tokenmill.storage.s3 import S3Store

_FILE = "file://"
_MEMORY = "memory://"
_S3 = "s3://"


def open_store(url: str, endpoint_url: str | None = None) -> Store:
    """The store for `s3://bucket/prefix`, `file:///folder` or a folder's path.

    `memory://name` is for tests and notebooks: the objects exist in this process only, until it
    ends. Raises `UserError` for another scheme.
    """
    if is_remote(url):
        return S3Store(url, endpoint_url)
    if url.startswith(_MEMORY):
        return MemoryStore(url)
    return LocalStore(disk_path(url))


def open_object(url: str) -> tuple[Store, str]:
    """The store and the key of one object. Raises `UserError` if its local folder is missing."""
    folder, name = split_url(url)
    store = open_store(folder)
    if isinstance(store, LocalStore) and not os.path.isdir(store.url):
        # The store would make the folder, and a mistyped path should make none.
        raise UserError(f"{url}: its folder does not exist; create it or fix the path")
    return store, name


def split_url(url: str) -> tuple[str, str]:
    """The URL of the folder that holds one object, and the object's key in it.

    Raises `UserError` for a URL that names no object, such as a bucket.
    """
    folder, name = os.path.split(url)
    if not name or f"{folder}//" in (_S3, _FILE, _MEMORY):
        raise UserError(f"{url}: names no file; add a file name")
    return folder or ".", name


def is_remote(url: str) -> bool:
    """Whether the URL is in an object store, where every machine finds the same objects."""
    return url.startswith(_S3)


def is_object_url(url: str) -> bool:
    """Whether the URL names objects by keys: anything but a path on a disk."""
    return url.startswith((_S3, _MEMORY))


def disk_path(url: str) -> str:
    """The path of a URL on a disk. Raises `UserError` for a URL with another scheme."""
    path = url.removeprefix(_FILE)
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise UserError(f"{url}: cannot read or write {scheme}://; use a path or s3://")
    return path


def file_url(path: str) -> str:
    """The URL of an absolute path."""
    return f"{_FILE}{path}"
