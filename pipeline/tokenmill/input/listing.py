"""List the shards of an input: a file, a folder or a glob, local or in an object store."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fsspec.utils import glob_translate

from tokenmill.errors import UserError
from tokenmill.formatting import plural
from tokenmill.plan.keys import PLAN_KEY
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import open_store, split_url

_SUFFIXES = (".parquet", ".pq", ".parq")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Listing:
    """The input's objects below one root. `recursive` if later objects at any depth would match.

    `notes` say what was found and is not part of the input.
    """

    store: Store
    objects: tuple[ObjectInfo, ...]
    recursive: bool
    notes: tuple[str, ...] = ()


def list_input(path: str, endpoint_url: str | None) -> Listing:
    """List the shards of a file, folder or glob, as a path or a URL, in the order of their keys.

    In a folder these are the Parquet files at any depth. Names that begin with `_` or `.` are
    skipped, as Parquet readers do, and so are outputs of tokenmill below the folder. A path that
    names a file or folder is not a glob, whatever its characters. Raises `UserError` if there is
    none.
    """
    wildcard = _WILDCARD.search(path)
    listing = _list_named(path, endpoint_url)
    if listing is None and wildcard is not None:
        listing = _list_glob(path, path[: wildcard.start()], endpoint_url)
    if listing is None:
        raise UserError(
            f"input.path: {path}: no such file, or a folder without Parquet files; fix the path"
        )
    for item in listing.objects:
        _require_utf8_name(listing.store, item.key)
    return listing


def _list_named(path: str, endpoint_url: str | None) -> Listing | None:
    """List a folder, whatever its name: Spark writes folders named `corpus.parquet`."""
    store = open_store(path, endpoint_url)
    in_folder = _list_folder(store)
    single = _find_single(path, endpoint_url)
    if not in_folder:
        return single
    objects = tuple(
        item for item in in_folder if item.key.lower().endswith(_SUFFIXES) and _visible(item.key)
    )
    kept, notes = _without_outputs(store, in_folder, objects)
    if single is not None and single.objects[0].size:
        url = store.url
        notes += (f"Not read: the object {url}, because {url}/ is a folder too.",)
    return Listing(store, kept, recursive=True, notes=notes) if kept else None


def _without_outputs(
    store: Store, listed: Sequence[ObjectInfo], objects: tuple[ObjectInfo, ...]
) -> tuple[tuple[ObjectInfo, ...], tuple[str, ...]]:
    """The objects that are not in an output below the store's root, and a note on the others.

    Raises `UserError` if all are in outputs. A root that is an output itself is read on purpose.
    """
    outputs = tuple(
        item.key.removesuffix(PLAN_KEY) for item in listed if item.key.endswith(f"/{PLAN_KEY}")
    )
    kept = tuple(item for item in objects if not _is_in_data(item.key, outputs))
    if len(kept) == len(objects):
        return kept, ()
    first = f"{store.url}/{outputs[0].rstrip('/')}"
    others = f" and {plural(len(outputs) - 1, 'other')}" if outputs[1:] else ""
    files = plural(len(objects) - len(kept), "file")
    if not kept:
        raise UserError(
            f"input.path: {store.url} holds only outputs of tokenmill ({first}{others}); name one "
            "of them to read its rows"
        )
    note = f"Not read: {files} of tokenmill's output {first}{others}. Name it to read its rows."
    return kept, (note,)


def _is_in_data(key: str, outputs: Sequence[str]) -> bool:
    return any(key.startswith(f"{output}data/") for output in outputs)


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
    listed = list(store.list())
    objects = tuple(item for item in listed if matches(item.key) and _visible(item.key))
    if not objects:
        raise UserError(f"input.path: {path}: no file matches; fix the pattern or the folder")
    notes: tuple[str, ...] = ()
    if "data" not in pattern.split("/"):
        # Otherwise the pattern names the folders of outputs.
        objects, notes = _without_outputs(store, listed, objects)
    return Listing(store, objects, recursive="**" in pattern, notes=notes)


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
