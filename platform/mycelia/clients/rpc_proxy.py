"""`RpcProxy`: other services as objects. `self.planes.get("N14228")` is awaited in `async def` methods and blocks in `def`.

Attribute access makes method names, so they may be dynamic; `proxy["any-name"]` reaches names that are no identifier.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from mycelia.call import (
    DEFAULT_CALL_OPTIONS,
    CallArguments,
    CallOptions,
    Middleware,
    outcome_of,
    with_options,
)
from mycelia.clients.caller import Caller, RemoteMethod
from mycelia.clients.from_thread import THREAD_MARGIN, refuse_to_block, run_from_thread
from mycelia.clients.reply_router import CallStatistics, ReplyRouter
from mycelia.clients.retrying import Retrying
from mycelia.clients.two_ways import Injects, TwoWays
from mycelia.errors import ConfigError
from mycelia.policies.retry import Retry
from mycelia.runtime import Container, Settings, SharedExtension

__all__ = [
    "BlockingMethodProxy",
    "BlockingRpcReply",
    "BlockingServiceProxy",
    "MethodProxy",
    "ReplyListener",
    "RpcProxy",
    "RpcReply",
    "ServiceProxy",
]

MAX_METHODS = 1000
"""Methods that one proxy keeps; names beyond them are worked out at each call. Arbitrary: a bound where names are dynamic."""


class RpcReply:
    """A call under way, from `method.call_async(…)`: `await reply.result()`."""

    __slots__ = ("_task", "context")

    def __init__(self, call: Coroutine[Any, Any, Any], name: str, context: dict[str, Any]) -> None:
        self.context = context
        """Context data that the method sent back (`context.reply`), by name; there once `result()` has been had, or has
        raised the method's error."""
        # An error that nobody asks for is not worth a line about an unretrieved exception: it is an outcome.
        self._task = asyncio.get_running_loop().create_task(
            outcome_of(call), name=f"mycelia:call:{name}"
        )

    async def result(self) -> Any:
        """The method's result, or its error raised. May be asked for more than once."""
        return (await asyncio.shield(self._task)).unwrap()


class BlockingRpcReply:
    """A call under way, from `method.call_async(…)` in a `def` method: `reply.result()`."""

    __slots__ = ("_deadline", "_future", "_loop", "context")

    def __init__(
        self,
        call: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        context: dict[str, Any],
    ) -> None:
        self.context = context
        """Context data that the method sent back, as `RpcReply.context`."""
        self._loop = loop
        self._future = asyncio.run_coroutine_threadsafe(outcome_of(call), loop)
        self._deadline = time.monotonic() + timeout + THREAD_MARGIN

    def result(self) -> Any:
        """Wait for the method's result, or its error raised. May be asked for more than once."""
        refuse_to_block(self._loop)
        return self._future.result(max(self._deadline - time.monotonic(), 0.0)).unwrap()


class MethodProxy:
    """One method of one service. Call it; or `call_async()` it; or `options(timeout=…)` it first."""

    __slots__ = ("_caller", "_method")

    def __init__(self, caller: Caller, method: RemoteMethod) -> None:
        self._caller = caller
        self._method = method

    def options(self, **options: Unpack[CallArguments]) -> MethodProxy:
        """The same method, called with `options` over those of the proxy."""
        return MethodProxy(self._caller, _with(self._caller, self._method, options))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call; await the result. The request leaves when it is first awaited, its time counts from here."""
        return self._caller.call(self._method, args, kwargs)

    def call_async(self, /, *args: Any, **kwargs: Any) -> RpcReply:
        """Send now, wait later: `await reply.result()`. What travels back beside the result is `reply.context` then."""
        back: dict[str, Any] = {}
        call = self._caller.call(self._method, args, kwargs, back)
        return RpcReply(call, self._method.target.name, back)

    def __repr__(self) -> str:
        return f"<MethodProxy {self._method.target.name}>"


class BlockingMethodProxy:
    """As `MethodProxy`, for threads beside the event loop: it blocks until the result is there."""

    __slots__ = ("_caller", "_loop", "_method")

    def __init__(
        self, caller: Caller, method: RemoteMethod, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._caller = caller
        self._method = method
        self._loop = loop

    def options(self, **options: Unpack[CallArguments]) -> BlockingMethodProxy:
        """The same method, called with `options` over those of the proxy."""
        method = _with(self._caller, self._method, options)
        return BlockingMethodProxy(self._caller, method, self._loop)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call, and wait for the result."""
        method = self._method
        return run_from_thread(
            self._caller.call(method, args, kwargs), self._loop, method.route.timeout
        )

    def call_async(self, /, *args: Any, **kwargs: Any) -> BlockingRpcReply:
        """Send now, wait later: `reply.result()`. What travels back beside the result is `reply.context` then."""
        back: dict[str, Any] = {}
        method = self._method
        call = self._caller.call(method, args, kwargs, back)
        return BlockingRpcReply(call, self._loop, method.route.timeout, back)

    def __repr__(self) -> str:
        return f"<BlockingMethodProxy {self._method.target.name}>"


def _with(caller: Caller, method: RemoteMethod, options: CallArguments) -> RemoteMethod:
    target = method.target
    chosen = with_options(method.options, options, f"{target.name}.options()")
    return caller.method(target.service, target.method, chosen, method.layer)


Method = TypeVar("Method", MethodProxy, BlockingMethodProxy)


class _Service(ABC, Generic[Method]):
    """One service: attributes and items are its methods; that is all that it shows of itself.

    Args:
        caller: makes the calls.
        service: the service's name.
        options: of each call.
        layer: what stands around each call.
    """

    # The dictionary has a service's methods, each once it has been used: then it is an ordinary attribute.
    __slots__ = ("__dict__", "_caller", "_layer", "_options", "_service")

    def __init__(
        self,
        caller: Caller,
        service: str,
        options: CallOptions = DEFAULT_CALL_OPTIONS,
        layer: Middleware | None = None,
    ) -> None:
        self._caller = caller
        self._service = service
        self._options = options
        self._layer = layer

    def __getattr__(self, name: str) -> Method:
        if name.startswith("__"):  # copy, pickle and the like ask for these; no service has them
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Method:
        methods = self.__dict__
        found: Method | None = methods.get(name)
        if found is None:
            found = self._proxy(
                self._caller.method(self._service, name, self._options, self._layer)
            )
            if len(methods) < MAX_METHODS:
                methods[name] = found
        return found

    @abstractmethod
    def _proxy(self, method: RemoteMethod) -> Method: ...

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._service}>"


class ServiceProxy(_Service[MethodProxy]):
    """One service: attributes and items are its methods, which are awaited."""

    __slots__ = ()

    def _proxy(self, method: RemoteMethod) -> MethodProxy:
        return MethodProxy(self._caller, method)


class BlockingServiceProxy(_Service[BlockingMethodProxy]):
    """One service: attributes and items are its methods, which block the thread that calls them.

    Args:
        loop: what the calls run on.
    """

    __slots__ = ("_loop",)

    def __init__(
        self,
        caller: Caller,
        service: str,
        options: CallOptions = DEFAULT_CALL_OPTIONS,
        layer: Middleware | None = None,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(caller, service, options, layer)
        self._loop = loop

    def _proxy(self, method: RemoteMethod) -> BlockingMethodProxy:
        return BlockingMethodProxy(self._caller, method, self._loop)


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
            requests_expire=container.settings.mycelia.requests_expire,
        )
        self.caller = Caller(
            self.router,
            host.serializers,
            name=container.service_name,
            timeout=container.settings.mycelia.rpc_timeout,
            middleware_for=container.middleware_for,
        )
        await self.router.start()

    def reconfigure(self, old: Settings, new: Settings) -> None:
        self.caller.set_timeout(new.mycelia.rpc_timeout)

    def statistics(self) -> CallStatistics | None:
        router: ReplyRouter | None = getattr(self, "router", None)
        return None if router is None else router.statistics()  # asked before `setup()`, too

    async def stop(self) -> None:
        await self.router.aclose()


class RpcProxy(TwoWays):
    """Injects a proxy of another service.

    Args:
        target_service: its name.
        retry: when a call is tried again; never, by default. All attempts together take no longer than the call's timeout.
            Errors after which the method has not run are tried again (`UnknownService`, `Overloaded`), others where
            `Retry(on=…)` names them: only the caller knows which methods may run twice.
        options: as in `CallOptions`, for every call: `timeout` in seconds, the setting `mycelia.rpc_timeout` (30) by
            default; `serializer` and `priority` of the requests.
    """

    needs_broker = True
    listener = ReplyListener()

    def __init__(
        self, target_service: str, *, retry: Retry | None = None, **options: Unpack[CallArguments]
    ) -> None:
        self.target_service = target_service
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigError(
                f'RpcProxy("{target_service}", retry={retry!r:.60}): expected Retry(…).'
            )
        self._layer = None if retry is None else Retrying(retry)
        self.options = with_options(DEFAULT_CALL_OPTIONS, options, f'RpcProxy("{target_service}")')
        timeout = self.options.timeout
        if timeout is not None and timeout <= 0:
            raise ConfigError(f'RpcProxy("{target_service}", timeout={timeout}): must be above 0.')

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> ServiceProxy: ...

    @property
    def blocking(self) -> Injects[BlockingServiceProxy]:
        """The same for `def` methods, as type checkers see it: calls return results instead of awaitables."""
        blocking: Injects[BlockingServiceProxy] = self.made_blocking()
        return blocking

    def setup(self) -> None:
        if self.options.serializer is not None:  # a name that does not exist stops the start
            self.container.host.serializers.by_name(self.options.serializer)

    def awaited(self) -> ServiceProxy:
        return ServiceProxy(self.listener.caller, self.target_service, self.options, self._layer)

    def waiting(self, loop: asyncio.AbstractEventLoop) -> BlockingServiceProxy:
        return BlockingServiceProxy(
            self.listener.caller, self.target_service, self.options, self._layer, loop=loop
        )
