"""Outputs to write to, and the ways in which a writer of them can die.

`root` is a place on each kind of store. `run_through` takes a small job from nothing to _SUCCESS
without Ray or an engine. `CrashingStore` dies between two calls of a store, `killed_at_line` within
one, and `FaultyS3` stands between a client and an S3 server and does what networks do.
"""

import http.client
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from factories import job

import pipeline.store
from pipeline.commit import Commit, UnitRecord, commit
from pipeline.job import Job
from pipeline.output import Totals, verify, write_success
from pipeline.plan import Unit
from pipeline.run import Prepared, finished_before, prepare
from pipeline.source import ROW_COLUMN
from pipeline.store import ObjectInfo, Store, open_store

LOCATIONS = ("local", "s3")


@pytest.fixture(params=LOCATIONS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a place that holds nothing yet: a folder, and a prefix in a bucket."""
    if request.param == "local":
        return str(tmp_path / "out")
    return f"s3://{request.getfixturevalue('s3_bucket')}/out"


# A small job, from its corpus to its output.


def parquet(columns: Mapping[str, Any] | pa.Table, **options: Any) -> bytes:
    """A Parquet file with these columns."""
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def write_corpus(url: str, rows: Mapping[str, int]) -> None:
    """Shards with so many rows, by their keys; every row's text is another."""
    store = open_store(url)
    for key, num_rows in rows.items():
        texts = pa.array([f"{key} {row}" for row in range(num_rows)], pa.string())
        store.replace(key, parquet({"text": texts}))


def small_job(corpus: str, output: str, **changes: Any) -> Job:
    """A job over a corpus that needs no engine; three rows a unit."""
    return job(
        {"input.path": corpus, "output.path": output, "units": {"rows": 3}}
        | {name.replace("__", "."): value for name, value in changes.items()}
    )


def record(
    unit: str = "data/a/rows-000000000000-000000000003.parquet", **changes: Any
) -> UnitRecord:
    """What a unit's object says of itself, with other values for some fields."""
    facts: dict[str, Any] = {
        "version": "0.0.0",
        "run": "a-run",
        "attempt": "an-attempt",
        "fingerprint": "a-job",
        "model": "fake",
        "revision": None,
        "engine": "fake",
        "engine_version": "1",
        "unit": unit,
        "num_rows": 3,
        "num_filtered": 0,
        "num_rejected": 0,
        "input_tokens": 30,
        "generated_tokens": 12,
        "seconds": 0.5,
    }
    return UnitRecord(**facts | changes)


def answered(prepared: Prepared, unit: Unit) -> pa.Table:
    """The unit's rows as an output holds them; the answer is the text in capitals."""
    rows = prepared.source.read(unit)
    return pa.table(
        {
            "answer": pc.utf8_upper(rows.column("text")),
            "source_file": pa.array([unit.shard] * rows.num_rows, pa.string()),
            "source_row": rows.column(ROW_COLUMN),
        }
    )


def commit_unit(store: Store, prepared: Prepared, unit: Unit, **changes: Any) -> Commit:
    """Answer a unit and commit it."""
    rows = answered(prepared, unit)
    facts = {"fingerprint": prepared.plan.fingerprint, "num_rows": rows.num_rows} | changes
    return commit(store, unit, rows, record(unit.key, **facts))


def run_through(store: Store, wanted: Job) -> Totals:
    """A whole run: plan or resume, commit what is missing, verify, mark as finished."""
    totals = finished_before(wanted, store)
    if totals is not None:
        return totals
    prepared = prepare(wanted, store, has_gpus=False)
    for unit in prepared.missing:
        commit_unit(store, prepared, unit)
    totals = verify(store, prepared.plan)
    write_success(store, totals)
    return totals


def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    """Every object that a reader sees, whole."""
    return {item.key: store.read(item.key) for item in store.list(prefix)}


def units_of(store: Store) -> dict[str, pa.Table]:
    """Every object below `data/` as its rows; fails for one that is not a whole Parquet file."""
    return {
        key: pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)
        for key, data in contents(store, "data").items()
    }


# Death between two calls of a store.


class Crash(BaseException):
    """Stands for the end of the process: not even `except Exception` sees it."""


class Moment(Enum):
    """When a process dies, as seen from a call of the store."""

    BEFORE = auto()
    AFTER = auto()


@dataclass
class CrashingStore:
    """A store that writes down its calls; at one of them, if asked to, the process dies.

    After its death every call dies too: threads that still run belong to the same process.
    """

    inner: Store
    crash_at: int | None = None
    moment: Moment = Moment.BEFORE
    calls: list[str] = field(default_factory=list)
    _dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.inner.url

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._call(f"list {prefix}", lambda: [*self.inner.list(prefix)]))

    def info(self, key: str) -> ObjectInfo:
        return self._call(f"info {key}", lambda: self.inner.info(key))

    def read(self, key: str) -> bytes:
        return self._call(f"read {key}", lambda: self.inner.read(key))

    def open(self, key: str) -> BinaryIO:
        return self._call(f"open {key}", lambda: self.inner.open(key))

    def create(self, key: str, data: bytes) -> bool:
        return self._call(f"create {key}", lambda: self.inner.create(key, data))

    def replace(self, key: str, data: bytes) -> None:
        self._call(f"replace {key}", lambda: self.inner.replace(key, data))

    def _call(self, name: str, deed: Callable[[], Any]) -> Any:
        with self._lock:
            here = len(self.calls) == self.crash_at
            self.calls.append(name)
            if self._dead:
                raise Crash
            self._dead = here
        if here and self.moment is Moment.BEFORE:
            raise Crash
        # A file that is opened by a dying process is closed by the system.
        result = deed()
        if here:
            if name.startswith("open "):
                result.close()
            raise Crash
        return result


# Death within a call of the local store.

_forks = multiprocessing.get_context("forkserver")


def killed_at_line(number: int, deed: Callable[..., object], *arguments: object) -> bool:
    """Call `deed` in a process that is killed at the `number`-th line of store.py that it runs.

    Lines are counted from 0, in writing calls only (`create` and `replace`, and what they call).
    False if the deed ended before that line came.
    """
    # The server forks in milliseconds, since it has imported everything that the deed needs.
    _forks.set_forkserver_preload(["pytest", "stores"])
    process = _forks.Process(target=_run_until_line, args=(number, deed, arguments))
    process.start()
    process.join()
    if process.exitcode not in {0, -signal.SIGKILL}:
        raise AssertionError(f"the writer ended with exit code {process.exitcode}")
    return process.exitcode != 0


def _run_until_line(number: int, deed: Callable[..., object], arguments: Sequence[object]) -> None:
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != pipeline.store.__file__ or not _is_writing(frame):
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)
    deed(*arguments)


def _is_writing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name not in {"create", "replace"}:
        frame = frame.f_back
    return frame is not None


# An S3 server behind a bad network.


class Fault(Enum):
    """What happens to one PUT on its way."""

    LOST_REPLY = auto()
    CUT_REQUEST = auto()
    SLOW_DOWN = auto()
    CONFLICT = auto()


_REFUSALS = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    # AWS answers so to a conditional write while another one of the same key is under way.
    Fault.CONFLICT: (409, "ConditionalRequestConflict"),
}


@dataclass
class FaultyS3:
    """Passes requests on to an S3 server; the next PUTs meet the `faults`, one each."""

    upstream: str
    endpoint_url: str = ""
    faults: list[Fault] = field(default_factory=list)


@contextmanager
def faulty_s3(upstream: str) -> Iterator[FaultyS3]:
    """A `FaultyS3` in front of the server at `upstream`, until the block ends."""
    network = FaultyS3(upstream)

    class Handler(_Forwarder):
        faulty = network

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        network.endpoint_url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield network
        finally:
            server.shutdown()
            thread.join()


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faulty.faults.pop(0) if self.faulty.faults else None
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            self._answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
        elif fault is Fault.CUT_REQUEST:
            self._send_half(body)
            self._hang_up()
        else:
            status, headers, answer = self._forward(body)
            if fault is Fault.LOST_REPLY:
                self._hang_up()
            else:
                self._answer(status, headers, answer)

    def do_GET(self) -> None:
        self._answer(*self._forward(b""))

    def do_HEAD(self) -> None:
        self._answer(*self._forward(b""))

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _request(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(urlsplit(self.faulty.upstream).netloc)
        # The signature covers the Host header, so it goes on as it came.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {"connection", "expect"}:
                connection.putheader(name, value)
        connection.endheaders()
        return connection

    def _forward(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = self._request()
        connection.send(body)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), answer

    def _send_half(self, body: bytes) -> None:
        connection = self._request()
        connection.send(body[: len(body) // 2])
        connection.close()

    def _hang_up(self) -> None:
        self.close_connection = True

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding"}:
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def success_of(store: Store) -> dict[str, Any] | None:
    """What _SUCCESS says, if it is there."""
    try:
        counts: dict[str, Any] = json.loads(store.read("_SUCCESS"))
    except FileNotFoundError:
        return None
    return counts
