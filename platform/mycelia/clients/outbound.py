"""What leaves: headers inherited from the call being handled, and the way from a worker thread onto the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from mycelia.call import Call
from mycelia.errors import RuntimeStateError
from mycelia.wire import CALL_ID_STACK, DEADLINE_HEADER, call_id, encode_context

__all__ = [
    "THREAD_MARGIN",
    "deadline_of",
    "event_headers",
    "refuse_to_block",
    "request_headers",
    "run_from_thread",
]

T = TypeVar("T")

THREAD_MARGIN = 5.0
"""Seconds a worker thread waits beyond the deadline, for the loop to say itself that it has passed."""


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


def refuse_to_block(loop: asyncio.AbstractEventLoop) -> None:
    """Raises `RuntimeStateError` on `loop`'s own thread, where waiting for `loop` would never end."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    if running is loop:
        raise RuntimeStateError(
            "a blocking call on the event loop's own thread would wait for itself. "
            "Await it in an `async def` method, or make the method a `def`."
        )


def run_from_thread(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, timeout: float
) -> T:
    """Run `coroutine` on `loop` and wait for it in this thread, which must not be the loop's own.

    Raises:
        RuntimeStateError: called on the loop's thread, where waiting would stop everything for ever.
        TimeoutError: the loop did not come back `THREAD_MARGIN` seconds after `timeout`.
    """
    try:
        refuse_to_block(loop)
    except RuntimeStateError:
        coroutine.close()
        raise
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result(timeout + THREAD_MARGIN)
    except concurrent.futures.TimeoutError:
        future.cancel()
        raise
