"""The files of an input: a file, a folder or a glob, local or in an object store."""

import re
from dataclasses import dataclass

from fsspec.utils import glob_translate

from tokenmill.errors import UserError
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import open_store, split_url

_SUFFIXES = (".parquet", ".pq", ".parq")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Listing:
    """The input's objects below one root; `pattern` is set where a glob chose them."""

    store: Store
    objects: tuple[ObjectInfo, ...]
    recursive: bool


def list_input(path: str, endpoint_url: str | None) -> Listing:
    """The shards that a file, folder, glob or s3:// URL names, by key.

    In a folder these are the Parquet files at any depth; names that begin with `_` or `.` are
    skipped, as every Parquet reader does. Raises `UserError` where there are none.
    """
    wildcard = _WILDCARD.search(path)
    if wildcard is not None:
        listing = _list_glob(path, path[: wildcard.start()], endpoint_url)
    else:
        listing = _list_named(path, endpoint_url)
    for item in listing.objects:
        _refuse_unreadable_name(listing.store, item.key)
    return listing


def _list_named(path: str, endpoint_url: str | None) -> Listing:
    """A folder whatever its name: Spark writes folders that are called `corpus.parquet`."""
    store = open_store(path, endpoint_url)
    found = _list_folder(store)
    single = None if found else _find_single(path, endpoint_url)
    if single is not None:
        return single
    objects = tuple(
        item for item in found if item.key.lower().endswith(_SUFFIXES) and _visible(item.key)
    )
    if not objects:
        raise UserError(
            f"input.path: {path}: no such file, or a folder without Parquet files; mend the path"
        )
    return Listing(store, objects, recursive=True)


def _list_folder(store: Store) -> list[ObjectInfo]:
    """What lies below the store's root: nothing if that is a file."""
    try:
        # In S3 a file is listed too, with an empty key.
        return [item for item in store.list() if item.key]
    except UserError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            return []
        raise


def _list_glob(path: str, fixed: str, endpoint_url: str | None) -> Listing:
    root = fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")
    pattern = path.removeprefix(root).lstrip("/") if path.startswith(root) else path
    store = open_store(root, endpoint_url)
    matches = re.compile(glob_translate(pattern)).fullmatch
    objects = tuple(item for item in store.list() if matches(item.key) and _visible(item.key))
    if not objects:
        raise UserError(f"input.path: {path}: no file matches; mend the pattern or the folder")
    return Listing(store, objects, recursive="**" in pattern)


def _find_single(path: str, endpoint_url: str | None) -> Listing | None:
    try:
        folder, name = split_url(path)
    except UserError:
        return None
    store = open_store(folder, endpoint_url)
    try:
        return Listing(store, (store.info(name),), recursive=False)
    except FileNotFoundError:
        return None


def _refuse_unreadable_name(store: Store, key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        readable = key.encode(errors="backslashreplace").decode()
        raise UserError(
            f"{store.url}/{readable}: the file's name is not UTF-8, and its output could not be "
            "named after it; rename it"
        ) from None


def _visible(key: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in key.split("/"))


def check_output_outside(listing: Listing, output_url: str) -> None:
    """Raise `UserError` if a later listing of the input would find the output's own files."""
    root = listing.store.url.rstrip("/")
    inside = output_url == root or output_url.startswith(root + "/")
    if listing.recursive and inside:
        raise UserError(
            f"output.path: {output_url} lies inside the input {root}, and a later run would read "
            "its own results; choose a path outside"
        )
