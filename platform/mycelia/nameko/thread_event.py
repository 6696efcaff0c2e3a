"""The methods of `eventlet.Event`, for real threads.

An eventlet event wakes greenthreads of the sender's own thread only. Nameko's extensions send from the worker that has
ended and wait in the thread that asked for it, which here are two threads. `THREAD_EVENT_METHODS` replace the methods
of `eventlet.event.Event` in place (`nameko/bridge.py`), because extensions have imported the class by then; they use
its attributes (`_result`, `_exc`, `_waiters`) and so serve instances made before.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Pause", "block_until_set", "pause_here", "poll_until", "thread_event_methods"]

Pause = Callable[[], Callable[[float], None] | None]
"""How to let greenthreads of this thread run for some seconds; `None` where this thread has none."""

POLL_INTERVAL = 0.01
"""Seconds between two looks in a thread with greenthreads, where blocking would stop them all."""


def pause_here() -> Callable[[float], None] | None:
    """How this thread's greenthreads get their turn: a thread that has a hub may have some, or timeouts, of its own."""
    hubs = sys.modules.get("eventlet.hubs")
    if hubs is None or not hasattr(hubs._threadlocal, "hub"):
        return None
    nap: Callable[[float], None] = sys.modules["eventlet"].sleep
    return nap


def block_until_set(event: threading.Event) -> None:
    """Wait for an event of threads, and leave this thread's greenthreads their turns."""
    _block(event, None, pause_here())


def poll_until(is_so: Callable[[], bool]) -> None:
    """Wait for what sends no event, and leave this thread's greenthreads their turns."""
    nap = pause_here() or time.sleep
    while not is_so():
        nap(POLL_INTERVAL)


class _Waiter:
    """One waiting thread. It keeps the outcome, because the event may be reset before the thread runs again."""

    __slots__ = ("error", "result", "woken")

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.result: Any = None
        self.error: tuple[Any, ...] | None = None


def _raise(error: tuple[Any, ...]) -> None:
    """Raise an error given as an exception, a class, or as `sys.exc_info()` gives it."""
    value = error[1] if len(error) > 1 and error[1] is not None else error[0]
    if len(error) > 2:
        raise value.with_traceback(error[2])
    raise value


def thread_event_methods(not_used: object, pause: Pause) -> dict[str, Callable[..., Any]]:
    """`wait` and `send` for `eventlet.event.Event`; its other methods look at attributes only and stay.

    Args:
        not_used: eventlet's mark of an event that has not been sent.
        pause: how this thread's greenthreads get their turn.
    """

    def send(self: Any, result: Any = None, exc: Any = None) -> None:
        """Wake all waiters, in whatever thread they are. May be called once between two `reset()`."""
        assert self._result is not_used, "Trying to re-send() an already-triggered event."
        if exc is not None and not isinstance(exc, tuple):
            exc = (exc,)
        # The error first: who sees the result must see the error too. And both before the waiters are counted: a
        # waiter enters the set first and looks at the result then, so one of the two sides always sees the other.
        self._exc = exc
        self._result = result
        for waiter in list(self._waiters):
            waiter.result, waiter.error = result, exc
            waiter.woken.set()

    def wait(self: Any, timeout: float | None = None) -> Any:
        """Block until `send()`; return its result or raise its error. `None` after `timeout` seconds."""
        result, error = self._result, self._exc
        if result is not_used:
            waiter = _Waiter()
            self._waiters.add(waiter)
            try:
                result, error = self._result, self._exc
                if result is not_used:
                    if not _block(waiter.woken, timeout, pause()):
                        return None
                    result, error = waiter.result, waiter.error
            finally:
                self._waiters.discard(waiter)
        if error is not None:
            _raise(error)
        return result

    return {"send": send, "wait": wait}


def _block(
    woken: threading.Event, timeout: float | None, pause: Callable[[float], None] | None
) -> bool:
    if pause is None:
        return woken.wait(timeout)
    waited = 0.0
    while not woken.is_set():
        if timeout is not None and waited >= timeout:
            return False
        pause(POLL_INTERVAL)
        waited += POLL_INTERVAL
    return True
