"""Spans of dead letters that are sent again: each in the trace of its message, beside the spans of its attempts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, Status, StatusCode, set_span_in_context

from mycelia.amqp import Delivery
from mycelia.call import Call, CallKind, Direction, Target
from mycelia.errors import class_name_of, describe
from mycelia.providers.tracing import conventions as said
from mycelia.providers.tracing.layer import contexts_of

__all__ = ["span_of_resend"]


@contextmanager
def span_of_resend(delivery: Delivery, exchange: str, routing_key: str) -> Iterator[None]:
    """A span while `delivery` is published again. The message's own trace context is not touched: what handles it hangs where
    it did before."""
    target = Target(Direction.OUTBOUND, CallKind.MESSAGE, exchange, routing_key)
    parent = Context()
    for context in contexts_of([Call(target, headers=delivery.properties.headers)]):
        parent = set_span_in_context(NonRecordingSpan(context), parent)
    span = trace.get_tracer("mycelia").start_span(
        said.resend_name(delivery),
        parent,
        SpanKind.PRODUCER,
        said.attributes_of_resend(delivery, exchange, routing_key),
    )
    try:
        yield
    except BaseException as exc:
        span.set_attribute(said.ERROR_TYPE, class_name_of(exc))
        span.set_status(Status(StatusCode.ERROR, said.clean(describe(exc))))
        raise
    finally:
        span.end()
