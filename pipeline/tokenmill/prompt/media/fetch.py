"""Fetch the images and audio of rows from where the job allows, and check them.

A row's media are its own bytes, an object in the input's storage, or an https URL of an allowed
host. Nothing else is opened, whatever a row names. Media that a row gets wrong are its reject
(`bad_media`); what this module returns has been decoded here.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from tokenmill.errors import UserError
from tokenmill.prompt.media.access import BadMedia, MediaAccess
from tokenmill.prompt.media.https import HTTPS_PORT, HttpsClient
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Media
from tokenmill.storage.base import Store
from tokenmill.storage.open import is_object_url

_CONCURRENT_FETCHES = 8
# S3's limit for a key, and the usual limit of file systems for a name.
_MAX_KEY_BYTES, _MAX_NAME_BYTES = 1024, 255


def read_media(
    values: Sequence[Any],
    column: str,
    access: MediaAccess,
    storage: Store | None,
    decode: Callable[[bytes], list[Media]],
) -> list[list[Media] | Reject]:
    """Each row's media, decoded, or its reject.

    Raises `UserError` if the column holds neither bytes nor paths.
    """

    def bad(error: BadMedia) -> Reject:
        return Reject(RejectClass.BAD_MEDIA, f"the column {column}: {error}")

    def read(value: bytes | str | None) -> bytes | Reject:
        if value is None:
            return Reject(RejectClass.EMPTY_INPUT, f"the column {column} is null")
        try:
            data = value if isinstance(value, bytes) else fetch_media(value, access, storage)
            return _check_size(data, access)
        except BadMedia as error:
            return bad(error)

    def decoded(data: bytes | Reject) -> list[Media] | Reject:
        try:
            return data if isinstance(data, Reject) else decode(data)
        except BadMedia as error:
            return bad(error)

    plain = [_bytes_or_path(value, column) for value in values]
    with ThreadPoolExecutor(_CONCURRENT_FETCHES) as pool:
        # Decode one at a time: decoding the largest allowed image takes a gigabyte of memory.
        return [decoded(data) for data in pool.map(read, plain)]


def _check_size(data: bytes, access: MediaAccess) -> bytes:
    if len(data) > access.max_bytes:
        raise BadMedia(_too_large(len(data), access))
    return data


def _bytes_or_path(value: Any, column: str) -> bytes | str | None:
    """The value itself; of a struct of bytes and path, as datasets hold media, bytes come first."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None or isinstance(value, bytes | str):
        return value
    raise UserError(
        f"the column {column} holds neither bytes nor paths but {type(value).__name__}; use "
        "another column"
    )


def fetch_media(
    path: str, access: MediaAccess, storage: Store | None, client: HttpsClient | None = None
) -> bytes:
    """The bytes that a path or an https URL names.

    Raises `BadMedia` if the job does not allow it, or if it cannot be fetched.
    """
    scheme = path.split("://", 1)[0].lower() if "://" in path else ""
    if not scheme or is_object_url(path):
        return _read_stored(path, access, storage)
    if scheme != "https":
        raise BadMedia(
            f"{path:.200}: {scheme:.20}:// is not supported; use bytes, a path or https://"
        )
    host, target = split_allowed_url(path, access.hosts)
    return (client or HttpsClient()).get(host, target, access)


def split_allowed_url(url: str, hosts: Sequence[str]) -> tuple[str, str]:
    """The host of an https URL, and the target to request from it, without the fragment.

    Raises `BadMedia` for another host, a user, another port, or characters that are not escaped.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadMedia(f"{url:.200}: not a URL: {error}") from error
    if parts.hostname not in hosts:
        raise BadMedia(f"{url:.200}: the host is not in media.hosts")
    if parts.username is not None or port not in (None, HTTPS_PORT):
        raise BadMedia(f"{url:.200}: a user, or a port other than {HTTPS_PORT}, is not allowed")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(character <= " " for character in target):
        raise BadMedia(f"{url:.200}: the URL is not escaped")
    return str(parts.hostname), target


def _read_stored(path: str, access: MediaAccess, storage: Store | None) -> bytes:
    if storage is None:
        raise BadMedia(f"{path:.200}: there is no storage to read it from")
    key = key_below(path, storage.url)
    try:
        size = storage.info(key).size
        if size > access.max_bytes:
            raise BadMedia(_too_large(size, access))
        # The limit holds for a file that has grown since.
        with storage.open(key) as file:
            return file.read(access.max_bytes + 1)
    except FileNotFoundError as error:
        raise BadMedia(f"{path:.200}: no such file in {storage.url}") from error
    except UserError as error:
        # The storage does not accept the name, or denies access to the file.
        raise BadMedia(str(error)) from error


def key_below(path: str, root: str) -> str:
    """The storage key of a path that is relative to the root, or absolute and inside it.

    Raises `BadMedia` for a path that leads out of the root, by its parts or by a symbolic link, and
    for one that is not a regular file.
    """
    inside = root.rstrip("/") + "/"
    is_absolute = path.startswith("/") or is_object_url(path)
    if is_absolute and not path.startswith(inside):
        raise BadMedia(f"{path:.200}: not inside the input's {root}")
    key = path.removeprefix(inside) if is_absolute else path
    parts = key.split("/")
    encoded = [part.encode(errors="replace") for part in parts]
    if ".." in parts or "\0" in key or not key.strip("/"):
        raise BadMedia(f"{path!r:.200}: not a path inside the input's {root}")
    if len(b"/".join(encoded)) > _MAX_KEY_BYTES or max(map(len, encoded)) > _MAX_NAME_BYTES:
        raise BadMedia(f"{path:.200}: the path is too long")
    if not is_object_url(root):
        real = os.path.realpath(os.path.join(root, key))
        if not real.startswith(os.path.realpath(root).rstrip("/") + "/"):
            raise BadMedia(f"{path:.200}: a symbolic link leads out of the input's {root}")
        # Opening a pipe would block forever.
        if os.path.exists(real) and not os.path.isfile(real):
            raise BadMedia(f"{path:.200}: not a regular file")
    return key


def _too_large(size: int, access: MediaAccess) -> str:
    return f"{size:,} bytes or more, above media.max_bytes ({access.max_bytes:,})"
