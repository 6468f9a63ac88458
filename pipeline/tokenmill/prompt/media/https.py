"""Fetch from https hosts of the public internet, within limits on size and time."""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from tokenmill.prompt.media.access import BadMedia, MediaAccess, decode_error

HTTPS_PORT = 443


def look_up(host: str) -> list[str]:
    """All addresses of a host, from the system's resolver. Raises `OSError` if it has none."""
    infos = socket.getaddrinfo(host, HTTPS_PORT, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


def public_address(host: str, resolve: Callable[[str], list[str]] = look_up) -> str:
    """The first of a host's addresses.

    Raises `BadMedia` if the host has none, or if any of them is not on the public internet.
    """
    try:
        addresses = resolve(host)
    except (OSError, UnicodeError) as error:
        raise BadMedia(f"{host}: no such host: {error}") from error
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise BadMedia(f"{host} is {address}, which is not on the public internet")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv4 address embedded in an IPv6 address is not itself marked as private.
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is not None:
            return _is_public(embedded)
    return address.is_global and not address.is_multicast


class HttpsClient:
    """Fetches from https hosts, whose addresses are resolved and checked by `find_address`.

    `find_address` raises `BadMedia` for a host that must not be connected to.
    """

    def __init__(
        self, find_address: Callable[[str], str] = public_address, port: int = HTTPS_PORT
    ) -> None:
        self._find_address = find_address
        self._port = port

    def get(self, host: str, target: str, access: MediaAccess) -> bytes:
        """The body of a host's response, as `response_body`. Raises `BadMedia`."""
        address = self._find_address(host)
        connection = _Connection(host, address, self._port, access.timeout_s)
        # The timeout of a socket applies to each packet, this one to the whole fetch.
        timer = threading.Timer(access.timeout_s, connection.stop)
        timer.daemon = True
        timer.start()
        try:
            connection.request("GET", target, headers={"User-Agent": "tokenmill"})
            data = response_body(connection.getresponse(), access)
        except (OSError, http.client.HTTPException) as error:
            reason = "too slow" if connection.is_stopped else decode_error(error)
            raise BadMedia(f"{host}: {reason}") from error
        finally:
            timer.cancel()
            connection.close()
        if connection.is_stopped:
            raise BadMedia(f"{host}: too slow: no complete response within media.timeout_s")
        return data


class _Connection(http.client.HTTPSConnection):
    """A connection to the address that was checked: a second look-up might return another."""

    def __init__(self, host: str, address: str, port: int, timeout_s: float) -> None:
        self._tls = ssl.create_default_context()
        # Without the port: it would be part of the Host header.
        super().__init__(host, timeout=timeout_s, context=self._tls)
        self._address = (address, port)
        self.is_stopped = False

    def connect(self) -> None:
        plain = socket.create_connection(self._address, self.timeout)
        self.sock = self._tls.wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock.do_handshake()

    def stop(self) -> None:
        """Interrupt whatever the connection waits for; what was read so far is incomplete."""
        self.is_stopped = True
        if self.sock is not None:
            with suppress(OSError):
                # Not the TLS socket's own shutdown, which would continue in plain text.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def response_body(response: http.client.HTTPResponse, access: MediaAccess) -> bytes:
    """The body of a response, up to one byte above `max_bytes`, which shows that it is too large.

    Raises `BadMedia` for a redirect, an error or an incomplete response.
    """
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        raise BadMedia(f"the host answers {response.status}: redirects are not followed")
    if response.status != HTTPStatus.OK:
        raise BadMedia(f"the host answers {response.status}")
    data = response.read(access.max_bytes + 1)
    if response.length and len(data) <= access.max_bytes:
        raise BadMedia("the host's response ends before its length")
    return data
