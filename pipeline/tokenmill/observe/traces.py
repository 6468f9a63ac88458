"""Traces for OpenTelemetry: a run is a trace, and each unit and each of its stages is a span.

The driver makes the spans from the commits, so a replica that crashes loses none. This module knows
nothing of rows, so no text of a row can get into a span. Ids are hashes of the run's and the units'
names. OpenTelemetry is imported only if an endpoint is set.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from tokenmill.formatting import plural
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Limits on the memory and the time at the end that a hanging collector can cost.
_MAX_QUEUED = 16_384
_MAX_SPANS_PER_REQUEST = 512
_FLUSH_S = 5.0
_REQUEST_S = 3.0
_INTERVAL_S = 1.0


def traces_of(run: str, job: str, say: Callable[[str], None]) -> RunListener:
    """A listener that sends the run's trace, if OpenTelemetry's variables name an endpoint.

    At the end it reports in one line how many spans were lost.
    """
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return RunListener()
    # The URL may hold a password.
    return _OtlpTraces(run, job, endpoint.rpartition("@")[2], say)


class _OtlpTraces(RunListener):
    """Sends spans to the collector that OpenTelemetry's own variables name."""

    def __init__(self, run: str, job: str, endpoint: str, say: Callable[[str], None]) -> None:
        self._run = run
        self._endpoint = endpoint
        self._say = say
        self._names = {"tokenmill.run": run, "tokenmill.job": job}
        self._started_at = time.time()
        self._sender = _Sender()

    def committed(self, commit: Commit, progress: Progress) -> None:
        del progress
        record, times = commit.record, commit.stage_times
        name = f"unit {record.unit} {record.attempt}"
        span = (min(start for start, _ in times.values()), max(end for _, end in times.values()))
        attributes: dict[str, str | int] = {
            "tokenmill.unit": record.unit,
            "tokenmill.replica": record.replica,
            "tokenmill.attempt": record.attempt,
            "tokenmill.committed": commit.is_ours,
            "tokenmill.rows": record.num_rows,
            "tokenmill.filtered": record.num_filtered,
            "tokenmill.rejected": record.counts.rejected,
            "tokenmill.input_tokens": record.input_tokens,
            "tokenmill.generated_tokens": record.generated_tokens,
        }
        self._send("unit", name, "run", span, attributes)
        for stage, ends in times.items():
            self._send(stage, f"{stage} of {name}", name, ends, {"tokenmill.unit": record.unit})

    def ended(self, error: BaseException | None) -> None:
        self._send("run", "run", None, (self._started_at, time.time()), {}, failure=error)
        lost = self._sender.close()
        if lost:
            self._say(
                f"{plural(lost, 'trace span')} did not reach {self._endpoint}; the output does not "
                "depend on them"
            )

    def _send(  # noqa: PLR0913 - the parts of a span
        self,
        kind: str,
        name: str,
        parent: str | None,
        ends: tuple[float, float],
        attributes: Mapping[str, str | int],
        *,
        failure: BaseException | None = None,
    ) -> None:
        from opentelemetry.sdk.trace import Event, ReadableSpan  # noqa: PLC0415
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        start_ns, end_ns = (int(seconds * 1e9) for seconds in ends)
        status = Status()
        events: list[Event] = []
        if failure is not None:
            # Only the class: a message may quote a row.
            error_class = type(failure).__name__
            status = Status(StatusCode.ERROR, error_class)
            events = [Event("exception", {"exception.type": error_class}, end_ns)]
        self._sender.put(
            ReadableSpan(
                kind,
                context=self._context(name),
                parent=None if parent is None else self._context(parent),
                resource=self._sender.resource,
                attributes={**self._names, **attributes},
                events=events,
                status=status,
                start_time=start_ns,
                end_time=end_ns,
            )
        )

    def _context(self, name: str) -> "SpanContext":
        from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

        trace = int.from_bytes(sha256(self._run.encode()).digest()[:16])
        span = int.from_bytes(sha256(f"{self._run} {name}".encode()).digest()[:8])
        return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(1))


class _Sender:
    """Sends spans in a thread of its own. The thread holds no object of Ray."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415

        # It would log each failure with a traceback; `close` returns what is lost instead.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        service = os.environ.get("OTEL_SERVICE_NAME", "tokenmill")
        self.resource = Resource.create({SERVICE_NAME: service})
        self._queue: queue.SimpleQueue[ReadableSpan] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._num_put = self._num_sent = 0
        exporter = OTLPSpanExporter(timeout=_REQUEST_S)
        self._thread = threading.Thread(
            target=self._serve, args=(exporter,), name="traces", daemon=True
        )
        self._thread.start()

    def put(self, span: "ReadableSpan") -> None:
        self._num_put += 1
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put(span)

    def close(self) -> int:
        """Send what is queued, for a few seconds at most; returns how many spans are lost."""
        self._closing.set()
        self._thread.join(_FLUSH_S)
        return self._num_put - self._num_sent

    def _serve(self, exporter: "SpanExporter") -> None:
        while not self._closing.wait(_INTERVAL_S):
            self._send_all(exporter)
        self._send_all(exporter)
        exporter.shutdown()

    def _send_all(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        while not self._queue.empty():
            size = min(self._queue.qsize(), _MAX_SPANS_PER_REQUEST)
            batch = [self._queue.get() for _ in range(size)]
            if exporter.export(batch) is SpanExportResult.SUCCESS:
                self._num_sent += len(batch)
