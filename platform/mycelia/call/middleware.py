"""Middleware: the whole contract.

A middleware takes a call and the rest of the chain; it may look at the call, change it, answer without going on,
go on once or several times, and look at what came of it:

    async def timed(call: Call, next: Next) -> Outcome:
        started = time.monotonic()
        outcome = await next(call)
        record(call.target.name, time.monotonic() - started, outcome.error)
        return outcome

It has the same shape in every direction: around what arrives (RPC, events, messages, timer ticks, HTTP requests, also
those that are refused) and around what leaves (calls, events, messages). `next` never raises: errors come as
`Outcome.error`, those of middleware further in as well, so that a middleware that counts or traces sees every end. (Only
cancellation goes through it, as through any `await`.) What is returned must be an `Outcome`. `get_current_call()` is the call
being handled, outside `next` as well as inside.

Who brings middleware: extensions (`Extension.middleware()`), the configuration (`mycelia: middleware:`), and `Runner`
and `Client` in code. All are asked once for each target, before any `setup()`; a chain that stays empty costs nothing.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from mycelia.call.model import Call
from mycelia.call.outcome import Outcome
from mycelia.call.target import Direction, Target
from mycelia.errors import RuntimeStateError

__all__ = [
    "Middleware",
    "MiddlewareSource",
    "Next",
    "Observer",
    "Unless",
    "compose",
    "middleware_for",
]

Next = Callable[[Call], Awaitable[Outcome]]
Middleware = Callable[[Call, Next], Awaitable[Outcome]]


class Observer:
    """Middleware that changes nothing and only looks at what came of each call.

    Around what arrives it stands outside of all other middleware, wherever it is listed, and costs a function call where others
    cost two coroutines. Around what leaves it is middleware like any other.

    Args:
        ended: told of each call and its outcome, once, on the event loop; must neither wait nor raise.
    """

    def __init__(self, ended: Callable[[Call, Outcome], None]) -> None:
        self.ended = ended

    async def __call__(self, call: Call, next: Next) -> Outcome:
        try:
            outcome = await next(call)
        except BaseException as exc:
            self.ended(call, Outcome(error=call.reason_for(exc)))
            raise
        self.ended(call, outcome)
        return outcome


class Unless:
    """Middleware that is around some calls only; the others pass it for a function call.

    Args:
        passes: asked first, in the context in which the call is handled; it may do what needs no end, such as setting a context
            variable, because each call has a context of its own. Must not wait.
        layer: what is around the calls for which it says no.
    """

    def __init__(self, passes: Callable[[Call], bool], layer: Middleware) -> None:
        self.passes = passes
        self.layer = layer

    async def __call__(self, call: Call, next: Next) -> Outcome:
        """As middleware that nobody has composed: in a task, which gives it its context."""

        async def step() -> Outcome:
            return await (next(call) if self.passes(call) else self.layer(call, next))

        return await asyncio.create_task(step())


class MiddlewareSource(Protocol):
    """Something that may have middleware for a target: an extension, an object that the configuration names."""

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        """What to put around calls of `target`; `None` for nothing, which costs nothing."""
        ...


def middleware_for(sources: Iterable[MiddlewareSource], target: Target) -> tuple[Middleware, ...]:
    """What `sources` put around calls of `target`, outermost first."""
    found = (source.middleware(target.direction, target) for source in sources)
    return tuple(layer for layer in found if layer is not None)


def compose(middleware: Iterable[Middleware], endpoint: Next) -> Next:
    """One callable of `middleware` around `endpoint`; the first middleware is the outermost.

    It is to be called where it is awaited: each call in a context of its own, such as a task has.
    """
    chain = endpoint
    for layer in reversed(list(middleware)):
        chain = _wrap_unless(layer, chain) if isinstance(layer, Unless) else _wrap(layer, chain)
    return chain


def _wrap_unless(layer: Unless, inner: Next) -> Next:
    passes, around = layer.passes, _wrap(layer.layer, inner)

    def step(call: Call) -> Awaitable[Outcome]:
        return inner(call) if passes(call) else around(call)

    return step


def _wrap(layer: Middleware, inner: Next) -> Next:
    async def step(call: Call) -> Outcome:
        try:
            outcome = await layer(call, inner)
        except (CancelledError, GeneratorExit) as exc:
            reason = call.reason_for(exc)
            if reason is exc:
                raise
            return Outcome(error=reason)
        except BaseException as exc:  # noqa: BLE001  a `SystemExit` is one call's error too, as in a worker
            return Outcome(error=exc)
        if not isinstance(outcome, Outcome):
            return Outcome(error=_no_outcome(call, layer, outcome))
        return outcome

    return step


def _no_outcome(call: Call, layer: Middleware, returned: object) -> RuntimeStateError:
    name = getattr(layer, "__qualname__", type(layer).__qualname__)
    return RuntimeStateError(
        f"{call.target.name}: the middleware {name} returned {type(returned).__name__}, not an Outcome. "
        "End it with `return await next(call)`, or `return Outcome(…)`."
    )
