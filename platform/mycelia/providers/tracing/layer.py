"""The middleware that makes spans: one around each call, in every direction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from opentelemetry import baggage as otel_baggage
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mycelia.call import (
    Call,
    CallKind,
    DeadLetter,
    Direction,
    Middleware,
    Next,
    Outcome,
    Reply,
    Target,
    Unless,
)
from mycelia.errors import (
    ContractError,
    DeadlinePassed,
    IncorrectSignature,
    MethodNotFound,
    RemoteError,
    UnserializableValueError,
    class_name_of,
    text_of,
    traceback_of,
)
from mycelia.log_event import event
from mycelia.providers.tracing import conventions as said
from mycelia.providers.tracing.unsampled import (
    Roots,
    unsampled_span_of,
)
from mycelia.wire import (
    BAGGAGE,
    HEADER_PREFIX,
    TRACEPARENT,
    TRACESTATE,
    format_baggage,
    parse_baggage,
)

__all__ = ["contexts_of", "span_layer"]

log = logging.getLogger("mycelia.tracing")

TracerOf = Callable[[], Tracer]

CALLERS_FAULTS = (ContractError, DeadlinePassed, IncorrectSignature, MethodNotFound)
"""What is no error of the service that says so; its caller's span is the one that fails (as with HTTP's 4xx)."""

_MAX_MESSAGE = 4 * 1024
_MAX_STACK = 16 * 1024

_PREFIXED_BAGGAGE = HEADER_PREFIX + BAGGAGE
(_SPAN,) = set_span_in_context(trace.INVALID_SPAN, Context())
"""The key of a context's span."""
_propagator = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()

_KINDS = {
    (Direction.INBOUND, CallKind.RPC): SpanKind.SERVER,
    (Direction.INBOUND, CallKind.HTTP): SpanKind.SERVER,
    (Direction.INBOUND, CallKind.EVENT): SpanKind.CONSUMER,
    (Direction.INBOUND, CallKind.MESSAGE): SpanKind.CONSUMER,
    (Direction.INBOUND, CallKind.LOG): SpanKind.CONSUMER,
    (Direction.OUTBOUND, CallKind.RPC): SpanKind.CLIENT,
    (Direction.OUTBOUND, CallKind.EVENT): SpanKind.PRODUCER,
    (Direction.OUTBOUND, CallKind.MESSAGE): SpanKind.PRODUCER,
    (Direction.OUTBOUND, CallKind.LOG): SpanKind.PRODUCER,
}


def span_layer(tracer_of: TracerOf, target: Target, roots: Roots | None = None) -> Middleware:
    """The middleware for one target.

    Args:
        tracer_of: gives the tracer of the service that a span is of, at the time of the call.
        roots: decides early about traces that begin here; `None` leaves it to the tracer's sampler.
    """
    kind = _KINDS.get((target.direction, target.kind), SpanKind.INTERNAL)
    fixed = said.attributes_of_target(target)
    is_settled = target.direction is Direction.INBOUND and target.kind is not CallKind.HTTP
    arrives = target.direction is Direction.INBOUND
    parent_of = _arrived_with if arrives else _leaves_from

    async def traced(call: Call, next: Next) -> Outcome:
        parent = parent_of(call)
        linked = call.linked()
        span = tracer_of().start_span(
            said.span_name(target, call),
            parent,
            kind,
            fixed | said.attributes_of_call(call),
            [Link(context) for context in contexts_of(linked)] if linked else None,
            record_exception=False,
            set_status_on_exception=False,
        )
        inside = set_span_in_context(span, parent)
        _write(call, span.get_span_context(), inside)
        token = otel_context.attach(inside)
        has_failed = True
        try:
            outcome = await next(call)
            has_failed = outcome.error is not None or outcome.settlement is not None
        except BaseException as exc:  # cancellation, which goes through
            _tell_error(span, call.reason_for(exc), target, with_stack=False)
            raise
        else:
            if span.is_recording():
                _tell(span, call, outcome, target)
            return outcome
        finally:
            otel_context.detach(token)
            if is_settled and (has_failed or call.settlement is not None):
                call.when_settled(partial(_end_settled, span, time.time_ns()))
            else:
                span.end()

    def is_not_kept(call: Call) -> bool:
        unsampled = unsampled_span_of(call, roots)
        if unsampled is None:
            return False
        inside = Context({_SPAN: unsampled})
        given = call.given_context
        carried = call.headers if given is None else given
        if carried and (BAGGAGE in carried or _PREFIXED_BAGGAGE in carried):
            inside = _with_baggage(call, inside)
        otel_context.attach(inside)  # the worker's own, and goes with it
        return True

    async def leaving(call: Call, next: Next) -> Outcome:
        above = trace.get_current_span()
        own = above.get_span_context()
        if own.is_valid and not own.trace_flags.sampled:
            _write(call, own, otel_context.get_current())
            return await next(call)
        if not own.is_valid and (unsampled := unsampled_span_of(call, roots)) is not None:
            token = otel_context.attach(set_span_in_context(unsampled))
            try:
                return await next(call)
            finally:
                otel_context.detach(token)
        return await traced(call, next)

    return Unless(is_not_kept, traced) if arrives else leaving


def contexts_of(calls: Iterable[Call]) -> list[SpanContext]:
    """The spans of `calls`, where they have one: their own here, or what they came with where they are not traced."""
    contexts = (_context_in(call) for call in calls)
    return [context for context in contexts if context.is_valid]


def _context_in(call: Call) -> SpanContext:
    found = _propagator.extract(_carrier(call))
    return trace.get_current_span(found).get_span_context()


def _carrier(call: Call) -> dict[str, str]:
    """The W3C headers of a call, whoever wrote them: only text is read."""
    context = call.context
    return {
        name: value
        for name in (TRACEPARENT, TRACESTATE)
        if isinstance(value := context.get(name), str)
    }


def _arrived_with(call: Call) -> Context:
    """The context of what arrives: that of its headers, and nothing of whatever this process was just doing."""
    return _with_baggage(call, _propagator.extract(_carrier(call), Context()))


def _with_baggage(call: Call, inside: Context) -> Context:
    """`inside`, with the baggage that the call came with."""
    baggage = call.context.get(BAGGAGE)
    return _baggage.extract({BAGGAGE: baggage}, inside) if isinstance(baggage, str) else inside


def _leaves_from(call: Call) -> Context:
    """The context of what leaves: the span that is open here, else what the call being handled came with."""
    current = otel_context.get_current()
    if trace.get_current_span(current).get_span_context().is_valid:
        return current
    return _propagator.extract(_carrier(call), current)


def _write(call: Call, own: SpanContext, inside: Context) -> None:
    """Put the span into the call's context data: what leaves carries it, what arrived hands it on, logs name its trace."""
    data = call.context
    data[TRACEPARENT] = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    if own.trace_state:
        data[TRACESTATE] = own.trace_state.to_header()
    else:
        data.pop(TRACESTATE, None)  # of another trace
    if call.target.direction is Direction.OUTBOUND and (
        members := otel_baggage.get_all(inside)
    ):  # set by OpenTelemetry's API
        own_members = parse_baggage(data.get(BAGGAGE))
        try:
            data[BAGGAGE] = format_baggage(
                own_members | {str(name): str(value) for name, value in members.items()}
            )
        except UnserializableValueError as exc:  # no reason for the call to fail
            log.warning(event("context_left_out", call=call.target.name, left_out=str(exc)))


def _tell(span: Span, call: Call, outcome: Outcome, target: Target) -> None:
    if outcome.is_refused:
        span.set_attribute(said.REFUSED, True)
    status = _http_status(call, outcome) if target.kind is CallKind.HTTP else None
    if status is not None:
        span.set_attribute(said.HTTP_STATUS, status)
    if outcome.error is not None:
        is_fine = status is not None and status < 500
        _tell_error(span, outcome.error, target, is_fine=is_fine)


def _end_settled(span: Span, ended_at_ns: int, call: Call) -> None:
    """What became of the message is known after the method's time is over."""
    settlement = call.settlement
    if settlement is not None and not isinstance(settlement, Reply):
        span.set_attribute(said.SETTLEMENT, type(settlement).__name__.lower())
    if isinstance(settlement, DeadLetter):
        span.set_attribute(said.DEAD_LETTER_REASON, said.clean(settlement.reason))
        span.set_attribute(said.DEAD_LETTER_ATTEMPTS, call.attempt)
    span.end(ended_at_ns)


def _tell_error(
    span: Span,
    error: BaseException,
    target: Target,
    *,
    with_stack: bool = True,
    is_fine: bool = False,
) -> None:
    kind = class_name_of(error)
    if isinstance(error, RemoteError) and error.exc_type:
        kind = error.exc_type
    span.set_attribute(said.ERROR_TYPE, said.clean(kind))
    if target.direction is Direction.INBOUND and (is_fine or _is_callers_fault(error, target)):
        return
    text = said.clean(text_of(error), _MAX_MESSAGE)
    span.set_status(Status(StatusCode.ERROR, f"{said.clean(kind)}: {text}"))
    if target.direction is Direction.INBOUND:
        exception: dict[str, Any] = {
            said.EXCEPTION_TYPE: said.clean(kind),
            said.EXCEPTION_MESSAGE: text,
        }
        if with_stack:
            exception[said.EXCEPTION_STACKTRACE] = traceback_of(error)[-_MAX_STACK:]
        span.add_event(said.EXCEPTION_EVENT, exception)


def _is_callers_fault(error: BaseException, target: Target) -> bool:
    if target.kind not in (CallKind.RPC, CallKind.HTTP):
        return False  # nobody is told: it is this service's affair
    if issubclass(type(error), CALLERS_FAULTS):
        return True
    return target.declared is not None and target.declared.expects(error)


def _http_status(call: Call, outcome: Outcome) -> int | None:
    from mycelia.entrypoints.http.responses import status_of

    expected = call.target.declared.expected_exceptions if call.target.declared else ()
    return status_of(outcome, () if outcome.is_refused else expected)
