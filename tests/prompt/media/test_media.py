"""Media of rows: what is read from where, and what is refused before anything is opened."""

import io
import os
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers.media_files import png, wav
from PIL import Image
from tokenmill.errors import UserError
from tokenmill.prompt.media.access import BadMedia, MediaAccess
from tokenmill.prompt.media.decode import decode_audio, decode_image, engine_input
from tokenmill.prompt.media.fetch import fetch_media, key_below, read_media, split_allowed_url
from tokenmill.prompt.media.https import HttpsClient, public_address, response_body
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Media
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

DATA = bytes(range(9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An input folder with a file in it, and a secret next to it."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(DATA)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "inside.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "own.png").symlink_to(root / "deep" / "a.png")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("path", ["deep/a.png", "{root}/deep/a.png", "./deep/a.png", "own.png"])
def test_a_path_is_relative_to_the_input_or_absolute_inside_it(folder: Path, path: str) -> None:
    """Any path to a file below the input's folder is read."""
    store = open_store(str(folder))
    assert fetch_media(path.format(root=folder), MediaAccess(), store) == DATA


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "deep/../../secret.png",
        "{root}/../secret.png",
        "{parent}/secret.png",
        # Starts with the same letters as the root, but is not below it.
        "{root}side.png",
        "/etc/passwd",
        "link.png",
        "pipe",
        "deep",
        "file://{root}/deep/a.png",
        "FILE:///etc/passwd",
        "http://example.org/a.png",
        "s3://bucket/a.png",
        "https://example.org/a.png",
        "missing.png",
        "deep/a.png/b",
        "~/a.png",
        "a\0b",
        "x" * 300,
        "x/" * 600,
        "",
        "/",
    ],
)
def test_nothing_outside_the_input_is_read(folder: Path, path: str) -> None:
    """Parent folders, links, pipes, other roots and schemes, odd names: each rejects its row."""
    store = open_store(str(folder))
    with pytest.raises(BadMedia):
        fetch_media(path.format(root=folder, parent=folder.parent), MediaAccess(), store)


@pytest.mark.parametrize(
    ("path", "key"), [("a/b.png", "a/b.png"), ("s3://bucket/in/a.png", "a.png")]
)
def test_keys_in_a_bucket_follow_the_same_rules(path: str, key: str) -> None:
    """Relative to the prefix, or with the whole URL."""
    assert key_below(path, "s3://bucket/in") == key


@pytest.mark.parametrize(
    "path", ["s3://bucket/inner/a.png", "s3://other/in/a.png", "/a.png", "../a.png"]
)
def test_other_prefixes_and_buckets_are_refused(path: str) -> None:
    """A row can only name objects below the input's prefix."""
    with pytest.raises(BadMedia):
        key_below(path, "s3://bucket/in")


def test_a_file_above_the_limit_is_not_read(folder: Path) -> None:
    """`max_bytes` applies to stored files and to a row's own bytes."""
    access = MediaAccess(max_bytes=8)
    with pytest.raises(BadMedia, match="max_bytes"):
        fetch_media("deep/a.png", access, open_store(str(folder)))
    (reject,) = read_media([DATA], "image", access, None, lambda _: [])
    assert isinstance(reject, Reject)
    assert reject.reject_class is RejectClass.BAD_MEDIA


def test_a_url_of_an_allowed_host_is_split_into_host_and_target() -> None:
    """The host is compared in lower case; path and query are requested, the fragment is not."""
    url = "https://IMAGES.example:443/a%20b?c=1#d"
    assert split_allowed_url(url, ["images.example"]) == ("images.example", "/a%20b?c=1")


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a",
        "https://images.example.evil/a",
        "https://images.example@evil/a",
        "https://user@images.example/a",
        "https://images.example:8443/a",
        "https://images.example:port/a",
        "https://images.example/a b",
        "https://images.example/a\r\nHost: b",
        "https://127.0.0.1/a",
        "https:///a",
        "http://images.example/a",
    ],
)
def test_other_urls_are_refused_without_a_request(url: str) -> None:
    """Another host, port, user or scheme, or an invalid URL: no host is even looked up."""

    def find_address(host: str) -> str:
        raise AssertionError(host)

    client = HttpsClient(find_address)
    with pytest.raises(BadMedia):
        fetch_media(url, MediaAccess(hosts=("images.example",)), None, client)


@pytest.mark.parametrize(
    ("addresses", "is_public"),
    [
        (["93.184.216.34"], True),
        (["2606:2800:220:1::1"], True),
        (["127.0.0.1"], False),
        (["10.1.2.3"], False),
        (["192.168.0.1"], False),
        (["169.254.169.254"], False),
        (["100.64.0.1"], False),
        (["0.0.0.0"], False),  # noqa: S104
        (["224.0.0.1"], False),
        (["::1"], False),
        (["fe80::1%eth0"], False),
        (["fd00::1"], False),
        (["::ffff:127.0.0.1"], False),
        (["2002:7f00:1::"], False),
        # One bad address among good ones.
        (["93.184.216.34", "10.0.0.1"], False),
    ],
)
def test_hosts_in_private_networks_are_refused_after_the_look_up(
    addresses: list[str], is_public: bool
) -> None:
    """An allowed name that resolves to this machine or its network is refused."""

    def resolve(_host: str) -> list[str]:
        return addresses

    if is_public:
        assert public_address("images.example", resolve) == addresses[0]
    else:
        with pytest.raises(BadMedia, match="public internet"):
            public_address("images.example", resolve)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_this_machine_is_refused_by_default(host: str) -> None:
    """The system's resolver finds its addresses, and none of them is public."""
    with pytest.raises(BadMedia, match="public internet"):
        HttpsClient().get(host, "/", MediaAccess())


def test_a_host_without_an_address_is_bad_media() -> None:
    """So is a name that cannot be encoded for a look-up."""

    def resolve(host: str) -> list[str]:
        raise OSError(f"unknown: {host}")

    with pytest.raises(BadMedia, match="no such host"):
        public_address("images.example", resolve)
    with pytest.raises(BadMedia, match="no such host"):
        public_address("a" * 64 + ".example")


class CannedSocket:
    """A socket that sends this text."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._text)


def body_of(text: bytes, access: MediaAccess) -> bytes:
    response = HTTPResponse(CannedSocket(text))  # type: ignore[arg-type]
    response.begin()
    return response_body(response, access)


def test_redirects_and_errors_of_a_host_are_refused() -> None:
    """Only the body of a 200 is used; a redirect could lead anywhere."""
    access = MediaAccess(max_bytes=4)
    assert body_of(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", access) == b"ok"
    with pytest.raises(BadMedia, match="redirects are not followed"):
        body_of(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\n\r\n", access)
    with pytest.raises(BadMedia, match="404"):
        body_of(b"HTTP/1.1 404 Not Found\r\n\r\n", access)


def test_a_response_is_not_read_beyond_the_limit() -> None:
    """A body without a length is read up to one byte above `max_bytes`, and then refused."""
    body = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100
    assert len(body_of(body, MediaAccess(max_bytes=4))) == 5


def test_a_path_is_read_from_the_inputs_store(store: Store) -> None:
    """Local or S3: relative, or with the store's whole URL; a missing file is bad media."""
    store.put_if_absent("deep/a.png", DATA)
    for path in ("deep/a.png", f"{store.url}/deep/a.png"):
        assert fetch_media(path, MediaAccess(), store) == DATA
    for path in ("deep", "deep/b.png", "deep/a.png/c"):
        with pytest.raises(BadMedia):
            fetch_media(path, MediaAccess(), store)


BODIES = {
    "/whole": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + DATA,
    "/part": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + DATA,
    "/moved": b"HTTP/1.1 301 Moved\r\nLocation: /whole\r\n\r\n",
    # Never finishes.
    "/slow": b"HTTP/1.1 200 OK\r\n\r\n" + DATA,
}


def self_signed_certificate(name: str) -> bytes:
    """The key and certificate of a host with this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(pem)


HOST = "images.example"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsClient]:
    """A client for which every host is a server on this machine with the certificate of HOST."""
    certificate = tmp_path / "host.pem"
    certificate.write_bytes(self_signed_certificate(HOST))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    is_done = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), tls.wrap_socket(self.request, server_side=True) as peer:
                target = peer.recv(4096).split()[1].decode()
                peer.sendall(BODIES[target])
                if target == "/slow":
                    is_done.wait()

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield HttpsClient(lambda _host: "127.0.0.1", server.server_address[1])
        is_done.set()
        server.shutdown()


def test_a_url_is_fetched_over_tls(client: HttpsClient) -> None:
    """The client connects to the checked address, and the certificate must be the host's."""
    access = MediaAccess(hosts=(HOST, "other.example"))
    assert fetch_media(f"https://{HOST}/whole", access, None, client) == DATA
    with pytest.raises(BadMedia, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_media("https://other.example/whole", access, None, client)


@pytest.mark.parametrize(
    ("target", "reason"), [("part", "ends before"), ("moved", "redirects"), ("slow", "too slow")]
)
def test_an_incomplete_response_is_refused(client: HttpsClient, target: str, reason: str) -> None:
    """One that ends early, redirects, or takes longer than `timeout_s` in total."""
    access = MediaAccess(hosts=(HOST,), timeout_s=0.5)
    with pytest.raises(BadMedia, match=reason):
        fetch_media(f"https://{HOST}/{target}", access, None, client)


def test_a_small_image_is_not_changed() -> None:
    """Its size and its pixels remain."""
    (out,) = decode_image(png(4, 3), 100)
    image = engine_input(out)
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((4, 3), "RGB", (255, 0, 0))


def test_transparent_pixels_become_white() -> None:
    """An alpha channel is composed on white, which models expect."""
    (out,) = decode_image(png(mode="RGBA", color=(0, 0, 0, 0)), 100)
    assert engine_input(out).getpixel((0, 0)) == (255, 255, 255)


def test_a_large_image_is_scaled_to_max_pixels() -> None:
    """It keeps its proportions."""
    (out,) = decode_image(png(200, 100), 200)
    assert engine_input(out).size == (20, 10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More pixels than Pillow considers safe: up to twice its limit, and above."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for width in (11, 100):
        with pytest.raises(BadMedia, match=r"pixels|DecompressionBomb"):
            decode_image(png(width, 10), 10)


@pytest.mark.parametrize("data", [b"", b"no image", png(50, 50)[:60], b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_bad_media(data: bytes) -> None:
    """Whatever error the decoder raises."""
    with pytest.raises(BadMedia, match="the image cannot be decoded") as raised:
        decode_image(data, 100)
    # Otherwise the same file would have another message in the next run.
    assert " at 0x" not in str(raised.value)


def test_audio_of_the_models_rate_is_not_changed() -> None:
    """Samples of 16 bits at 16 kHz are not changed, and the engine receives them as floats."""
    samples = np.array([0, 1, -32768, 32767], np.int16)
    decoded = decode_audio(wav(samples), 1)
    assert decoded.tolist() == samples.tolist()
    floats = engine_input(Media("audio", decoded.astype("<i2").tobytes()))
    assert floats.tolist() == [0, 2**-15, -1, 32767 / 32768]


def test_audio_is_mixed_to_one_channel_and_resampled() -> None:
    """Two channels at 48 kHz become their mean at 16 kHz."""
    time = np.arange(48_000 * 12) / 48_000
    tone = 8000 * np.sin(2 * np.pi * 440 * time)
    decoded = decode_audio(wav(np.stack([tone, np.zeros_like(tone)], 1), 48_000, 2), 60)
    assert len(decoded) == 16_000 * 12
    expected = 4000 * np.sin(2 * np.pi * 440 * np.arange(len(decoded)) / 16_000)
    assert np.abs(decoded - expected)[800:-800].max() < 40


@pytest.mark.parametrize("data", [b"", b"RIFFno", wav([])])
def test_broken_and_empty_audio_is_bad_media(data: bytes) -> None:
    """Whatever error the decoder raises, if any."""
    with pytest.raises(BadMedia):
        decode_audio(data, 60)


def test_long_audio_is_refused_by_its_header() -> None:
    """The length is compared with `max_seconds` before anything is decoded."""
    with pytest.raises(BadMedia, match="max_seconds"):
        decode_audio(wav(np.zeros(16_001)), 1)


def test_null_is_empty_input_and_other_rows_are_not_affected(folder: Path) -> None:
    """A row's bytes are used as they are; of a struct, the bytes come first, then the path."""
    values = [None, DATA, {"bytes": DATA, "path": None}, {"bytes": None, "path": "deep/a.png"}, ""]
    store = open_store(str(folder))
    read = read_media(values, "image", MediaAccess(), store, lambda data: [Media("image", data)])
    results = [item.reject_class if isinstance(item, Reject) else item[0].data for item in read]
    assert results == ["empty_input", DATA, DATA, DATA, "bad_media"]


def test_a_column_of_another_type_stops_the_run() -> None:
    """Numbers are not images: the job names the wrong column."""
    with pytest.raises(UserError, match="neither bytes nor paths but int"):
        read_media([1], "image", MediaAccess(), None, lambda _: [])
