"""A bad network before a good S3 server: a proxy on loopback that spoils requests on demand.

Which requests are spoilt, and how, is a `Weather`: by script (`Forecast`) or by chance (`Storm`).
Knows nothing of what is stored. A request that is let through reaches the server unchanged, with
the `Host` that it was signed for.
"""

import asyncio
import io
import random
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import BinaryIO, Protocol

import aiohttp
from aiohttp import web
from aiohttp.client import _RequestContextManager
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

HOST = "127.0.0.1"
# Of one connection only.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
# An answer that comes too late for every client of the tests.
_HANG_S = 20.0
_START_S = 30.0


class Fault(StrEnum):
    """What happens to one request."""

    INTERNAL_ERROR = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    HANG = "no answer"
    CUT_REQUEST = "connection reset in the request's body"
    CUT_UPLOAD = "half of the body reaches the server"
    LOST_REPLY = "done, and the answer is lost"
    CONFLICT = "409 ConditionalRequestConflict"
    EXPIRED = "403 ExpiredToken"
    CUT_REPLY = "connection reset in the answer's body"
    SHORT_REPLY = "the answer ends early"
    FLIPPED_REPLY = "a bit of the answer's body is flipped"
    FLIPPED_REQUEST = "a bit of the request's body is flipped"
    WRONG_ETAG = "another ETag in the answer"


_REFUSALS = {
    Fault.INTERNAL_ERROR: (500, "InternalError", "We encountered an internal error."),
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.CONFLICT: (409, "ConditionalRequestConflict", "A conflicting operation is under way."),
    Fault.EXPIRED: (403, "ExpiredToken", "The provided token has expired."),
}


class Asked:
    """A request as a `Weather` sees it."""

    def __init__(self, request: web.BaseRequest) -> None:
        self.method = request.method
        self.path, _, self.query = request.raw_path.partition("?")
        self.is_conditional = bool({"If-None-Match", "If-Match"} & request.headers.keys())
        self.is_ours = self.path.count("/") > 1
        self.is_listing = self.method == "GET" and "list-type=2" in self.query
        self.is_later_page = self.is_listing and "continuation-token" in self.query

    def can_have(self, fault: Fault) -> bool:
        """Whether the fault can happen to such a request."""
        match fault:
            case Fault.CONFLICT:
                return self.method == "PUT" and self.is_conditional
            case Fault.CUT_REQUEST | Fault.CUT_UPLOAD | Fault.FLIPPED_REQUEST | Fault.WRONG_ETAG:
                return self.method == "PUT"
            case Fault.CUT_REPLY | Fault.SHORT_REPLY:
                return self.method == "GET"
            case Fault.FLIPPED_REPLY:
                return self.method == "GET" and not self.is_listing
        return True


class Weather(Protocol):
    """Decides what happens to a request; None lets it through."""

    def fault_of(self, asked: Asked) -> Fault | None: ...


class Forecast:
    """The next requests that fit meet these faults, one each."""

    def __init__(
        self, faults: Collection[Fault], fits: Callable[[Asked], bool] = lambda _: True
    ) -> None:
        self._faults = deque(faults)
        self._fits = fits

    def fault_of(self, asked: Asked) -> Fault | None:
        if self._faults and asked.can_have(self._faults[0]) and self._fits(asked):
            return self._faults.popleft()
        return None

    @property
    def is_over(self) -> bool:
        """Whether all of them have happened."""
        return not self._faults


class Storm:
    """A share of the requests meets a fault of these kinds.

    The n-th request of a method on a path meets the same in every run with the same seed, whatever
    comes between.
    """

    def __init__(self, seed: str, rate: float, faults: Collection[Fault]) -> None:
        self._seed = seed
        self._rate = rate
        self._faults = list(faults)
        self._asked: Counter[tuple[str, str]] = Counter()

    def fault_of(self, asked: Asked) -> Fault | None:
        self._asked[asked.method, asked.path] += 1
        count = self._asked[asked.method, asked.path]
        draw = random.Random(f"{self._seed} {asked.method} {asked.path} {count}")
        possible = [fault for fault in self._faults if asked.can_have(fault)]
        return draw.choice(possible) if possible and draw.random() < self._rate else None


class Calm:
    """Nothing happens."""

    def fault_of(self, asked: Asked) -> None:
        """Let it through."""


class FaultyS3:
    """The proxy, in a thread of its own. `faults` counts what has happened, by kind.

    `weather` may be changed at any time; `storms` are those of single buckets, and go before it.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()
        self.weather: Weather = Calm()
        self.storms: dict[str, Weather] = {}
        self.faults: Counter[Fault] = Counter()
        self.requests: Counter[str] = Counter()
        self.writes: defaultdict[str, list[str]] = defaultdict(list)
        self.endpoint_url = ""

    def _fault_of(self, asked: Asked) -> Fault | None:
        bucket = asked.path.split("/")[1]
        fault = self.storms.get(bucket, self.weather).fault_of(asked)
        self.requests[asked.method] += 1
        if asked.method in {"PUT", "POST", "DELETE"}:
            self.writes[asked.path].append(asked.method)
        if fault is not None:
            self.faults[fault] += 1
        return fault

    async def _serve_one(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except (ConnectionError, web.RequestPayloadError, aiohttp.ClientError):
            # The client was killed, or the server has hung up: the other side tries again.
            return _break(request)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = Asked(request)
        fault = self._fault_of(asked)
        if "Expect" in request.headers and request.transport is not None:
            # Clients send the body of a PUT after "100 Continue".
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is Fault.CUT_REQUEST:
            await request.content.readany()
            return _break(request)
        body = await request.content.read()
        if fault in _REFUSALS:
            status, code, message = _REFUSALS[fault]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        if fault is Fault.HANG:
            await asyncio.sleep(_HANG_S)
            return _break(request)
        if fault is Fault.CUT_UPLOAD:
            await self._send_half(request, body)
            return _break(request)
        if fault is Fault.FLIPPED_REQUEST:
            body = _flipped(body)
        status, headers, answer = await self._forward(request, body)
        if fault is Fault.LOST_REPLY:
            return _break(request)
        if fault is Fault.WRONG_ETAG:
            headers["ETag"] = '"00000000000000000000000000000000"'
        if fault is Fault.FLIPPED_REPLY:
            answer = _flipped(answer)
        return await _reply(request, status, headers, answer, fault)

    async def _forward(
        self, request: web.BaseRequest, body: bytes
    ) -> tuple[int, CIMultiDict[str], bytes]:
        async with self._send(request, io.BytesIO(body) if body else None) as answer:
            data = await answer.read()
            return answer.status, _end_to_end(answer.headers), data

    async def _send_half(self, request: web.BaseRequest, body: bytes) -> None:
        async def half() -> AsyncIterator[bytes]:
            yield body[: len(body) // 2]
            raise ConnectionResetError

        try:
            async with self._send(request, half()):
                pass
        except (aiohttp.ClientError, ConnectionError):
            return

    def _send(
        self, request: web.BaseRequest, body: BinaryIO | AsyncIterator[bytes] | None
    ) -> _RequestContextManager:
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = _end_to_end(request.headers)
        return self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        )

    async def _serve(self, ready: threading.Event, stopped: asyncio.Event) -> None:
        skipped = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
        async with aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=skipped,
            connector=aiohttp.TCPConnector(limit=0),
        ) as self._session:
            server = web.Server(self._serve_one, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, HOST, 0).start()
            self.endpoint_url = f"http://{HOST}:{runner.addresses[0][1]}"
            ready.set()
            await stopped.wait()
            await runner.cleanup()

    @contextmanager
    def running(self) -> Iterator["FaultyS3"]:
        """Serve until the block ends."""
        with asyncio.Runner() as asynchronous:
            loop = asynchronous.get_loop()
            ready, stopped = threading.Event(), asyncio.Event()
            thread = threading.Thread(target=asynchronous.run, args=(self._serve(ready, stopped),))
            thread.start()
            try:
                assert ready.wait(_START_S), "the proxy did not start"
                yield self
            finally:
                loop.call_soon_threadsafe(stopped.set)
                thread.join()


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = headers.copy()
    for name in [name for name in kept if name.lower() in _HOP_BY_HOP]:
        del kept[name]
    return kept


def _flipped(body: bytes) -> bytes:
    if not body:
        return body
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def _break(request: web.BaseRequest) -> web.Response:
    """Reset the connection; what is returned is never sent."""
    transport = request.transport
    if transport is not None:
        # A reset rather than an end: nothing is left to send, not even a farewell.
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def _reply(
    request: web.BaseRequest,
    status: int,
    headers: CIMultiDict[str],
    body: bytes,
    fault: Fault | None,
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    if "Content-Length" not in headers:
        response.content_length = len(body)
    await response.prepare(request)
    if request.method == "HEAD":
        await response.write_eof()
        return response
    if fault in {Fault.CUT_REPLY, Fault.SHORT_REPLY}:
        await response.write(body[: len(body) // 2])
        if fault is Fault.SHORT_REPLY and request.transport is not None:
            request.transport.close()
            return response
        _break(request)
        return response
    await response.write(body)
    await response.write_eof()
    return response
