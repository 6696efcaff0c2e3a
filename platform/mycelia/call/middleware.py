"""Middleware: the whole contract.

A middleware takes a call and the rest of the chain; it may look at the call, change it, answer without going on,
go on once or several times, and look at what came of it:

    async def timed(call: Call, next: Next) -> Outcome:
        started = time.monotonic()
        outcome = await next(call)
        record(call.target, time.monotonic() - started, outcome.error)
        return outcome

The end of a chain never raises: errors come as `Outcome.error`. A middleware that raises is contained by the
worker and counts as the call's error. A chain is composed once, at start; an empty one costs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from mycelia.call.model import Call, Outcome

__all__ = ["Middleware", "Next", "compose"]

Next = Callable[[Call], Awaitable[Outcome]]
Middleware = Callable[[Call, Next], Awaitable[Outcome]]


def compose(middleware: Iterable[Middleware], endpoint: Next) -> Next:
    """One callable of `middleware` around `endpoint`; the first middleware is the outermost."""
    chain = endpoint
    for layer in reversed(list(middleware)):
        chain = _wrap(layer, chain)
    return chain


def _wrap(layer: Middleware, inner: Next) -> Next:
    async def step(call: Call) -> Outcome:
        return await layer(call, inner)

    return step
