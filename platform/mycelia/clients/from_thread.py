"""From a worker thread onto the event loop and back: what `def` methods wait for is done there."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, TypeVar

from mycelia.call import outcome_of
from mycelia.errors import RuntimeStateError

__all__ = ["THREAD_MARGIN", "refuse_to_block", "run_from_thread"]

T = TypeVar("T")

THREAD_MARGIN = 5.0
"""Seconds a worker thread waits beyond the deadline, for the loop to say itself that it has passed."""


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
    future = asyncio.run_coroutine_threadsafe(outcome_of(coroutine), loop)
    try:
        outcome = future.result(timeout + THREAD_MARGIN)
    except concurrent.futures.TimeoutError:
        future.cancel()
        raise
    value: T = outcome.unwrap()
    return value
