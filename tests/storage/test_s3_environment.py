"""Variables and certificates that the S3 client cannot use are named at once."""

import ssl
from pathlib import Path

import pytest
from helpers.certificate import Certificate, self_signed
from helpers.http_server import QuietHandler, serving
from helpers.stores import StubS3, keys, refusal
from tokenmill.errors import UserError
from tokenmill.storage.open import open_store
from tokenmill.storage.s3 import S3Store


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def tls_store(stub_s3: StubS3, certificate: Certificate) -> S3Store:
    """A store on a server whose certificate nothing trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.folder / "certificate.pem", certificate.folder / "key.pem")
    stub_s3.socket = context.wrap_socket(stub_s3.socket, server_side=True)
    url = stub_s3.endpoint_url.replace("http://", "https://")
    return S3Store("s3://bucket/out", url, max_retries=0)


@pytest.mark.parametrize("value", ["hidden\n", " hidden", "hid den", "hidden\r\n", "\n"])
@pytest.mark.parametrize(
    "variable",
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"],
)
def test_white_space_in_a_variable_is_refused(
    variable: str, value: str, stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the variable and not its value; nothing is sent."""
    monkeypatch.setenv(variable, value)
    line = refusal(UserError, lambda: keys(stub_s3.store))
    assert variable in line
    assert "hid" not in line
    assert stub_s3.requests == []


def test_an_empty_variable_counts_as_unset(
    stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment may set a variable to nothing."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    assert keys(stub_s3.store) == []


@pytest.mark.parametrize("content", [None, b"", b"no certificate", "empty name"])
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_file_of_certificates_that_cannot_be_read_is_named(
    variable: str,
    content: bytes | str | None,
    stub_s3: StubS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing file, an empty one, one that is not PEM, and no name at all."""
    bundle = tmp_path / "bundle.pem"
    if isinstance(content, bytes):
        bundle.write_bytes(content)
    monkeypatch.setenv(variable, "" if isinstance(content, str) else str(bundle))
    assert variable in refusal(UserError, lambda: keys(stub_s3.store))


def test_an_unknown_certificate_is_a_user_error(
    stub_s3: StubS3,
    tls_store: S3Store,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line names the variable that makes it known, and with it the store works."""
    line = refusal(UserError, lambda: keys(tls_store))
    assert "s3://bucket/out" in line
    assert "AWS_CA_BUNDLE" in line
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.folder / "certificate.pem"))
    stub_s3.objects["/bucket/out/a"] = b"1"
    assert keys(S3Store(tls_store.url, tls_store.endpoint_url)) == ["a"]


def test_https_to_a_server_without_it_is_a_user_error(stub_s3: StubS3) -> None:
    """The line says what to write."""
    url = stub_s3.endpoint_url.replace("http://", "https://")
    store = S3Store("s3://bucket/out", url, max_retries=0)
    assert "http://" in refusal(UserError, lambda: keys(store))


@pytest.mark.usefixtures("stub_s3")
def test_a_listing_that_is_denied_does_not_look_empty() -> None:
    """Missing rights, and buckets whose readers must pay, are refused by S3 with 403."""

    class Denying(QuietHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Denying) as url:
        line = refusal(UserError, lambda: keys(open_store("s3://bucket/out", url)))
    assert "s3://bucket/out" in line
    assert "Requester Pays" in line


def test_an_arn_is_no_bucket() -> None:
    """It has slashes of its own, and a key begins after the bucket's."""
    url = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/prefix"
    line = refusal(UserError, lambda: open_store(url))
    assert url in line
    assert "alias" in line
