"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

__all__ = ["eventually"]

T = TypeVar("T")


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]],
    timeout: float = 5.0,
    *,
    interval: float = 0.01,
    what: str = "",
) -> T: ...


@overload
async def eventually(
    predicate: Callable[[], T],
    timeout: float = 5.0,
    *,
    interval: float = 0.01,
    what: str = "",
) -> T: ...


async def eventually(
    predicate: Callable[[], Any],
    timeout: float = 5.0,
    *,
    interval: float = 0.01,
    what: str = "",
) -> Any:
    """Return the predicate's first true value.

    The predicate may be a plain or an `async` function. An `AssertionError` from it counts as "not yet", so that a
    block of asserts can be waited for (return something true at its end); every other error is raised at once.

    Args:
        predicate: Asked every `interval` seconds, at least once, and once more when the time is over.
        timeout: Seconds to wait.
        interval: Seconds between two questions.
        what: The condition in words, for the message.

    Raises:
        AssertionError: No true value within `timeout`. Names the last value, or carries the last `AssertionError`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        is_last = loop.time() >= deadline
        failed: AssertionError | None = None
        value: Any = None
        try:
            answer = predicate()
            value = await answer if inspect.isawaitable(answer) else answer
        except AssertionError as exc:
            failed = exc
        else:
            if value:
                return value
        if is_last:
            name = what or getattr(predicate, "__qualname__", repr(predicate))
            last = f"last failure: {failed}" if failed else f"last value: {value!r}"
            raise AssertionError(f"not within {timeout:g} s: {name}; {last}") from failed
        await asyncio.sleep(min(interval, max(deadline - loop.time(), 0.0)))
