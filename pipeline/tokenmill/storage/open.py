"""From a URL to a store. The only file that knows URL schemes."""

import os

from tokenmill.errors import UserError
from tokenmill.storage.base import Store, split_url
from tokenmill.storage.local import LocalStore
from tokenmill.storage.s3 import S3Store


def open_store(url: str, endpoint_url: str | None = None) -> Store:
    """The store for `s3://bucket/prefix`, `file:///folder` or a folder's path."""
    if url.startswith("s3://"):
        return S3Store(url, endpoint_url)
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        scheme = url.split("://", 1)[0]
        raise UserError(f"{url}: cannot read or write {scheme}://; use a local path or s3://")
    return LocalStore(url)


def open_object(url: str) -> tuple[Store, str]:
    """The store and the key of one named object, in a folder that is there. Raises `UserError`."""
    folder, name = split_url(url)
    store = open_store(folder)
    if isinstance(store, LocalStore) and not os.path.isdir(store.url):
        # A store makes its folders, and a mistyped path should make none.
        raise UserError(f"{url}: there is no such folder; make it or mend the path")
    return store, name
