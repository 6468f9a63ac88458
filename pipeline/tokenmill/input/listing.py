"""List the shards of an input: a file, a folder or a glob, local or in an object store."""

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
    """The input's objects below one root. `recursive` if later objects at any depth would match."""

    store: Store
    objects: tuple[ObjectInfo, ...]
    recursive: bool


def list_input(path: str, endpoint_url: str | None) -> Listing:
    """List the shards of a file, folder or glob, as a path or a URL, in the order of their keys.

    In a folder these are the Parquet files at any depth. Names that begin with `_` or `.` are
    skipped, as Parquet readers do. Raises `UserError` if there is none.
    """
    wildcard = _WILDCARD.search(path)
    if wildcard is not None:
        listing = _list_glob(path, path[: wildcard.start()], endpoint_url)
    else:
        listing = _list_named(path, endpoint_url)
    for item in listing.objects:
        _require_utf8_name(listing.store, item.key)
    return listing


def _list_named(path: str, endpoint_url: str | None) -> Listing:
    """List a folder, whatever its name: Spark writes folders named `corpus.parquet`."""
    store = open_store(path, endpoint_url)
    in_folder = _list_folder(store)
    single = None if in_folder else _find_single(path, endpoint_url)
    if single is not None:
        return single
    objects = tuple(
        item for item in in_folder if item.key.lower().endswith(_SUFFIXES) and _visible(item.key)
    )
    if not objects:
        raise UserError(
            f"input.path: {path}: no such file, or a folder without Parquet files; fix the path"
        )
    return Listing(store, objects, recursive=True)


def _list_folder(store: Store) -> list[ObjectInfo]:
    """The objects below the store's root; none if the root is a file."""
    try:
        # S3 lists a file too, with an empty key.
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
        raise UserError(f"input.path: {path}: no file matches; fix the pattern or the folder")
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


def _require_utf8_name(store: Store, key: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        readable = key.encode(errors="backslashreplace").decode()
        raise UserError(
            f"{store.url}/{readable}: the file name is not UTF-8, so the output cannot be named "
            "after it; rename the file"
        ) from None


def _visible(key: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in key.split("/"))


def check_output_outside(listing: Listing, output_url: str) -> None:
    """Raise `UserError` if a later listing of the input would include the output's files."""
    root = listing.store.url.rstrip("/")
    inside = output_url == root or output_url.startswith(root + "/")
    if listing.recursive and inside:
        raise UserError(
            f"output.path: {output_url} is inside the input {root}, so a later run would read its "
            "own results; choose a path outside"
        )
