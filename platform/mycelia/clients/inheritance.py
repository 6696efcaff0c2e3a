"""What leaves inherits from the call being handled: its context data, its call ids, its deadline."""

from __future__ import annotations

import time
from typing import Any

from mycelia.call import Call
from mycelia.wire import CALL_ID_STACK, DEADLINE_HEADER, call_id, encode_context

__all__ = ["deadline_of", "event_headers", "request_headers"]


def request_headers(parent: Call | None, caller: str) -> dict[str, Any]:
    """Headers of a request: the parent's context data and its call ids; a first id outside any worker.

    Args:
        parent: the call being handled; `None` in a program that is not a service.
        caller: such a program's name.
    """
    if parent is None:
        return {f"nameko.{CALL_ID_STACK}": [call_id(caller, "call")]}
    headers = encode_context(parent.context)
    headers[f"nameko.{CALL_ID_STACK}"] = parent.call_id_stack
    return headers


def event_headers(parent: Call | None, caller: str) -> dict[str, Any]:
    """As for a request, without the deadline: an event is handled however long it takes."""
    headers = request_headers(parent, caller)
    headers.pop(DEADLINE_HEADER, None)
    return headers


def deadline_of(parent: Call | None, timeout: float) -> float:
    """When the call is given up: `timeout` seconds from now, or the parent's deadline if that comes first."""
    own = time.monotonic() + timeout
    if parent is None or parent.deadline is None:
        return own
    return min(own, parent.deadline)
