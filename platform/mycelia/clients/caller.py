"""Calls that leave: what is inherited, the outbound chain, then the reply router. One `Caller` for each caller process."""

from __future__ import annotations

import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import msgspec

from mycelia.call import (
    DEFAULT_CALL_OPTIONS,
    Call,
    CallKind,
    CallOptions,
    Direction,
    Middleware,
    Next,
    Outcome,
    Target,
    compose,
    get_current_call,
    tighter,
)
from mycelia.clients.chains import MiddlewareFor, OutboundChains
from mycelia.clients.inheritance import deadline_of, request_headers
from mycelia.clients.reply_router import ReplyRouter, Route
from mycelia.wire import (
    COMPRESSION_HEADER,
    SerializerRegistry,
    compressed,
    compressor_of,
    encode_context,
    rpc_routing_key,
)

__all__ = ["Caller", "RemoteMethod"]


class RemoteMethod:
    """One remote method as one proxy calls it: everything that is the same for each call, worked out once."""

    __slots__ = (
        "__weakref__",
        "chain",
        "context",
        "headers",
        "layer",
        "options",
        "route",
        "target",
    )

    def __init__(
        self,
        target: Target,
        options: CallOptions,
        route: Route,
        chain: Next | None,
        context: dict[str, Any] | None,
        layer: Middleware | None,
    ) -> None:
        self.target = target
        self.options = options
        self.context = context
        """Headers of the context data that goes along whatever is inherited; `None` for none."""
        headers = _headers_of(options)
        self.headers = headers if context is None else context | (headers or {})
        self.route = route
        self.chain = chain
        """What a call of it passes, `layer` included; `None` for nothing."""
        self.layer = layer


class Caller:
    """Makes the calls of one caller process.

    Args:
        router: a started router.
        serializers: where options find a serializer by its name.
        name: the caller's name, used in call ids outside a worker.
        timeout: seconds, where neither proxy nor call says.
        middleware_for: what stands around the calls of a target.
        context: context data of every call.
    """

    def __init__(
        self,
        router: ReplyRouter,
        serializers: SerializerRegistry,
        *,
        name: str,
        timeout: float,
        middleware_for: MiddlewareFor,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._context = context or {}
        self.router = router
        self.name = name
        self.timeout = timeout
        self._timed_by_default: WeakSet[RemoteMethod] = WeakSet()
        self._lock = threading.Lock()
        """`method()` is called in threads too."""
        self._serializers = serializers
        self._chains = OutboundChains(CallKind.RPC, middleware_for, self._send)

    def method(
        self,
        service: str,
        name: str,
        options: CallOptions = DEFAULT_CALL_OPTIONS,
        layer: Middleware | None = None,
    ) -> RemoteMethod:
        """What `call()` takes: make it once, and use it for every call.

        Args:
            layer: a middleware of the proxy's own, around all others.

        Raises:
            ConfigError: `options` name a serializer that nobody has registered.
            UnserializableValueError: their context data has a key that is no text.
        """
        target = Target(Direction.OUTBOUND, CallKind.RPC, service, name)
        chain = self._chains.of(service, name)
        if layer is not None:
            chain = compose([layer], chain or self._send)
        context = encode_context({**self._context, **(options.context or {})}) or None
        with self._lock:
            method = RemoteMethod(
                target, options, self._route(target, options), chain, context, layer
            )
            if options.timeout is None:
                self._timed_by_default.add(method)
        return method

    def set_timeout(self, timeout: float) -> None:
        """Give calls `timeout` seconds from now on, where neither proxy nor call says; also those of methods already made."""
        with self._lock:
            self.timeout = timeout
            for method in self._timed_by_default:
                method.route = self._route(method.target, method.options)

    def call(
        self,
        method: RemoteMethod,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        back: dict[str, Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call `method`; await what this returns. Errors as `ReplyRouter.call()`.

        The deadline counts from here, and the current call is read here: the coroutine may run in another task. `back` gets the
        context data that comes back.
        """
        parent = get_current_call()
        deadline = deadline_of(parent, method.route.timeout)
        headers = request_headers(parent, self.name)
        if method.chain is None:
            if method.headers is not None:
                headers |= method.headers
            return self.router.call(method.route, args, kwargs, headers, deadline, back)
        options = method.options
        if method.context is not None:  # for middleware to see, and to change, as the headers
            headers |= method.context
        if options.headers is not None:
            headers |= options.headers
            options = msgspec.structs.replace(options, headers=None)
        call = Call(
            method.target,
            (args, kwargs),
            headers=headers,
            deadline=deadline,
            options=options,
            reply_context={} if back is None else back,  # for middleware to see
        )
        return _call_through(method.chain, call)

    async def _send(self, call: Call) -> Outcome:
        """The end of the outbound chain: whatever middleware has made of `call` is what is sent."""
        try:
            options = call.options
            if not isinstance(options, CallOptions):
                options = DEFAULT_CALL_OPTIONS
            route = self._route(call.target, options)
            deadline = tighter(call.deadline, time.monotonic() + route.timeout)
            assert deadline is not None
            headers = call.outbound_headers() | (_headers_of(options) or {})
            value = await self.router.call(
                route, call.args, call.kwargs, headers, deadline, call.reply_context
            )
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            return Outcome(error=exc)
        return Outcome(value)

    def _route(self, target: Target, options: CallOptions) -> Route:
        serializer = self._serializers.by_name(options.serializer)
        if options.compression is not None:
            serializer = compressed(serializer, compressor_of(options.compression)[1])
        return Route(
            service=target.service,
            routing_key=rpc_routing_key(target.service, target.method),
            timeout=self.timeout if options.timeout is None else options.timeout,
            serializer=serializer,
            priority=options.priority,
        )


def _headers_of(options: CallOptions) -> dict[str, Any] | None:
    """What options put among the headers of each request."""
    if options.headers is None and options.compression is None:
        return None
    headers = dict(options.headers or {})
    if options.compression is not None:
        headers[COMPRESSION_HEADER] = compressor_of(options.compression)[0]
    return headers


async def _call_through(chain: Next, call: Call) -> Any:
    return (await chain(call)).unwrap()
