"""`SpanReceiver`: an OTLP collector in the test's own process, for asserting on what a service traces."""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import msgspec

from mycelia.extras import require_extra

__all__ = ["ReceivedSpan", "SpanReceiver"]

MAX_REQUEST_BYTES = 64 * 1024 * 1024


class ReceivedSpan(msgspec.Struct, frozen=True):
    """One span as it was exported. Ids are hexadecimal, times nanoseconds since the epoch."""

    name: str
    kind: str
    """"SERVER", "CLIENT", "PRODUCER", "CONSUMER" or "INTERNAL"."""
    service: str
    """`service.name` of its resource."""
    trace_id: str
    span_id: str
    parent_id: str | None
    start: int
    end: int
    error: str | None
    """The status' description where the status is an error (perhaps empty)."""
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    """Name and attributes of each."""
    links: list[tuple[str, str]]
    """Trace id and span id of each."""


class SpanReceiver:
    """Takes spans by OTLP over HTTP (`http/protobuf`) at a port of its own, and keeps them.

        with SpanReceiver() as receiver:
            ...  # run services with OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint
            spans = receiver.wait_for(lambda spans: len(spans) >= 4)

    Raises:
        ConfigError: the extra `tracing` is not installed.
    """

    def __init__(self) -> None:
        require_extra("tracing", "SpanReceiver()")
        self._spans: list[ReceivedSpan] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="mycelia:otlp", daemon=True
        )

    @property
    def endpoint(self) -> str:
        """For `OTEL_EXPORTER_OTLP_ENDPOINT`, or `mycelia: tracing: endpoint:`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What has come so far, in the order in which it came: a span comes when it has ended, some seconds later by default
        (`OTEL_BSP_SCHEDULE_DELAY`)."""
        with self._changed:
            return list(self._spans)

    def wait_for(
        self, is_enough: Callable[[list[ReceivedSpan]], bool], stalled: float = 30.0
    ) -> list[ReceivedSpan]:
        """Block until `is_enough(spans)`; what has come by then.

        Raises:
            TimeoutError: no span has come for `stalled` seconds. Names those that have.
        """
        with self._changed:
            until = time.monotonic() + stalled
            seen = len(self._spans)
            while not is_enough(list(self._spans)):
                self._changed.wait(max(until - time.monotonic(), 0.0))
                if len(self._spans) != seen:
                    seen, until = len(self._spans), time.monotonic() + stalled
                elif time.monotonic() >= until:
                    names = ", ".join(f"{span.service}: {span.name}" for span in self._spans)
                    raise TimeoutError(
                        f"no further span for {stalled:g} s; {seen} have come: {names or 'none'}"
                    )
            return list(self._spans)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        request = ExportTraceServiceRequest.FromString(body)
        found = [
            _read(span, _attributes(of_resource.resource.attributes))
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        with self._changed:
            self._spans += found
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(
                    min(int(self.headers.get("Content-Length", 0)), MAX_REQUEST_BYTES)
                )
                encoding = self.headers.get("Content-Encoding", "")
                if encoding == "gzip":
                    body = gzip.decompress(body)
                elif encoding == "deflate":
                    body = zlib.decompress(body)
                take(body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: what comes is asked for."""

        return Handler


def _read(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    kinds = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
    return ReceivedSpan(
        name=span.name,
        kind=kinds.get(span.kind, "UNSPECIFIED"),
        service=str(resource.get("service.name", "")),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        error=span.status.message if span.status.code == 2 else None,
        attributes=_attributes(span.attributes),
        events=[(one.name, _attributes(one.attributes)) for one in span.events],
        links=[(one.trace_id.hex(), one.span_id.hex()) for one in span.links],
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, which) if which else None
