"""Traces for OpenTelemetry: a run is a trace, a unit is a span in it, and so is each of its stages.

Made by the driver of what each commit brings along, so that a replica that dies takes none with
it. Knows nothing of rows: no text of theirs can get into a span. Ids are made of the run's and the
unit's names, and nothing of OpenTelemetry is imported unless an endpoint is set.
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
# A collector that hangs costs a run's memory and its end no more than this.
_MOST_WAITING = 16_384
_MOST_IN_A_REQUEST = 512
_FLUSH_S = 5.0
_REQUEST_S = 3.0
_INTERVAL_S = 1.0


def traces_of(run: str, job: str, say: Callable[[str], None]) -> RunListener:
    """A listener that sends the run's trace, if OpenTelemetry's variables name an endpoint.

    At the end it says in one line how many spans did not arrive.
    """
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return RunListener()
    # The URL may hold a password.
    return _OtlpTraces(run, job, endpoint.rpartition("@")[2], say)


class _OtlpTraces(RunListener):
    """Spans for the collector that OpenTelemetry's own variables name."""

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
        whole = (min(start for start, _ in times.values()), max(end for _, end in times.values()))
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
        self._send("unit", name, "run", whole, attributes)
        for stage, ends in times.items():
            self._send(stage, f"{stage} of {name}", name, ends, {"tokenmill.unit": record.unit})

    def ended(self, error: BaseException | None) -> None:
        self._send("run", "run", None, (self._started_at, time.time()), {}, failure=error)
        lost = self._sender.close()
        if lost:
            self._say(
                f"{plural(lost, 'span')} did not reach {self._endpoint}; no row depends on them"
            )

    def _send(  # noqa: PLR0913 - what a span is made of
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

        start, end = (int(at * 1e9) for at in ends)
        status = Status()
        events: list[Event] = []
        if failure is not None:
            # The class alone: a message may quote a row.
            kind_of_error = type(failure).__name__
            status = Status(StatusCode.ERROR, kind_of_error)
            events = [Event("exception", {"exception.type": kind_of_error}, end)]
        self._sender.put(
            ReadableSpan(
                kind,
                context=self._context(name),
                parent=None if parent is None else self._context(parent),
                resource=self._sender.resource,
                attributes={**self._names, **attributes},
                events=events,
                status=status,
                start_time=start,
                end_time=end,
            )
        )

    def _context(self, name: str) -> "SpanContext":
        from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

        trace = int.from_bytes(sha256(self._run.encode()).digest()[:16])
        span = int.from_bytes(sha256(f"{self._run} {name}".encode()).digest()[:8])
        return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(1))


class _Sender:
    """The thread that sends spans: it holds nothing of Ray's, and is waited for at the end only."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415

        # It says each failure, with its traceback; we say one line at the end.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        named = os.environ.get("OTEL_SERVICE_NAME", "tokenmill")
        self.resource = Resource.create({SERVICE_NAME: named})
        self._waiting: queue.SimpleQueue[ReadableSpan] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._num_put = self._num_sent = 0
        exporter = OTLPSpanExporter(timeout=_REQUEST_S)
        self._thread = threading.Thread(
            target=self._serve, args=(exporter,), name="traces", daemon=True
        )
        self._thread.start()

    def put(self, span: "ReadableSpan") -> None:
        self._num_put += 1
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put(span)

    def close(self) -> int:
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

        while not self._waiting.empty():
            size = min(self._waiting.qsize(), _MOST_IN_A_REQUEST)
            batch = [self._waiting.get() for _ in range(size)]
            if exporter.export(batch) is SpanExportResult.SUCCESS:
                self._num_sent += len(batch)
