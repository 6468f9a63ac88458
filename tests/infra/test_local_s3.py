"""The local S3 server behaves as the pipeline needs S3 to behave, and leaves nothing behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
import s3fs
from helpers.s3_server import SERVE, S3Server, load_serve

MIB = 2**20
ONE_REQUEST = {"first": b"first", "second": b"second"}
MULTIPART = {"first": b"1" * 11 * MIB, "second": b"2" * 11 * MIB}


def filesystem() -> Any:
    return s3fs.S3FileSystem(use_listings_cache=False)


def create(path: str, data: bytes) -> None:
    """Write an object that must not exist; at 10 MiB and above in parts of 5 MiB."""
    filesystem().pipe_file(path, data, chunksize=5 * MIB, mode="create")


def status(error: OSError) -> int | None:
    """The HTTP status behind an error of s3fs."""
    response = getattr(error.__cause__, "response", {})
    code: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return code


def test_object_reads_back(s3_bucket: str) -> None:
    """A written object reads back, whole and by range."""
    filesystem().pipe_file(f"{s3_bucket}/a/b", b"0123456789")
    assert filesystem().cat_file(f"{s3_bucket}/a/b") == b"0123456789"
    assert filesystem().cat_file(f"{s3_bucket}/a/b", start=2, end=5) == b"234"


@pytest.mark.parametrize("data", [ONE_REQUEST, MULTIPART], ids=["one request", "multipart"])
def test_second_create_is_refused(s3_bucket: str, data: dict[str, bytes]) -> None:
    """A conditional create of an existing key is refused and leaves the first bytes."""
    path = f"{s3_bucket}/key"
    create(path, data["first"])
    # FileExistsError on AWS; here a plain OSError, as the answer lacks AWS's <Condition> element.
    with pytest.raises(OSError, match="pre-conditions") as refusal:
        create(path, data["second"])
    assert status(refusal.value) == 412
    assert filesystem().cat_file(path) == data["first"]


def test_large_object_is_uploaded_in_parts(s3_bucket: str) -> None:
    """An object above the chunk size goes up in parts, and a refused one leaves no upload open."""
    path = f"{s3_bucket}/key"
    create(path, MULTIPART["first"])
    assert filesystem().info(path)["ETag"].strip('"').endswith("-3")
    with pytest.raises(OSError, match="pre-conditions"):
        create(path, MULTIPART["second"])
    assert filesystem().list_multipart_uploads(s3_bucket) == []


def race(path: str) -> tuple[list[bytes], list[int | None]]:
    """Create a key from two threads at once: the accepted bodies, the statuses of refusals."""
    accepted: list[bytes] = []
    refused: list[int | None] = []
    together = threading.Barrier(2)

    def attempt(body: bytes) -> None:
        together.wait()
        try:
            create(path, body)
            accepted.append(body)
        except OSError as error:
            refused.append(status(error))

    threads = [threading.Thread(target=attempt, args=(body,)) for body in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return accepted, refused


def test_one_of_two_concurrent_creates_wins(s3_bucket: str) -> None:
    """Of two threads that create the same key, exactly one wins, and its bytes stay."""
    for number in range(20):
        path = f"{s3_bucket}/race-{number}"
        accepted, refused = race(path)
        assert (len(accepted), refused) == (1, [412])
        assert filesystem().cat_file(path) == accepted[0]


def test_overwrite_can_be_conditional_on_the_etag(s3_server: S3Server, s3_bucket: str) -> None:
    """An overwrite with If-Match is accepted for the current ETag and refused for an older one."""
    put = s3_server.client.put_object
    first = put(Bucket=s3_bucket, Key="key", Body=b"1")["ETag"]
    put(Bucket=s3_bucket, Key="key", Body=b"2", IfMatch=first)
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        put(Bucket=s3_bucket, Key="key", Body=b"3", IfMatch=first)
    assert filesystem().cat_file(f"{s3_bucket}/key") == b"2"


def test_listing_goes_over_pages(s3_server: S3Server, s3_bucket: str) -> None:
    """A listing that takes more than one page of 1000 keys is complete and in key order."""
    keys = [f"{s3_bucket}/many/{number:04d}" for number in range(1001)]

    def write(key: str) -> None:
        s3_server.client.put_object(Bucket=s3_bucket, Key=key.partition("/")[2], Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, keys))
    assert list(filesystem().find(f"{s3_bucket}/many")) == keys


def test_request_without_credentials_is_refused(s3_bucket: str) -> None:
    """A request that is not signed, or signed with another secret, is refused."""
    filesystem().pipe_file(f"{s3_bucket}/key", b"private")
    strangers = [
        s3fs.S3FileSystem(anon=True, use_listings_cache=False),
        s3fs.S3FileSystem(key="local-s3", secret="0" * 32, use_listings_cache=False),
    ]
    for stranger in strangers:
        with pytest.raises(PermissionError):
            stranger.cat_file(f"{s3_bucket}/key")
        with pytest.raises(PermissionError):
            stranger.pipe_file(f"{s3_bucket}/key", b"mine")


def test_missing_bucket_is_not_found(s3_bucket: str) -> None:
    """A write into a bucket that does not exist fails instead of creating the bucket."""
    with pytest.raises(FileNotFoundError):
        filesystem().pipe_file(f"{s3_bucket}-missing/key", b"")


@contextmanager
def command_line(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """serve.py as people start it, and the lines it has printed once it serves."""
    command = [sys.executable, str(SERVE), "--folder", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(6)]
            yield process, lines
        finally:
            process.kill()


def exports(lines: list[str]) -> dict[str, str]:
    """The environment variables among the printed lines."""
    pairs = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    return dict(pair.split("=", 1) for pair in pairs)


def demo_client(lines: list[str]) -> Any:
    """A file system that knows only the printed values."""
    told = exports(lines)
    return s3fs.S3FileSystem(
        endpoint_url=told["AWS_ENDPOINT_URL"],
        key=told["AWS_ACCESS_KEY_ID"],
        secret=told["AWS_SECRET_ACCESS_KEY"],
        client_kwargs={"region_name": told["AWS_DEFAULT_REGION"]},
        skip_instance_cache=True,
    )


def test_command_line_serves_until_interrupted(tmp_path: Path) -> None:
    """What serve.py prints is enough to write to its bucket, and an interrupt ends it cleanly."""
    with command_line(tmp_path) as (process, lines):
        demo_client(lines).pipe_file("demo/key", b"value")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    port = int(exports(lines)["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.skipif(sys.platform != "linux", reason="relies on the parent-death signal")
def test_kill_leaves_no_server_and_loses_no_object(tmp_path: Path) -> None:
    """The server ends with a killed parent; the next start has the same key and the objects."""
    with command_line(tmp_path) as (process, lines):
        demo_client(lines).pipe_file("demo/key", b"value")
        server = os.pidfd_open(int(lines[0].partition("(pid ")[2].partition(")")[0]))
        process.kill()
        ended, _, _ = select.select([server], [], [], 30)
        os.close(server)
        assert ended
    with load_serve().local_s3(tmp_path) as again:
        assert again.secret_key == exports(lines)["AWS_SECRET_ACCESS_KEY"]
        stored = again.client.get_object(Bucket="demo", Key="key")
        assert stored["Body"].read() == b"value"


def test_credentials_file_is_private(tmp_path: Path) -> None:
    """Only the owner can read the file with the access key."""
    serve = load_serve()
    serve.identity(tmp_path / "s3.json")
    assert (tmp_path / "s3.json").stat().st_mode & 0o777 == 0o600


def test_taken_port_is_replaced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a port is taken just before the server binds it, the server starts on other ports."""
    serve = load_serve()
    free_ports = serve.free_ports
    choices: list[Any] = []
    with socket.socket() as rival:

        def choose(port: int | None) -> Any:
            choices.append(free_ports(port))
            if len(choices) == 1:
                rival.bind((serve.HOST, choices[0].http["master"]))
                rival.listen()
            return choices[-1]

        monkeypatch.setattr(serve, "free_ports", choose)
        with serve.local_s3(tmp_path) as server:
            server.create_bucket("demo")
    assert len(choices) == 2


def test_failed_start_shows_the_log(tmp_path: Path) -> None:
    """A server that cannot start raises an error with the last lines of its log."""
    serve = load_serve()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "filerldb2").write_text("not a folder")
    with pytest.raises(serve.LocalS3Error, match="filerldb2"), serve.local_s3(tmp_path):
        pass


def test_asked_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """A port that was asked for and is taken is an error that names it."""
    serve = load_serve()
    with socket.create_server((serve.HOST, 0)) as rival:
        port = rival.getsockname()[1]
        with (
            pytest.raises(serve.LocalS3Error, match=f"{port}: Address already in use"),
            serve.local_s3(tmp_path, port),
        ):
            pass
