"""Calls whose trace is not kept, which is most of them in production: they get neither a span nor a parsed header.

What still has to be is that the decision travels: in the headers of what leaves, and in OpenTelemetry's context, where the spans
of the user's own and of instrumentation libraries ask for it.
"""

from __future__ import annotations

import re
import threading
from random import getrandbits
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mycelia.call import Call
from mycelia.wire import HEADER_PREFIX, TRACEPARENT, TRACESTATE

__all__ = ["Roots", "UnsampledSpan", "unsampled_span_of"]

_is_unsampled: Final = re.compile(
    r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]"
).fullmatch
_propagator: Final = TraceContextTextMapPropagator()
_STATES: Final = frozenset({TRACESTATE, HEADER_PREFIX + TRACESTATE})
_LOW_BITS: Final = (1 << 64) - 1


class UnsampledSpan(NonRecordingSpan):
    """A span that is not recorded. Its headers are kept as they are, and read when somebody asks for its context."""

    def __init__(self, traceparent: str, tracestate: str | None) -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate
        self._read: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        read = self._read
        if read is None:
            carrier = {TRACEPARENT: self.traceparent}
            if self.tracestate is not None:
                carrier[TRACESTATE] = self.tracestate
            found = _propagator.extract(carrier, otel_context.Context())
            read = self._read = trace.get_current_span(found).get_span_context()
        return read

    def __repr__(self) -> str:
        return f"UnsampledSpan({self.traceparent})"


class Roots(RandomIdGenerator):
    """Decides of traces that begin here whether they are kept, before there is a span; as `TraceIdRatioBased` does.

    The tracer provider has to make its ids here: the trace that is kept gets the id by which that was decided, so that the
    provider's own sampler comes to the same.
    """

    def __init__(self, sample: float) -> None:
        self._bound = TraceIdRatioBased(sample).bound
        self._drawn = threading.local()

    def drop(self) -> str | None:
        """The `traceparent` of a new trace that is not kept; `None` for one that is: its span is to be started at once, in this thread."""
        trace_id = getrandbits(128) or 1
        if trace_id & _LOW_BITS < self._bound:
            self._drawn.trace_id = trace_id
            return None
        return f"00-{trace_id:032x}-{getrandbits(64) or 1:016x}-00"

    def generate_trace_id(self) -> int:
        drawn: int | None = self._drawn.__dict__.pop("trace_id", None)
        return super().generate_trace_id() if drawn is None else drawn


def unsampled_span_of(call: Call, roots: Roots | None) -> UnsampledSpan | None:
    """What stands for the span of `call` where its trace is not kept, by its headers or because it begins here; else `None`.

    Args:
        roots: what decides; `None` where only the provider's own sampler knows.
    """
    given = call.given_context
    carried = call.headers if given is None else given
    traceparent = call.carried(TRACEPARENT)
    if traceparent is None:
        if roots is None or (dropped := roots.drop()) is None:
            return None
        if given is not None or (carried and _STATES & carried.keys()):
            context = call.context
            context.pop(TRACESTATE, None)  # of another trace
            context[TRACEPARENT] = dropped
        else:  # the context will be read from there, if anybody asks for it
            call.headers = {**carried, TRACEPARENT: dropped} if carried else {TRACEPARENT: dropped}
        return UnsampledSpan(dropped, None)
    if type(traceparent) is not str or not _is_unsampled(traceparent):
        return None
    tracestate = call.context.get(TRACESTATE) if carried and _STATES & carried.keys() else None
    return UnsampledSpan(traceparent, tracestate if isinstance(tracestate, str) else None)
