"""Stores for tests, and stores that fail.

The fixtures `root` and `store` run a test on every kind of store. `CrashingStore` crashes between
two calls (`killing` kills a process within one), and `StubS3` fails like a network or a busy
server.
"""

import hashlib
import itertools
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pytest
from tokenmill.errors import TokenmillError
from tokenmill.output.record import UnitRecord
from tokenmill.plan.plan import Unit
from tokenmill.storage.base import Store
from tokenmill.storage.memory import MemoryStore
from tokenmill.storage.open import open_store

from helpers.s3_server import use_only

ON_S3 = pytest.param("s3", marks=pytest.mark.integration)


@pytest.fixture
def memory_store() -> Iterator[Store]:
    """An empty store in memory."""
    store = open_store(f"memory://{uuid.uuid4().hex}")
    yield store
    # Otherwise the process keeps the objects until it ends.
    for item in store.list():
        store.delete(item.key)


@pytest.fixture(params=["local", "memory", ON_S3])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty output: a folder, a name in memory, and a prefix in a bucket."""
    if request.param == "local":
        yield str(tmp_path / "out")
    elif request.param == "s3":
        yield f"s3://{request.getfixturevalue('s3_bucket')}/out"
    else:
        yield f"{request.getfixturevalue('memory_store').url}/out"


@pytest.fixture
def store(root: str) -> Store:
    """An empty store."""
    return open_store(root)


def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    """All objects that a reader sees, by key."""
    return {item.key: store.read(item.key) for item in store.list(prefix)}


def keys(store: Store, prefix: str = "") -> list[str]:
    """The keys of a listing, in its order."""
    return [item.key for item in store.list(prefix)]


def refusal(kind: type[TokenmillError], operation: Callable[[], object]) -> str:
    """The message, in one line, of the error of exactly this `kind` that the operation raises."""
    with pytest.raises(TokenmillError) as failed:
        operation()
    assert type(failed.value) is kind, failed.value
    message = str(failed.value)
    assert len(message.splitlines()) == 1
    return message


def unit(number: int = 0, num_rows: int = 3, shard: str = "a.parquet") -> Unit:
    """The n-th unit of a shard whose units have `num_rows` rows."""
    return Unit(shard, 1000, "v1", number * num_rows, num_rows, 30)


def answers(of: Unit, writer: str = "") -> pa.Table:
    """The unit's rows as an output stores them. An answer names its row and its writer."""
    rows = range(of.first_row, of.end_row)
    return pa.table(
        {
            "answer": [f"row {row} {writer}".strip() for row in rows],
            "source_row": pa.array(rows, pa.int64()),
        }
    )


def record(of: Unit, **changes: Any) -> UnitRecord:
    """The record of the unit's object, with other values for some fields."""
    facts: dict[str, Any] = {
        "version": "0.0.0",
        "run": "a-run",
        "attempt": "an-attempt",
        "fingerprint": "a-job",
        "model": "fake",
        "revision": None,
        "engine": "fake",
        "engine_version": "1",
        "unit": of.key,
        "shard_version": of.version,
        "num_rows": of.num_rows,
        "num_filtered": 0,
        "rejects": {},
        "input_tokens": 30,
        "generated_tokens": 12,
        "seconds": 0.5,
    }
    return UnitRecord(**facts | changes)


# A crash between two calls of a store.


class Crash(BaseException):
    """The end of the process: `except Exception` does not catch it."""


@dataclass
class CrashingStore:
    """A store whose process crashes before or after call number `crash_at`, counted from 0.

    -1 means never. After the crash, the next call of any other thread crashes too.
    """

    inner: Store
    crash_at: int = -1
    after: bool = False
    calls: list[str] = field(default_factory=list)
    has_crashed: bool = False

    @property
    def url(self) -> str:
        return self.inner.url

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if self.has_crashed:
                raise Crash
            crashes = len(self.calls) == self.crash_at
            self.calls.append(name)
            self.has_crashed = crashes
            if crashes and not self.after:
                raise Crash
            result = getattr(self.inner, name)(*arguments)
            if crashes:
                # The system closes the open files of a crashed process.
                getattr(result, "close", lambda: None)()
                raise Crash
            return result

        return call


@dataclass
class RacingStore:
    """A store that calls `race` with 1, 2, … right before each `put_if_match`."""

    inner: Store
    race: Callable[[int], object]
    num_writes: int = 0

    @property
    def url(self) -> str:
        return self.inner.url

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        self.num_writes += 1
        self.race(self.num_writes)
        return self.inner.put_if_match(key, data, version)


class VanishingStore(MemoryStore):
    """A store in which every object exists when it is written and is then deleted."""

    def __init__(self) -> None:
        super().__init__("memory://vanishing")

    def put_if_absent(self, key: str, data: bytes) -> bool:  # noqa: ARG002
        return False


# An S3 server that fails on request.


class Fault(Enum):
    """What happens to one PUT. Refusals are the status and code of the server's answer."""

    LOST_REPLY = "the object is written and the connection breaks"
    CUT_REQUEST = "the connection breaks before the object is written"
    SLOW_DOWN = (503, "SlowDown")
    # AWS's answer to a conditional write while another one of the same key is in progress.
    CONFLICT = (409, "ConditionalRequestConflict")


# S3's number of keys on one page of a listing.
_PAGE = 1_000


class StubS3(ThreadingHTTPServer):
    """An S3 server with objects in memory. Each of the next PUTs gets one of the `faults`.

    `requests` has the methods of all requests; the request for a page of a listing is `LIST`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        # In S3, checking a condition and writing is one step.
        self.writing = threading.Lock()
        self.endpoint_url = f"http://127.0.0.1:{self.server_port}"
        self.store = open_store("s3://bucket/out", self.endpoint_url)


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324 - as S3 does


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubS3

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append("PUT")
        with self.server.writing:
            self._put(body, self.server.faults.pop(0) if self.server.faults else None)

    def _put(self, body: bytes, fault: Fault | None) -> None:
        if fault in {Fault.SLOW_DOWN, Fault.CONFLICT}:
            self._refuse(*fault.value)
        elif fault is Fault.CUT_REQUEST:
            self.close_connection = True
        elif "If-None-Match" in self.headers and self.path in self.server.objects:
            self._refuse(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
        elif self.headers.get("If-Match", self._etag()) != self._etag():
            self._refuse(412, "PreconditionFailed", "<Condition>If-Match</Condition>")
        else:
            self.server.objects[self.path] = body
            if fault is Fault.LOST_REPLY:
                self.close_connection = True
            else:
                self._answer(200, b"", body)

    def _etag(self) -> str | None:
        body = self.server.objects.get(self.path)
        return None if body is None else f'"{_md5(body)}"'

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if "list-type" in query:
            self._list(url.path, query)
            return
        self.server.requests.append(self.command)
        body = self.server.objects.get(self.path)
        if body is None:
            self._refuse(404, "NoSuchKey")
            return
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if requested is None:
            self._answer(200, body, body)
        else:
            self._answer(206, body[int(requested[1]) : int(requested[2]) + 1], body)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        self.server.requests.append("LIST")
        paths = {unquote(path.removeprefix(f"{bucket}/")): path for path in self.server.objects}
        keys = sorted(key for key in paths if key.startswith(query.get("prefix", "")))
        later = [key for key in keys if key > query.get("continuation-token", "")]
        page = list(itertools.islice(later, int(query.get("max-keys", _PAGE))))
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.server.objects[paths[key]])}</Size>"
            f"<ETag>{_md5(self.server.objects[paths[key]])}</ETag></Contents>"
            for key in page
        )
        more = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if later[_PAGE:] else ""
        listing = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{entries}"
        self._answer(200, f"<ListBucketResult>{listing}</ListBucketResult>".encode(), b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Do not log."""

    def _refuse(self, status: int, code: str, more: str = "") -> None:
        self._answer(status, f"<Error><Code>{code}</Code>{more}</Error>".encode(), b"")

    def _answer(self, status: int, body: bytes, whole: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", _md5(whole))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def stub_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubS3]:
    """A stub of S3, with a store on it."""
    use_only({"AWS_ACCESS_KEY_ID": "stub", "AWS_SECRET_ACCESS_KEY": "stub"}, monkeypatch)
    with StubS3() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
