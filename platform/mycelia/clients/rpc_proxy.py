"""`RpcProxy`: other services as objects. `self.planes.get("N14228")` is awaited in `async def` methods and blocks in `def`.

Attribute access makes method names, so they may be dynamic; `proxy["any-name"]` reaches names that are no identifier.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from mycelia.call import (
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
)
from mycelia.clients.outbound import (
    THREAD_MARGIN,
    deadline_of,
    refuse_to_block,
    request_headers,
    run_from_thread,
)
from mycelia.clients.reply_router import ReplyRouter
from mycelia.errors import ConfigError
from mycelia.runtime import Container, SharedDependency, SharedExtension
from mycelia.wire import Serializer

__all__ = ["Caller", "MethodProxy", "ReplyListener", "RpcProxy", "RpcReply", "ServiceProxy"]


class Caller:
    """Makes calls for one caller process: headers, deadline, outbound middleware, then the reply router.

    Args:
        router: a started router.
        name: the caller's name, used in call ids outside a worker.
        timeout: seconds, where neither proxy nor call says.
        middleware: around every call, outermost first.
    """

    def __init__(
        self,
        router: ReplyRouter,
        *,
        name: str,
        timeout: float,
        middleware: tuple[Middleware, ...] = (),
    ) -> None:
        self.router = router
        self.name = name
        self.timeout = timeout
        self._chain: Next | None = compose(middleware, self._send) if middleware else None

    def call(
        self,
        service: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        parent: Call | None,
        timeout: float | None = None,
        serializer: Serializer | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call `service.method`; await what this returns. Errors as `ReplyRouter.call()`.

        The deadline counts from here, and the parent's context is read here: the coroutine may run in another task.
        """
        if timeout is None:
            timeout = self.timeout
        deadline = deadline_of(parent, timeout)
        headers = request_headers(parent, self.name)
        if self._chain is None:
            return self.router.call(
                service,
                method,
                args,
                kwargs,
                headers=headers,
                deadline=deadline,
                timeout=timeout,
                serializer=serializer,
                priority=priority,
            )
        call = Call(
            Target(Direction.OUTBOUND, CallKind.RPC, service, method),
            args,
            kwargs,
            headers=headers,
            deadline=deadline,
            serializer=serializer,
            options=CallOptions(timeout=timeout, priority=priority),
        )
        return self._call_through(self._chain, call)

    async def _call_through(self, chain: Next, call: Call) -> Any:
        return (await chain(call)).unwrap()

    async def _send(self, call: Call) -> Outcome:
        """The end of the outbound chain."""
        options = call.options
        assert isinstance(options, CallOptions)
        assert options.timeout is not None
        assert call.deadline is not None
        try:
            value = await self.router.call(
                call.service,
                call.method,
                call.args,
                call.kwargs,
                headers=call.outbound_headers(),
                deadline=call.deadline,
                timeout=options.timeout,
                serializer=call.serializer,
                priority=options.priority,
            )
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            return Outcome(error=exc)
        return Outcome(value)


class RpcReply:
    """A call under way, from `method.call_async(...)`: `await reply.result()`, or `reply.result()` in a `def` method."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Any]) -> None:
        self._wait = wait

    def result(self) -> Any:
        """The method's result, or its error raised; awaitable in `async def`. May be asked for more than once."""
        return self._wait()


class MethodProxy:
    """One method of one service. Call it; or `call_async()` it; or `options(timeout=…)` it first."""

    __slots__ = ("_proxy", "_timeout", "name")

    def __init__(self, proxy: ServiceProxy, name: str, timeout: float | None) -> None:
        self._proxy = proxy
        self._timeout = timeout
        self.name = name

    def options(self, *, timeout: float) -> MethodProxy:
        """The same method with `timeout` seconds for each call."""
        return MethodProxy(self._proxy, self.name, timeout)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call and wait: returns an awaitable in `async def` methods, the result in `def` methods."""
        coroutine = self._call(args, kwargs)
        proxy = self._proxy
        if proxy.loop is None:
            return coroutine
        return run_from_thread(coroutine, proxy.loop, self._effective_timeout())

    def call_async(self, /, *args: Any, **kwargs: Any) -> RpcReply:
        """Send now, wait later: `reply.result()`."""
        coroutine = self._call(args, kwargs)
        proxy = self._proxy
        if proxy.loop is None:
            task = asyncio.get_running_loop().create_task(
                coroutine, name=f"mycelia:call:{proxy.service}.{self.name}"
            )
            # An error that nobody asks for is not worth a line about an unretrieved exception.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            return RpcReply(lambda: asyncio.shield(task))
        loop = proxy.loop
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        deadline = time.monotonic() + self._effective_timeout() + THREAD_MARGIN

        def wait() -> Any:
            refuse_to_block(loop)
            return future.result(max(deadline - time.monotonic(), 0.0))

        return RpcReply(wait)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        proxy = self._proxy
        # The parent is read here, in the worker's own context; the coroutine may run in another.
        return proxy.caller.call(
            proxy.service,
            self.name,
            args,
            kwargs,
            parent=get_current_call(),
            timeout=self._timeout,
            serializer=proxy.serializer,
            priority=proxy.priority,
        )

    def _effective_timeout(self) -> float:
        return self._proxy.caller.timeout if self._timeout is None else self._timeout


class ServiceProxy:
    """One service: attributes and items are its methods.

    Args:
        caller: makes the calls.
        service: the service's name.
        timeout: seconds for each call; the caller's default if `None`.
        loop: given for use in worker threads: calls block there.
    """

    def __init__(
        self,
        caller: Caller,
        service: str,
        *,
        timeout: float | None = None,
        serializer: Serializer | None = None,
        priority: int | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.caller = caller
        self.service = service
        self.timeout = timeout
        self.serializer = serializer
        self.priority = priority
        self.loop = loop

    def __getattr__(self, name: str) -> MethodProxy:
        if name.startswith("__"):  # copy, pickle and the like ask for these; no service has them
            raise AttributeError(name)
        method = MethodProxy(self, name, self.timeout)
        self.__dict__[name] = method  # next time it is an ordinary attribute
        return method

    def __getitem__(self, name: str) -> MethodProxy:
        return MethodProxy(self, name, self.timeout)

    def __repr__(self) -> str:
        return f"<ServiceProxy {self.service}>"


class ReplyListener(SharedExtension):
    """The reply router of a container, shared by all of its proxies."""

    needs_broker = True
    container: Container

    async def setup(self) -> None:
        container = self.container
        host = container.host
        self.router = ReplyRouter(
            host.link,
            host.serializers,
            caller=container.service_name,
            exchange=container.settings.rpc_exchange,
        )
        self.caller = Caller(
            self.router,
            name=container.service_name,
            timeout=container.settings.mycelia.rpc_timeout,
            middleware=container.middleware_for(Target(Direction.OUTBOUND, CallKind.RPC, "*", "*")),
        )
        await self.router.start()

    async def stop(self) -> None:
        await self.router.aclose()


class RpcProxy(SharedDependency):
    """Injects a proxy of another service.

    Args:
        target_service: its name.
        timeout: seconds for each call; the setting `mycelia.rpc_timeout` (30) by default. A call inside a worker
            that has less time left takes no longer than the worker may.
        serializer: name of the serializer for requests; the configured one by default.
        priority: of requests, on queues that have priorities.
    """

    needs_broker = True
    container: Container
    listener = ReplyListener()

    def __init__(
        self,
        target_service: str,
        *,
        timeout: float | None = None,
        serializer: str | None = None,
        priority: int | None = None,
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ConfigError(f'RpcProxy("{target_service}", timeout={timeout}): must be above 0.')
        self.target_service = target_service
        self.timeout = timeout
        self.serializer = serializer
        self.priority = priority

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(self, instance: object, owner: type | None = None) -> ServiceProxy: ...

    def shared_dependency(self, is_async: bool) -> ServiceProxy:
        """One proxy serves all workers of an entrypoint: what differs between them is in the current call."""
        registry = self.container.host.serializers
        return ServiceProxy(
            self.listener.caller,
            self.target_service,
            timeout=self.timeout,
            serializer=None if self.serializer is None else registry.by_name(self.serializer),
            priority=self.priority,
            loop=None if is_async else asyncio.get_running_loop(),
        )
