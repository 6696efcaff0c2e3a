"""Where spans go: OpenTelemetry's SDK, set up for services, and kept from ever being in their way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Tracer
from opentelemetry.util.types import Attributes

from mycelia.call import get_current_call
from mycelia.errors import ConfigError, describe
from mycelia.log_event import event
from mycelia.providers.tracing.conventions import SCHEMA_URL
from mycelia.providers.tracing.switch import TracePlan

__all__ = ["ServiceTracers", "SpanSink", "exporter_of"]

log = logging.getLogger("mycelia.tracing")

SAID_EVERY_S = 60.0
"""Between two lines about spans that could not be exported."""
FLUSH_S = 2.0
"""What the last spans may take to leave when a process stops. Arbitrary; services must not wait for a collector."""
SCOPE = "mycelia"

_CHATTY = ("opentelemetry.exporter", "opentelemetry.sdk")
"""Loggers that say of every batch that it could not be sent."""


def exporter_of(plan: TracePlan) -> SpanExporter | None:
    """The exporter of a plan; `None` where spans go nowhere.

    Raises:
        ConfigError: what it takes is not installed, or its variables are wrong.
    """
    if plan.exporter == "none":
        return None
    if plan.exporter == "console":
        return ConsoleSpanExporter()
    endpoint = plan.endpoint
    try:
        if plan.protocol == "grpc":
            return _grpc_exporter(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        if endpoint is not None:
            endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        return OTLPSpanExporter(endpoint=endpoint)
    except (ValueError, OSError) as exc:
        raise ConfigError(f"traces cannot be exported: {describe(exc)}") from exc


def _grpc_exporter(endpoint: str | None) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as exc:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs the package opentelemetry-exporter-otlp-proto-grpc: "
            "pip install opentelemetry-exporter-otlp-proto-grpc, or set it to http/protobuf."
        ) from exc
    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint)
    return exporter


class _Losses:
    """What is said of spans that could not be exported: one line a minute, whoever says it. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost = 0
        self._said_at = -SAID_EVERY_S

    def tell(self, spans: int, detail: str) -> None:
        """Count `spans`, 0 where nobody knows how many they are; and say it, if a line is due."""
        with self._lock:
            self._lost += spans
            now = time.monotonic()
            if now - self._said_at < SAID_EVERY_S:
                return
            lost, self._lost, self._said_at = self._lost, 0, now
        known = {"spans": lost} if lost else {}
        log.warning(event("spans_not_exported", **known, detail=detail))


class _Quiet(SpanExporter):
    """An exporter that says of its failures what `losses` lets through."""

    def __init__(self, inner: SpanExporter, losses: _Losses) -> None:
        self._inner = inner
        self._losses = losses

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        error = ""
        try:
            result = self._inner.export(spans)
        except Exception as exc:  # noqa: BLE001  a thread of its own, and nobody there who could do anything
            result, error = SpanExportResult.FAILURE, describe(exc)
        if result is SpanExportResult.FAILURE:
            self._losses.tell(
                len(spans), error or "the collector did not take them; calls go on as ever"
            )
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class SpanSink:
    """The way of all spans of a process out: a bounded queue, and a thread that exports from it.

    What finds the queue full is dropped. Nothing that makes a span ever waits.
    """

    def __init__(self, exporter: SpanExporter | None) -> None:
        for name in _CHATTY:  # their failures are said by `_Quiet`, once
            logger = logging.getLogger(name)
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.CRITICAL)
        self._losses = losses = _Losses()
        self.processor: SpanProcessor | None = (
            None if exporter is None else BatchSpanProcessor(_Quiet(exporter, losses))
        )

    async def aclose(self) -> None:
        """Let what is there leave, for `FLUSH_S` at most."""
        if self.processor is None:
            return
        loop, done, losses = asyncio.get_running_loop(), asyncio.Event(), self._losses

        def close(processor: SpanProcessor) -> None:
            try:
                processor.shutdown()
            except Exception as exc:  # noqa: BLE001  the exporter's affair; the process stops all the same
                losses.tell(0, describe(exc))
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # A daemon, so that a collector that hangs does not keep the process.
        threading.Thread(
            target=close, args=(self.processor,), name="mycelia:spans", daemon=True
        ).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            losses.tell(0, f"the collector took more than {FLUSH_S:g} s for the last ones")


class ServiceTracers(trace.TracerProvider):
    """A tracer provider for each service of the process, each with its own `service.name`; all share one sink.

    As OpenTelemetry's global provider it gives tracers that belong to the service whose call is being handled, so that spans of
    the user's own and of instrumentation libraries stand beside those of the runtime.
    """

    def __init__(self) -> None:
        self.default = "mycelia"
        """The service of spans outside any call: the first of the process."""
        self.providers: dict[str, TracerProvider] = {}
        """By service; another dictionary after each `set_up()`."""
        self._processor: SpanProcessor | None = None
        self._sampler: Sampler | None = None
        self._ids: IdGenerator | None = None

    def set_up(self, sink: SpanSink, sample: float | None, ids: IdGenerator | None = None) -> None:
        """Send what is traced from now on into `sink`.

        Args:
            sample: the share of traces that begin here and are kept; `None` for what `OTEL_TRACES_SAMPLER` says, or all.
            ids: what makes the ids of traces and spans; `None` for OpenTelemetry's own.
        """
        self._ids = ids
        self._processor = sink.processor
        self._sampler = None if sample is None else ParentBased(TraceIdRatioBased(sample))
        self.providers = {}

    def provider_of(self, service: str) -> TracerProvider:
        """The provider of one service. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` hold for all of a process."""
        found = self.providers.get(service)
        if found is None:
            resource = Resource.create({SERVICE_NAME: service})
            named = Resource.create()  # what the variables say
            if not str(named.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
                resource = resource.merge(named)
            found = TracerProvider(
                sampler=self._sampler,
                resource=resource,
                shutdown_on_exit=False,
                id_generator=self._ids,
            )
            if self._processor is not None:
                found.add_span_processor(self._processor)
            self.providers[service] = found
        return found

    def tracer_of(self, service: str) -> Tracer:
        """The runtime's own tracer of one service."""
        return self.provider_of(service).get_tracer(SCOPE, schema_url=SCHEMA_URL)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Tracer:
        """A tracer whose spans are the current service's."""
        return _CurrentTracer(
            self,
            (instrumenting_module_name, instrumenting_library_version, schema_url, attributes),
        )


class _CurrentTracer(Tracer):
    """Makes each span with the tracer of the service whose call is being handled."""

    def __init__(self, tracers: ServiceTracers, scope: tuple[Any, ...]) -> None:
        self._tracers = tracers
        self._scope = scope
        self._made: dict[str, Tracer] = {}
        self._made_for = tracers.providers

    def _current(self) -> Tracer:
        call = get_current_call()
        service = self._tracers.default if call is None else call.service
        if self._made_for is not self._tracers.providers:
            self._made, self._made_for = {}, self._tracers.providers
        found = self._made.get(service)
        if found is None:
            found = self._made[service] = self._tracers.provider_of(service).get_tracer(
                *self._scope
            )
        return found

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        return self._current().start_span(
            name,
            context,
            kind,
            attributes,
            links,
            start_time,
            record_exception,
            set_status_on_exception,
        )

    def start_as_current_span(self, name: str, *args: Any, **options: Any) -> Any:
        return self._current().start_as_current_span(name, *args, **options)
