"""What every log line says of the call being handled."""

from __future__ import annotations

from typing import Any

from mycelia.call import get_current_call
from mycelia.wire import TRACEPARENT, trace_id_of

__all__ = ["call_fields", "of_process", "trace_id_of"]

of_process: dict[str, Any] = {}
"""What every line of this process says: `process`, its number, where it is one of several."""


def call_fields() -> dict[str, Any]:
    """Service, method and call id of the call being handled here, and its trace id; outside a worker only `of_process`."""
    call = get_current_call()
    if call is None:
        return dict(of_process)
    fields: dict[str, Any] = {
        **of_process,
        "service": call.service,
        "method": call.method,
        "call_id": call.call_id,
    }
    trace_id = trace_id_of(call.context.get(TRACEPARENT))
    if trace_id is not None:
        fields["trace_id"] = trace_id
    return fields
