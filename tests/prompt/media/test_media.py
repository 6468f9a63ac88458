"""Media of rows: what is read from where, and what is refused before anything is opened."""

import io
import os
import socket
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
from tokenmill.prompt.media import fetch as media
from tokenmill.prompt.media.decode import audio_samples, decoded, image_media
from tokenmill.prompt.media.fetch import (
    BadMedia,
    MediaAccess,
    fetch_media,
    key_below,
    public_address,
    read_media,
    response_body,
)
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Media
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

DATA = bytes(range(9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An input's folder with a file in it, and a secret beside it."""
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
    """What stands below the input's folder is read, however it is named."""
    store = open_store(str(folder))
    assert fetch_media(path.format(root=folder), MediaAccess(), store) == DATA


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "deep/../../secret.png",
        "{root}/../secret.png",
        "{parent}/secret.png",
        # Begins with the root's letters, and is no folder below it.
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
def test_nothing_outside_of_the_input_is_read(folder: Path, path: str) -> None:
    """Parts that lead up, links, pipes, other roots and schemes, odd names: each is the row's."""
    store = open_store(str(folder))
    with pytest.raises(BadMedia):
        fetch_media(path.format(root=folder, parent=folder.parent), MediaAccess(), store)


@pytest.mark.parametrize(
    ("path", "key"), [("a/b.png", "a/b.png"), ("s3://bucket/in/a.png", "a.png")]
)
def test_keys_in_a_bucket_follow_the_same_rule(path: str, key: str) -> None:
    """Relative to the prefix, or with the whole URL."""
    assert key_below(path, "s3://bucket/in") == key


@pytest.mark.parametrize(
    "path", ["s3://bucket/inner/a.png", "s3://other/in/a.png", "/a.png", "../a.png"]
)
def test_other_prefixes_and_buckets_are_refused(path: str) -> None:
    """The input's prefix is all that a row reaches."""
    with pytest.raises(BadMedia):
        key_below(path, "s3://bucket/in")


def test_a_file_above_the_cap_is_not_read(folder: Path) -> None:
    """`max_bytes` holds for stored files and for a row's own bytes."""
    access = MediaAccess(max_bytes=8)
    with pytest.raises(BadMedia, match="max_bytes"):
        fetch_media("deep/a.png", access, open_store(str(folder)))
    (read,) = read_media([DATA], "image", access, None, lambda _: [])
    assert isinstance(read, Reject)
    assert read.reject_class is RejectClass.BAD_MEDIA


def test_a_url_of_an_allowed_host_is_asked_for() -> None:
    """Host and path go to the host that the job names, its fragment does not."""
    asked = []

    def get(host: str, target: str, access: MediaAccess) -> bytes:  # noqa: ARG001
        asked.append((host, target))
        return DATA

    access = MediaAccess(hosts=("images.example",))
    assert fetch_media("https://IMAGES.example:443/a%20b?c=1#d", access, None, get) == DATA
    assert asked == [("images.example", "/a%20b?c=1")]


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
def test_no_other_url_is_asked_for(url: str) -> None:
    """Another host, port, user or scheme, or a URL that is none, is refused unasked."""

    def get(host: str, target: str, access: MediaAccess) -> bytes:  # noqa: ARG001
        raise AssertionError(url)

    with pytest.raises(BadMedia):
        fetch_media(url, MediaAccess(hosts=("images.example",)), None, get)


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
def test_hosts_of_private_networks_are_refused_after_the_look_up(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], is_public: bool
) -> None:
    """An allowed name that leads to this machine or its network is not connected to."""
    found = [(0, 0, 0, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    if is_public:
        assert public_address("images.example") == addresses[0]
    else:
        with pytest.raises(BadMedia, match="public internet"):
            public_address("images.example")


class Answer:
    """A socket that answers so."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._text)


def answered(text: bytes, access: MediaAccess) -> bytes:
    response = HTTPResponse(Answer(text))  # type: ignore[arg-type]
    response.begin()
    return response_body(response, access)


def test_redirects_and_errors_of_a_host_are_refused() -> None:
    """Only 200 has a body for us; a redirect could lead anywhere."""
    access = MediaAccess(max_bytes=4)
    assert answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", access) == b"ok"
    with pytest.raises(BadMedia, match="redirects are not followed"):
        answered(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\n\r\n", access)
    with pytest.raises(BadMedia, match="404"):
        answered(b"HTTP/1.1 404 Not Found\r\n\r\n", access)


def test_an_answer_is_not_read_beyond_the_cap() -> None:
    """A body without a length ends one byte above `max_bytes`, which is then refused."""
    body = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100
    assert len(answered(body, MediaAccess(max_bytes=4))) == 5


def test_a_path_is_read_from_the_inputs_store(store: Store) -> None:
    """Local or S3: relative, or with the store's whole URL; what is absent is bad media."""
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
    # Never ends.
    "/slow": b"HTTP/1.1 200 OK\r\n\r\n" + DATA,
}


def own_certificate(name: str) -> bytes:
    """Of a host with this name, by itself, with its key."""
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


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An https host on this machine, in the place of one of the internet."""
    name = "images.example"
    certificate = tmp_path / "host.pem"
    certificate.write_bytes(own_certificate(name))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    gone = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), tls.wrap_socket(self.request, server_side=True) as served:
                target = served.recv(4096).split()[1].decode()
                served.sendall(BODIES[target])
                if target == "/slow":
                    gone.wait()

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(media, "public_address", lambda _: "127.0.0.1")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(media, "_HTTPS_PORT", server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield name
        gone.set()
        server.shutdown()


def test_a_url_is_fetched_over_tls(host: str) -> None:
    """The host's name is what its certificate must be of, its checked address what is asked."""
    access = MediaAccess(hosts=(host, "other.example"))
    assert fetch_media(f"https://{host}/whole", access, None) == DATA
    with pytest.raises(BadMedia, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_media("https://other.example/whole", access, None)


@pytest.mark.parametrize(
    ("target", "reason"), [("part", "ends before"), ("moved", "redirects"), ("slow", "too slow")]
)
def test_half_an_answer_is_none(host: str, target: str, reason: str) -> None:
    """What ends early, leads elsewhere, or takes longer than `timeout_s` in all."""
    with pytest.raises(BadMedia, match=reason):
        fetch_media(f"https://{host}/{target}", MediaAccess(hosts=(host,), timeout_s=0.5), None)


def test_an_image_comes_out_as_it_was() -> None:
    """Pixels of a small image are not changed."""
    (out,) = image_media(png(4, 3), 100)
    image = decoded(out)
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((4, 3), "RGB", (255, 0, 0))


def test_what_is_transparent_is_white() -> None:
    """An alpha channel is put on white, as models are used to."""
    (out,) = image_media(png(mode="RGBA", colour=(0, 0, 0, 0)), 100)
    assert decoded(out).getpixel((0, 0)) == (255, 255, 255)


def test_a_large_image_is_scaled_to_max_pixels() -> None:
    """Its proportions stay."""
    (out,) = image_media(png(200, 100), 200)
    assert decoded(out).size == (20, 10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pixels than Pillow deems safe: between its limit and the double, and above."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for width in (11, 100):
        with pytest.raises(BadMedia, match=r"pixels|DecompressionBomb"):
            image_media(png(width, 10), 10)


@pytest.mark.parametrize("data", [b"", b"no image", png(50, 50)[:60], b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_bad_media(data: bytes) -> None:
    """Whatever the decoder says of it."""
    with pytest.raises(BadMedia, match="not a sound image") as refused:
        image_media(data, 100)
    # Else the same file had another message in the next run.
    assert " at 0x" not in str(refused.value)


def test_audio_of_the_models_rate_is_not_changed() -> None:
    """Samples of 16 bits at 16 kHz come out as they were, and the engine gets them as floats."""
    samples = np.array([0, 1, -32768, 32767], np.int16)
    read = audio_samples(wav(samples), 1)
    assert read.tolist() == samples.tolist()
    floats = decoded(Media("audio", read.astype("<i2").tobytes()))
    assert floats.tolist() == [0, 2**-15, -1, 32767 / 32768]


def test_audio_is_mixed_to_one_channel_and_resampled() -> None:
    """Two channels at 48 kHz become their mean at 16 kHz."""
    time = np.arange(48_000 * 12) / 48_000
    tone = 8000 * np.sin(2 * np.pi * 440 * time)
    read = audio_samples(wav(np.stack([tone, np.zeros_like(tone)], 1), 48_000, 2), 60)
    assert len(read) == 16_000 * 12
    expected = 4000 * np.sin(2 * np.pi * 440 * np.arange(len(read)) / 16_000)
    assert np.abs(read - expected)[800:-800].max() < 40


@pytest.mark.parametrize("data", [b"", b"RIFFno", wav([])])
def test_broken_and_empty_audio_is_bad_media(data: bytes) -> None:
    """Whatever the decoder says of it."""
    with pytest.raises(BadMedia):
        audio_samples(data, 60)


def test_long_audio_is_refused_by_its_header() -> None:
    """`max_seconds` is held against the length before anything is decoded."""
    with pytest.raises(BadMedia, match="max_seconds"):
        audio_samples(wav(np.zeros(16_001)), 1)


def test_null_is_empty_input_and_others_go_on(folder: Path) -> None:
    """Each row has its own fate; a struct of bytes and path gives the bytes, or else the path."""
    values = [None, DATA, {"bytes": DATA, "path": None}, {"bytes": None, "path": "deep/a.png"}, ""]
    store = open_store(str(folder))
    read = read_media(values, "image", MediaAccess(), store, lambda data: [Media("image", data)])
    classes = [each.reject_class if isinstance(each, Reject) else each[0].data for each in read]
    assert classes == ["empty_input", DATA, DATA, DATA, "bad_media"]


def test_a_column_of_another_type_stops_the_run() -> None:
    """Numbers are nobody's images: the job names the wrong column."""
    with pytest.raises(UserError, match="neither bytes nor paths but int"):
        read_media([1], "image", MediaAccess(), None, lambda _: [])
