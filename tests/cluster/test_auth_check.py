"""The check for open clusters: only a refusal of a request without a token proves a closed one."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc
import pytest
from helpers.certificate import Certificate, self_signed
from helpers.http_server import QuietHandler, serving
from helpers.ray_cluster import free_port
from helpers.stores import refusal
from tokenmill.cluster.auth_check import (
    Access,
    AuthFinding,
    check_gcs,
    check_job_api,
    require_closed,
)
from tokenmill.errors import UserError

#: How long the checks of these tests wait for a server that does not answer.
TIMEOUT_S = 0.5
#: How long the others wait at most; a busy machine needs more than a quiet one.
PATIENT_S = 30.0

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def head(
    answer: Answer, method: str = "CheckAlive", credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """A gRPC server in place of a cluster's head; yields its address."""
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    service = "ray.rpc.NodeInfoGcsService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def alive(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    return b""


def aborting(status: grpc.StatusCode, details: str = "") -> Answer:
    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(status, details)
        raise AssertionError

    return answer


@contextmanager
def plain_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that calls `serve` for each connection; yields its address."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                with connection, ExitStack() as stack:
                    # The client may be gone before it is answered.
                    stack.push(lambda kind, *_: kind is not None and issubclass(kind, OSError))
                    serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            # gRPC keeps a connection for 20 s if the server never began to speak HTTP/2.
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def stay_silent(connection: socket.socket) -> None:
    """Read what the client sends until it gives up, and answer nothing."""
    while connection.recv(4096):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


# gRPC.


def test_a_head_that_answers_is_open() -> None:
    """A successful answer to a request without a token proves an open cluster."""
    with head(alive) as address:
        assert check_gcs(address, PATIENT_S) == AuthFinding(Access.OPEN)


def test_a_head_that_answers_unauthenticated_is_closed() -> None:
    """This is how Ray with RAY_AUTH_MODE=token answers."""
    with head(aborting(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing")) as address:
        finding = check_gcs(address, PATIENT_S)
    assert finding == AuthFinding(Access.TOKEN_REQUIRED)
    assert finding.is_closed


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
def test_another_status_proves_nothing(status: grpc.StatusCode) -> None:
    """The status and its details become the reason, in one line."""
    with head(aborting(status, "some\ndetails")) as address:
        finding = check_gcs(address, PATIENT_S)
    assert finding == AuthFinding(Access.UNKNOWN, f"{status.name}: some details")
    assert not finding.is_closed


def test_a_head_without_the_method_proves_nothing() -> None:
    """A server that lacks the method has not looked at a token either."""
    with head(alive, method="Other") as address:
        finding = check_gcs(address, PATIENT_S)
    assert (finding.access, finding.reason[:13]) == (Access.UNKNOWN, "UNIMPLEMENTED")


def test_a_head_that_does_not_answer_in_time_proves_nothing() -> None:
    """The request ends at its deadline, whether the server speaks gRPC or nothing at all."""
    released = threading.Event()

    def hang(*_: Any) -> bytes:
        released.wait(PATIENT_S)
        return b""

    with head(hang) as address:
        finding = check_gcs(address, TIMEOUT_S)
        released.set()
    assert finding == AuthFinding(Access.UNKNOWN, "no answer within 0.5 s")
    with plain_server(stay_silent) as address:
        finding = check_gcs(address, TIMEOUT_S)
    assert finding.access is Access.UNKNOWN
    assert finding.reason


def test_a_port_without_a_server_proves_nothing() -> None:
    """A refused connection is not a refused token."""
    finding = check_gcs(f"127.0.0.1:{free_port()}", PATIENT_S)
    assert finding.access is Access.UNKNOWN
    assert finding.reason.startswith("UNAVAILABLE: ")


def test_a_server_that_does_not_speak_grpc_proves_nothing() -> None:
    """Neither its bytes nor the end of the connection is a refusal."""
    for reply in (b"220 mail.example ESMTP\r\n", b"\x00" * 64, b""):
        with plain_server(lambda connection, reply=reply: connection.sendall(reply)) as address:
            finding = check_gcs(address, PATIENT_S)
        assert finding.access is Access.UNKNOWN, reply
        assert finding.reason
        assert "\n" not in finding.reason


def test_a_tls_server_that_requires_a_client_certificate_is_closed(
    certificate: Certificate,
) -> None:
    """This is how Ray with RAY_USE_TLS=1 answers."""
    with head(alive, credentials=certificate.credentials(require_client=True)) as address:
        assert check_gcs(address, PATIENT_S) == AuthFinding(Access.CERTIFICATE_REQUIRED)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def test_both_versions_of_tls_are_understood(
    certificate: Certificate, version: ssl.TLSVersion
) -> None:
    """TLS 1.2 refuses within the handshake, TLS 1.3 after it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.folder / "certificate.pem", certificate.folder / "key.pem")
    context.load_verify_locations(certificate.folder / "certificate.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    with plain_server(serve) as address:
        assert check_gcs(address, PATIENT_S) == AuthFinding(Access.CERTIFICATE_REQUIRED)


def test_a_tls_server_that_accepts_any_client_proves_nothing(certificate: Certificate) -> None:
    """Encryption alone keeps no stranger out."""
    with head(alive, credentials=certificate.credentials(require_client=False)) as address:
        finding = check_gcs(address, PATIENT_S)
    assert finding.access is Access.UNKNOWN
    assert finding.reason.startswith("UNAVAILABLE")


# HTTP.


@contextmanager
def job_api(status: int, headers: dict[str, str] | None = None) -> Iterator[str]:
    """A Job API that gives every request the same answer; yields its URL."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers
            assert self.path == "/api/jobs/"
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"[]")

    with serving(Handler) as url:
        yield url


@pytest.mark.parametrize("status", [401, 403])
def test_a_job_api_that_refuses_a_request_without_a_token_is_closed(status: int) -> None:
    """Ray answers 401; a proxy in front of it may answer 403."""
    with job_api(status) as address:
        assert check_job_api(address, PATIENT_S) == AuthFinding(Access.TOKEN_REQUIRED)


def test_a_job_api_that_answers_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request carries no token, although this process has one."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token")
    with job_api(200) as address:
        assert check_job_api(address, PATIENT_S) == AuthFinding(Access.OPEN)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 502, 503])
def test_another_http_status_proves_nothing(status: int) -> None:
    """The status becomes the reason."""
    with job_api(status) as address:
        finding = check_job_api(address, PATIENT_S)
    assert finding.access is Access.UNKNOWN
    assert f"HTTP {status}" in finding.reason


def test_a_redirect_proves_nothing() -> None:
    """It is not followed, even if the other server would answer 401."""
    with job_api(401) as closed, job_api(302, {"Location": f"{closed}/api/jobs/"}) as address:
        finding = check_job_api(address, PATIENT_S)
    assert finding.access is Access.UNKNOWN
    assert "HTTP 302" in finding.reason


def test_a_job_api_that_fails_to_answer_proves_nothing() -> None:
    """Nothing at the port, another protocol, and silence: each has its reason."""
    finding = check_job_api(f"http://127.0.0.1:{free_port()}", PATIENT_S)
    assert (finding.access, "refused" in finding.reason) == (Access.UNKNOWN, True)
    with plain_server(lambda connection: connection.sendall(b"220 ESMTP\r\n\r\n")) as address:
        finding = check_job_api(f"http://{address}", PATIENT_S)
    assert finding.access is Access.UNKNOWN and finding.reason
    with plain_server(stay_silent) as address:
        finding = check_job_api(f"http://{address}", TIMEOUT_S)
    assert (finding.access, "timed out" in finding.reason) == (Access.UNKNOWN, True)


# The decision.


@pytest.mark.parametrize("access", [Access.TOKEN_REQUIRED, Access.CERTIFICATE_REQUIRED])
def test_a_closed_cluster_is_used(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either kind of credential keeps strangers out."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    require_closed("head:6379", lambda: AuthFinding(access))


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (AuthFinding(Access.OPEN), "requires no token"),
        (AuthFinding(Access.UNKNOWN, "no answer within 10 s"), "no answer within 10 s"),
    ],
)
def test_any_other_cluster_is_refused(
    finding: AuthFinding, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the cluster, the reason, and both ways out."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    line = refusal(UserError, lambda: require_closed("head:6379", lambda: finding))
    assert "head:6379" in line
    assert words in line
    assert "RAY_AUTH_MODE=token" in line
    assert "RAY_AUTH_MODE=disabled" in line


def test_a_user_may_insist_on_an_open_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """With RAY_AUTH_MODE=disabled the cluster is not even asked."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    require_closed("head:6379", lambda: pytest.fail("was asked"))
