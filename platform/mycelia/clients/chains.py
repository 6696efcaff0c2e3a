"""The outbound chains of one caller: compiled once for each target, and never more than a bound of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mycelia.call import CallKind, Direction, Middleware, Next, Target, compose

__all__ = ["MAX_CHAINS", "MiddlewareFor", "OutboundChains"]

MiddlewareFor = Callable[[Target], tuple[Middleware, ...]]
"""What stands around calls of a target, outermost first: `Container.middleware_for`."""

MAX_CHAINS = 1000
"""Targets with a chain of their own. Arbitrary: more than any service calls, and a bound where names come from outside."""


class OutboundChains:
    """The middleware around what leaves, up to `endpoint`. Safe in threads.

    Sources of middleware are asked once for each target, when it is first used. Targets beyond `MAX_CHAINS` share the
    chain of `*.*`.

    Args:
        kind: of all calls here.
        middleware_for: what stands around a target's calls.
        endpoint: the end of every chain.
    """

    def __init__(self, kind: CallKind, middleware_for: MiddlewareFor, endpoint: Next) -> None:
        self._kind = kind
        self._middleware_for = middleware_for
        self._endpoint = endpoint
        self._chains: dict[tuple[str, str], Next | None] = {}
        self._lock = threading.Lock()

    def of(self, service: str, method: str = "*") -> Next | None:
        """The chain for a target; `None` where nobody has middleware for it."""
        try:
            return self._chains[service, method]
        except KeyError:
            return self._compile(service, method)

    def _compile(self, service: str, method: str) -> Next | None:
        with self._lock:
            if len(self._chains) >= MAX_CHAINS:
                service = method = "*"
            key = (service, method)
            if key not in self._chains:
                target = Target(Direction.OUTBOUND, self._kind, service, method)
                middleware = self._middleware_for(target)
                self._chains[key] = compose(middleware, self._endpoint) if middleware else None
            return self._chains[key]

    def __len__(self) -> int:
        return len(self._chains)
