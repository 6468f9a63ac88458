"""Images and audio of rows: fetched from where the job allows, checked, and made small and plain.

A row's media are its own bytes, an object of the input's storage, or an https URL of an allowed
host. Nothing else is opened, whatever a row names. What a row gives wrong is its reject
(`bad_media`); the data that leave this module were decoded here and hold no surprise.
"""

import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from tokenmill.config.section import Section
from tokenmill.errors import UserError
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Media
from tokenmill.storage.base import Store
from tokenmill.storage.open import is_object_url

_FETCHED_AT_A_TIME = 8
_HTTPS_PORT = 443
# S3's limit for a key, and the usual one of file systems for a name.
_MOST_KEY_BYTES, _MOST_NAME_BYTES = 1024, 255


class MediaAccess(Section):
    """What a row may name, and how much of it is read."""

    hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")], ...] = Field(
        default=(), description="Hosts from which https URLs are fetched; by default none."
    )
    max_bytes: int = Field(default=32 * 2**20, ge=1, description="Of a row's file as it is stored.")
    timeout_s: float = Field(default=20.0, gt=0, description="For all of a fetch from a host.")


class BadMedia(Exception):
    """The row's media cannot be had or used: why."""


def read_media(
    values: Sequence[Any],
    column: str,
    access: MediaAccess,
    storage: Store | None,
    decode: Callable[[bytes], list[Media]],
) -> list[list[Media] | Reject]:
    """Each row's media, decoded, or its reject. Raises `UserError` for a column of another type."""

    def bad(error: BadMedia) -> Reject:
        return Reject(RejectClass.BAD_MEDIA, f"the column {column}: {error}")

    def read(value: bytes | str | None) -> bytes | Reject:
        if value is None:
            return Reject(RejectClass.EMPTY_INPUT, f"the column {column} is null")
        try:
            return _bounded(
                value if isinstance(value, bytes) else fetch_media(value, access, storage), access
            )
        except BadMedia as error:
            return bad(error)

    def decoded(data: bytes | Reject) -> list[Media] | Reject:
        try:
            return data if isinstance(data, Reject) else decode(data)
        except BadMedia as error:
            return bad(error)

    plain = [_bytes_or_path(value, column) for value in values]
    with ThreadPoolExecutor(_FETCHED_AT_A_TIME) as pool:
        # Decoded one at a time: the largest that is allowed takes a gigabyte meanwhile.
        return [decoded(data) for data in pool.map(read, plain)]


def _bounded(data: bytes, access: MediaAccess) -> bytes:
    if len(data) > access.max_bytes:
        raise BadMedia(_too_large(len(data), access))
    return data


def _bytes_or_path(value: Any, column: str) -> bytes | str | None:
    """Of a struct of bytes and path, as data sets hold media, the bytes where there are any."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None or isinstance(value, bytes | str):
        return value
    raise UserError(
        f"the column {column} holds neither bytes nor paths but {type(value).__name__}; name "
        "another one"
    )


def fetch_media(
    path: str,
    access: MediaAccess,
    storage: Store | None,
    get: Callable[[str, str, MediaAccess], bytes] | None = None,
) -> bytes:
    """The bytes that a path or an https URL names. Raises `BadMedia` where it may not, or cannot.

    `get` fetches a URL's target, asked by host and path.
    """
    scheme = path.split("://", 1)[0].lower() if "://" in path else ""
    if not scheme or is_object_url(path):
        return _stored(path, access, storage)
    if scheme != "https":
        raise BadMedia(f"{path:.200}: {scheme:.20}:// is not read; give bytes, a path or https://")
    host, target = _allowed(path, access.hosts)
    return (get or _get)(host, target, access)


def _allowed(url: str, hosts: Sequence[str]) -> tuple[str, str]:
    """The host and what is asked of it; without user, port or fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadMedia(f"{url:.200}: not a URL: {error}") from error
    if parts.hostname not in hosts:
        raise BadMedia(f"{url:.200}: the host is none of media.hosts")
    if parts.username is not None or port not in (None, _HTTPS_PORT):
        raise BadMedia(f"{url:.200}: a URL has no user, and no port but {_HTTPS_PORT}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(mark <= " " for mark in target):
        raise BadMedia(f"{url:.200}: the URL is not escaped")
    return str(parts.hostname), target


def public_address(host: str) -> str:
    """The first of a host's addresses. Raises `BadMedia` if any is not of the public internet."""
    try:
        found = socket.getaddrinfo(host, _HTTPS_PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadMedia(f"{host}: no such host: {error}") from error
    addresses = [str(address[0]) for *_, address in found]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise BadMedia(f"{host} is {address}, which is not of the public internet")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv4 address in the clothes of IPv6, which is not private as such.
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


class _Connection(http.client.HTTPSConnection):
    """To the address that was checked: a second look-up might give another."""

    def __init__(self, host: str, address: str, timeout_s: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, timeout=timeout_s, context=self._tls)
        self._address = address
        self.is_stopped = False

    def connect(self) -> None:
        plain = socket.create_connection((self._address, _HTTPS_PORT), self.timeout)
        self.sock = self._tls.wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock.do_handshake()

    def stop(self) -> None:
        """End whatever is waited for; what was read until then is not the whole."""
        self.is_stopped = True
        if self.sock is not None:
            with suppress(OSError):
                # Not the TLS socket's own, which would go on in plain text.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _get(host: str, target: str, access: MediaAccess) -> bytes:
    connection = _Connection(host, public_address(host), access.timeout_s)
    # The socket's own limit is for each packet alone.
    limit = threading.Timer(access.timeout_s, connection.stop)
    limit.daemon = True
    limit.start()
    try:
        connection.request("GET", target, headers={"User-Agent": "tokenmill"})
        data = response_body(connection.getresponse(), access)
    except (OSError, http.client.HTTPException) as error:
        reason = "too slow" if connection.is_stopped else decode_error(error)
        raise BadMedia(f"{host}: {reason}") from error
    finally:
        limit.cancel()
        connection.close()
    if connection.is_stopped:
        raise BadMedia(f"{host}: too slow: no whole answer within media.timeout_s")
    return data


def response_body(response: http.client.HTTPResponse, access: MediaAccess) -> bytes:
    """The body of a host's answer. One byte too many tells of more.

    Raises `BadMedia` for a redirect, an error or a part of an answer.
    """
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        raise BadMedia(f"the host answers {response.status}: redirects are not followed")
    if response.status != HTTPStatus.OK:
        raise BadMedia(f"the host answers {response.status}")
    data = response.read(access.max_bytes + 1)
    if response.length and len(data) <= access.max_bytes:
        raise BadMedia("the host's answer ends before its length")
    return data


def _stored(path: str, access: MediaAccess, storage: Store | None) -> bytes:
    if storage is None:
        raise BadMedia(f"{path:.200}: there is no storage to read it from")
    key = key_below(path, storage.url)
    try:
        size = storage.info(key).size
        if size > access.max_bytes:
            raise BadMedia(_too_large(size, access))
        # A file that grows meanwhile is not read to its end.
        with storage.open(key) as file:
            return file.read(access.max_bytes + 1)
    except FileNotFoundError as error:
        raise BadMedia(f"{path:.200}: there is no such file in {storage.url}") from error
    except UserError as error:
        # A name that the storage does not take, or a file that it does not give.
        raise BadMedia(str(error)) from error


def key_below(path: str, root: str) -> str:
    """The key of a path that is relative to the root, or absolute inside it.

    Raises `BadMedia` for one that leads out of it, by its parts or by a symbolic link, and for what
    is no regular file.
    """
    inside = root.rstrip("/") + "/"
    is_absolute = path.startswith("/") or is_object_url(path)
    if is_absolute and not path.startswith(inside):
        raise BadMedia(f"{path:.200}: it is not inside of the input's {root}")
    key = path.removeprefix(inside) if is_absolute else path
    parts = key.split("/")
    encoded = [part.encode(errors="replace") for part in parts]
    if ".." in parts or "\0" in key or not key.strip("/"):
        raise BadMedia(f"{path!r:.200}: not a path inside of the input's {root}")
    if len(b"/".join(encoded)) > _MOST_KEY_BYTES or max(map(len, encoded)) > _MOST_NAME_BYTES:
        raise BadMedia(f"{path:.200}: the path is too long")
    if not is_object_url(root):
        real = os.path.realpath(os.path.join(root, key))
        if not real.startswith(os.path.realpath(root).rstrip("/") + "/"):
            raise BadMedia(f"{path:.200}: a link leads out of the input's {root}")
        # To open a pipe would wait for ever.
        if os.path.exists(real) and not os.path.isfile(real):
            raise BadMedia(f"{path:.200}: not a file")
    return key


def _too_large(size: int, access: MediaAccess) -> str:
    return f"it has {size:,} bytes or more, above media.max_bytes ({access.max_bytes:,})"


def decode_error(error: Exception) -> str:
    """A decoder's error as one line that does not differ from run to run."""
    # A decoder names the object that it reads, by an address that differs from run to run.
    message = re.sub(r"\s*<_io\.BytesIO[^>]*>", "", str(error))
    return f"{type(error).__name__}: {' '.join(message.split()):.200}"
