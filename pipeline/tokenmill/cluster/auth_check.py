"""Whether a Ray cluster is closed: it must refuse a request that carries no token.

A cluster without token authentication runs the code of anyone who can reach it (CVE-2023-48022), so
tokenmill uses only clusters that are proven to be closed. The check sends a request without a token
and looks at the answer. Ray 2.60 answers UNAUTHENTICATED (gRPC) or 401 (HTTP). A server that
requires client certificates ends the TLS handshake. Every other answer, and no answer, proves
nothing, and the cluster is refused.
"""

import os
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

import grpc

from tokenmill.errors import UserError

#: A cluster answers within milliseconds; this leaves time for a slow network.
CHECK_TIMEOUT_S = 10.0
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_MAX_REASON_CHARACTERS = 200


class Access(StrEnum):
    """What a request without a token has shown."""

    TOKEN_REQUIRED = "token required"  # noqa: S105 - not a password
    CERTIFICATE_REQUIRED = "certificate required"
    OPEN = "open"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class AuthFinding:
    """The result of a check; `reason` says why nothing was proven, and is empty otherwise."""

    access: Access
    reason: str = ""

    @property
    def is_closed(self) -> bool:
        """Whether the cluster is proven to refuse clients without credentials."""
        return self.access in {Access.TOKEN_REQUIRED, Access.CERTIFICATE_REQUIRED}


def require_closed(address: str, check: Callable[[], AuthFinding]) -> None:
    """Raise `UserError` unless `check` proves that the cluster at `address` is closed.

    With RAY_AUTH_MODE=disabled the user accepts an open cluster, and nothing is checked.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    finding = check()
    if finding.is_closed:
        return
    problem = (
        "requires no token, so anyone who can reach it can run code on it"
        if finding.access is Access.OPEN
        else f"did not prove that it requires a token ({finding.reason})"
    )
    raise UserError(
        f"Ray at {address} {problem}; start it with RAY_AUTH_MODE=token, or set "
        "RAY_AUTH_MODE=disabled here to use it anyway"
    )


def check_gcs(address: str, timeout_s: float = CHECK_TIMEOUT_S) -> AuthFinding:
    """Ask the head of a cluster by gRPC; `address` is its GCS server, as HOST:PORT."""
    # Ray's own channels use no proxy either.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CHECK_ALIVE)(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return _grpc_finding(error, address, timeout_s)
    return AuthFinding(Access.OPEN)


def _grpc_finding(error: Any, address: str, timeout_s: float) -> AuthFinding:
    """What an RPC that failed has shown."""
    status = error.code()
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return AuthFinding(Access.TOKEN_REQUIRED)
    if status is grpc.StatusCode.UNAVAILABLE and _requires_certificate(address, timeout_s):
        return AuthFinding(Access.CERTIFICATE_REQUIRED)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return AuthFinding(Access.UNKNOWN, f"no answer within {timeout_s:g} s")
    details = _one_line(error.details() or "")
    return AuthFinding(Access.UNKNOWN, ": ".join(filter(None, (status.name, details))))


def _requires_certificate(address: str, timeout_s: float) -> bool:
    """Whether a TLS server is at `address` and refuses a client that has no certificate.

    In TLS 1.2 the server ends the handshake with an alert. In TLS 1.3 the client's side of the
    handshake succeeds, and the server ends the connection right after it. A server that accepts the
    client begins HTTP/2 instead, and sends its settings.
    """
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # No secret is sent, and Ray's client verifies the server by itself.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout_s) as connection,
            context.wrap_socket(connection) as tls,
        ):
            return not tls.recv(1)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def check_job_api(address: str, timeout_s: float = CHECK_TIMEOUT_S) -> AuthFinding:
    """Ask the Job API of a cluster for its jobs; `address` is the URL of the dashboard."""
    # The same variable that Ray's client (requests) honours.
    context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))
    opener = urllib.request.build_opener(
        _NoRedirects(), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"{address}/api/jobs/", timeout=timeout_s):
            return AuthFinding(Access.OPEN)
    except HTTPError as error:
        error.close()
        if error.code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return AuthFinding(Access.TOKEN_REQUIRED)
        return AuthFinding(Access.UNKNOWN, f"HTTP {error.code} {_one_line(str(error.reason))}")
    except (OSError, HTTPException, ValueError) as error:
        return AuthFinding(Access.UNKNOWN, _one_line(f"{type(error).__name__}: {error}"))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: the answer of another server says nothing about this one."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON_CHARACTERS]
