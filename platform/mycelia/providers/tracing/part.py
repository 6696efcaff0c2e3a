"""Tracing as a part of the process: there where the configuration or OpenTelemetry's variables ask for it."""

from __future__ import annotations

import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from mycelia.call import Direction, Middleware, Target, get_current_call
from mycelia.log_event import event
from mycelia.providers.tracing.export import SCOPE, ServiceTracers, SpanSink, exporter_of
from mycelia.providers.tracing.layer import span_layer
from mycelia.providers.tracing.switch import TracePlan
from mycelia.providers.tracing.unsampled import Roots
from mycelia.runtime.process_parts import RunningProcess

__all__ = ["Traces", "TracingPart"]

log = logging.getLogger("mycelia.tracing")


class Traces:
    """The process's tracers: ours, or those of a provider that the application has set before."""

    def __init__(self, plan: TracePlan) -> None:
        self.own: ServiceTracers | None = None
        self.sink: SpanSink | None = None
        self._roots: Roots | None = None
        there = trace.get_tracer_provider()
        if isinstance(there, TracerProvider):
            return
        self.sink = SpanSink(exporter_of(plan))
        # A process that runs services one after the other, as tests do, has set ours before; it can be set once only.
        self.own = there if isinstance(there, ServiceTracers) else ServiceTracers()
        if plan.sample is not None and plan.sample < 1.0:
            self._roots = Roots(plan.sample)
        self.own.set_up(self.sink, plan.sample, self._roots)
        if self.own is not there:
            trace.set_tracer_provider(self.own)

    def tracer_of(self, service: str) -> Tracer:
        """The runtime's tracer for spans of one service."""
        if self.own is None:
            return trace.get_tracer(SCOPE)
        return self.own.tracer_of(service)

    def layer(self, target: Target) -> Middleware:
        """The middleware of one target."""
        if target.direction is Direction.INBOUND:
            tracer = self.tracer_of(target.service)
            return span_layer(lambda: tracer, target, self._roots)
        return span_layer(self._current, target, self._roots)

    def _current(self) -> Tracer:
        call = get_current_call()
        if call is not None:
            return self.tracer_of(call.service)
        return self.tracer_of("" if self.own is None else self.own.default)


class TracingPart:
    """Traces all calls of a process."""

    def __init__(self, plan: TracePlan) -> None:
        self._plan = plan
        self._traces = Traces(plan)

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        """A span around every call."""
        return self._traces.layer(target)

    def set_default_service(self, name: str) -> None:
        """The service of spans outside any call."""
        if self._traces.own is not None:
            self._traces.own.default = name

    async def start(self, process: RunningProcess) -> None:
        """Say that there is tracing, once."""
        if process.service_names:
            self.set_default_service(process.service_names[0])
        log.info(
            event(
                "tracing",
                exporter=self._plan.exporter if self._traces.own else "the application's own",
            )
        )

    async def started(self) -> None:
        """There is nothing to do then."""

    async def stop(self) -> None:
        """Let the last spans leave."""
        if self._traces.sink is not None:
            await self._traces.sink.aclose()
