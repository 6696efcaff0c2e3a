"""What every log line says of the call being handled."""

from __future__ import annotations

import logging
import sys
from typing import Any

from mycelia.call import get_current_call
from mycelia.wire import TRACEPARENT, trace_id_of

__all__ = ["CallFields", "call_fields", "fields_of", "of_process"]

of_process: dict[str, Any] = {}
"""What every line of this process says: `process`, its number, where it is one of several."""


def call_fields() -> dict[str, Any]:
    """Service, method, call id and attempt of the call being handled here, and its trace; outside a worker only `of_process`.

    Where OpenTelemetry has a span here, that span's ids are the trace's.
    """
    call = get_current_call()
    fields: dict[str, Any] = dict(of_process)
    if call is not None:
        fields |= {
            "service": call.service,
            "method": call.method,
            "call_id": call.call_id,
            "attempt": call.attempt,
        }
    span = _span_ids()
    if span is not None:
        fields["trace_id"], fields["span_id"] = span
    elif call is not None:
        # In another thread, too, where nothing may be decoded that the worker is about to.
        trace_id = trace_id_of(call.carried(TRACEPARENT))
        if trace_id is not None:
            fields["trace_id"] = trace_id
    return fields


def _span_ids() -> tuple[str, str] | None:
    """Trace and span id of OpenTelemetry's current span; `None` where nobody uses it, or there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    try:
        span = trace.get_current_span().get_span_context()
        if not span.is_valid:
            return None
        return format(span.trace_id, "032x"), format(span.span_id, "016x")
    except Exception:  # noqa: BLE001  while it is being imported, or of a span of somebody's own
        return None


class CallFields(logging.Filter):
    """Puts what is known of the call on every record, for formatters and handlers that are not Mycelia's.

        LOGGING:
          filters: {call: {(): mycelia.CallFields}}
          formatters: {own: {format: "%(levelname)s %(call_id)s %(message)s"}}
          handlers: {console: {class: logging.StreamHandler, formatter: own, filters: [call]}}

    Attributes of a record: `service`, `method`, `call_id`, `attempt`, `trace_id`, `span_id`; empty text where there is nothing
    to say. Needed as well where a line is formatted in another thread than it was written in (`logging.handlers.QueueHandler`):
    there it goes on the handler that puts into the queue.
    """

    NAMES = ("service", "method", "call_id", "attempt", "trace_id", "span_id")

    def filter(self, record: logging.LogRecord) -> bool:
        if "mycelia_fields" not in record.__dict__:
            fields = record.__dict__["mycelia_fields"] = call_fields()
            for name in self.NAMES:
                record.__dict__.setdefault(name, fields.get(name, ""))
        return True


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record's line says of its call: as `CallFields` found it where it was written, else as it is here and now."""
    found: dict[str, Any] | None = record.__dict__.get("mycelia_fields")
    return call_fields() if found is None else found
