"""`Client`: calls and events from programs that are not services: web apps, scripts, tests, notebooks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypedDict, TypeVar, Unpack

import msgspec

from mycelia.amqp import LINK_DEFAULTS, Exchange, Link, LinkOptions, LinkStatistics, connect
from mycelia.call import (
    DEFAULT_CALL_OPTIONS,
    DEFAULT_PUBLISH_OPTIONS,
    DEFAULT_TIMEOUT,
    CallArguments,
    CallKind,
    CallOptions,
    Middleware,
    MiddlewareSource,
    PublishArguments,
    Target,
    middleware_for,
    with_options,
)
from mycelia.clients.appending import Appendable, Appenders
from mycelia.clients.caller import Caller, RemoteMethod
from mycelia.clients.from_thread import run_from_thread
from mycelia.clients.publishing import Outlet
from mycelia.clients.reply_router import CallStatistics, ReplyRouter
from mycelia.clients.rpc_proxy import ServiceProxy
from mycelia.errors import BrokerUnavailable, RuntimeStateError
from mycelia.runtime.middleware import as_source
from mycelia.wire import RPC_EXCHANGE, SerializerRegistry, encode_context

__all__ = ["BlockingClient", "Client", "ClientStatistics"]

T = TypeVar("T")

MAX_METHODS = 1000
"""Methods that a client keeps; those beyond are worked out at each call. Arbitrary: a bound where names are dynamic."""


class ClientStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a client can say of itself; plain JSON with `msgspec.to_builtins()`."""

    link_state: str
    """A value of `LinkState`."""
    link: LinkStatistics
    calls: CallStatistics | None
    """`None` until the first call."""


class ClientArguments(TypedDict, total=False):
    """What `Client` takes beside the URI, as keyword arguments."""

    timeout: float
    name: str
    config: Mapping[str, Any] | None
    middleware: Iterable[Middleware | MiddlewareSource]
    context: Mapping[str, Any] | None


class Client:
    """An asyncio client of the services on a broker.

        async with Client("amqp://localhost") as client:
            worst = await client.call("delays", "worst", n=5, timeout=2)
            await client.publish("tower", "runway_closed", {"runway": "31L"})

    Make one for each process and share it among tasks: calls are pipelined on one connection, and it reconnects by
    itself. Lives on the event loop it was opened on.

    Args:
        uri: where the broker is: `amqp://`, `amqps://` or `memory://`; several hosts separated by `;`.
        timeout: seconds for each call and publishing that says nothing else.
        name: the program's name in call ids and in the reply queue's name.
        config: Nameko's configuration keys that matter here: `serializer`, `SERIALIZERS`, `ACCEPT`,
            `rpc_exchange`, `AMQP_SSL`, `HEARTBEAT`, and in `mycelia` `connect_timeout`, `peer_timeout` and `requests_expire`.
        middleware: around every call, event and batch of records that leaves, outermost first: an `async def (call, next)` each, or an
            object with a method `middleware(direction, target)`.
        context: context data (`{"user_id": 7}`) of every call and event that leaves. For a single one there is the option of
            that name: `client.publish(…, context=…)`, `client.service(name, context=…)`, `method.options(context=…)`.

    Raises:
        ConfigError: what is given as middleware is none; an unknown serializer.
        UnserializableValueError: a name in the context data is no text.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        name: str = "mycelia_client",
        config: Mapping[str, Any] | None = None,
        middleware: Iterable[Middleware | MiddlewareSource] = (),
        context: Mapping[str, Any] | None = None,
    ) -> None:
        config = config or {}
        self._context = dict(context or {})
        encode_context(self._context)  # what cannot be is told here, not at the first call
        self._middleware = [as_source(given, "Client(middleware=…)") for given in middleware]
        self.timeout = timeout
        self.name = name
        self._uri = uri
        self._config = config
        self._serializers = SerializerRegistry.from_config(config)
        self._exchange = str(config.get("rpc_exchange", RPC_EXCHANGE))
        self._link: Link | None = None
        self._caller: Caller | None = None
        self._router: ReplyRouter | None = None
        self._opening: asyncio.Lock = asyncio.Lock()
        self._methods: dict[tuple[str, str, float | None], RemoteMethod] = {}
        self._events: Outlet | None = None
        self._exchanges: _Exchanges | None = None
        self._appenders: Appenders | None = None

    @property
    def link(self) -> Link:
        """The broker link.

        Raises:
            RuntimeStateError: the client is not open.
        """
        if self._link is None:
            raise _not_open("async with Client(uri) as client:")
        return self._link

    def statistics(self) -> ClientStatistics:
        """What this client has done since it was opened, and has under way. On its event loop.

        Raises:
            RuntimeStateError: the client is not open.
        """
        link, router = self.link, self._router
        return ClientStatistics(
            link_state=link.state.value,
            link=link.statistics(),
            calls=None if router is None else router.statistics(),
        )

    async def open(self, timeout: float | None = None) -> None:
        """Connect, within `timeout` seconds (the client's own if `None`). `async with` does this."""
        if self._link is not None:
            return
        ours = self._config.get("mycelia") or {}
        link = connect(
            self._uri,
            LinkOptions(
                ssl=self._config.get("AMQP_SSL"),
                heartbeat=self._config.get("HEARTBEAT", 60) or 0,
                name=self.name,
                connect_timeout=ours.get("connect_timeout", LINK_DEFAULTS.connect_timeout),
                peer_timeout=ours.get("peer_timeout", LINK_DEFAULTS.peer_timeout),
            ),
        )
        await link.open(self.timeout if timeout is None else timeout)
        self._link = link
        self._exchanges = _Exchanges(link, self._config, self.timeout)
        self._appenders = Appenders(link, self.timeout, self._middleware_for)
        self._events = Outlet(
            CallKind.EVENT,
            link,
            self._serializers,
            caller=self.name,
            timeout=self.timeout,
            middleware_for=self._middleware_for,
            prepare=self._exchanges.prepare,
            context=self._context,
        )

    def _middleware_for(self, target: Target) -> tuple[Middleware, ...]:
        return middleware_for(self._middleware, target)

    async def aclose(self) -> None:
        """Fail the calls under way and disconnect. Idempotent and bounded."""
        router, self._router, self._caller = self._router, None, None
        link, self._link = self._link, None
        exchanges, self._exchanges, self._events = self._exchanges, None, None
        appenders, self._appenders = self._appenders, None
        self._methods.clear()
        if appenders is not None:
            await appenders.aclose()
        if exchanges is not None:
            await exchanges.aclose()
        if router is not None:
            await router.aclose()
        if link is not None:
            await link.aclose()

    async def __aenter__(self) -> Client:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def call(
        self, service: str, method: str, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a method of a service and return its result.

        `timeout` is the call's own; a remote method with a parameter of that name can be reached through
        `client.service(name).method.options(timeout=…)(…)`.

        Raises:
            RpcTimeout: no reply within the time.
            UnknownService: no such service on this broker.
            MethodNotFound, IncorrectSignature, MalformedRequest: said by the service.
            RemoteError: the method raised; or the registered class of what it raised.
            BrokerUnavailable, BrokerBlocked: the request could not be sent in time.
        """
        if self._caller is None:
            return self._first_call(service, method, args, kwargs, timeout)
        return self._call(self._caller, service, method, args, kwargs, timeout)

    async def _first_call(
        self,
        service: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Any:
        caller = await self._open_caller()
        return await self._call(caller, service, method, args, kwargs, timeout)

    def _call(
        self,
        caller: Caller,
        service: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Coroutine[Any, Any, Any]:
        key = (service, method, timeout)
        found = self._methods.get(key)
        if found is None:
            options = DEFAULT_CALL_OPTIONS if timeout is None else CallOptions(timeout=timeout)
            found = caller.method(service, method, options)
            if len(self._methods) < MAX_METHODS:
                self._methods[key] = found
        return caller.call(found, args, kwargs)

    async def _open_caller(self) -> Caller:
        """The reply queue is made at the first call: a client that only publishes needs none."""
        async with self._opening:
            if self._caller is None:
                router = ReplyRouter(
                    self.link,
                    self._serializers,
                    caller=self.name,
                    exchange=self._exchange,
                    requests_expire=(self._config.get("mycelia") or {}).get(
                        "requests_expire", True
                    ),
                )
                await router.start(self.timeout)
                self._router = router
                self._caller = Caller(
                    router,
                    self._serializers,
                    name=self.name,
                    timeout=self.timeout,
                    middleware_for=self._middleware_for,
                    context=self._context,
                )
            return self._caller

    async def service(self, name: str, **options: Unpack[CallArguments]) -> ServiceProxy:
        """A proxy of one service: `planes = await client.service("planes")`, then `await planes.get("N14228")`.

        Args:
            options: as in `CallOptions`, for every call.
        """
        chosen = with_options(DEFAULT_CALL_OPTIONS, options, f'service("{name}")')
        return ServiceProxy(self._caller or await self._open_caller(), name, chosen)

    async def publish(
        self,
        source_service: str,
        event_type: str,
        payload: Any = None,
        /,
        **options: Unpack[PublishArguments],
    ) -> None:
        """Publish an event as `source_service` would; returns when the broker has it.

        Args:
            options: as in `PublishOptions`: `mandatory=True` makes an event without subscribers an error, `after="5m"` lets it
                arrive later.

        Raises:
            BrokerUnavailable: no broker within the timeout.
            BrokerBlocked: the broker has taken no publishings for that long.
            PublishRejected: the broker refused it.
            Unroutable: with `mandatory=True`, nobody has subscribed.
            UnserializableValueError: the payload cannot be encoded.
        """
        chosen = DEFAULT_PUBLISH_OPTIONS
        if options:
            chosen = with_options(chosen, options, f'event "{event_type}"')
        events = self._events
        if events is None:
            raise _not_open("async with Client(uri) as client:")
        await events.publish(source_service, event_type, payload, chosen)

    async def append(self, log: Appendable, value: Any, /, **options: Any) -> None:
        """Append a record to a `Log`; returns when the broker has it. The first append to a log declares it.

        Args:
            options: `key`, `time` and `headers` of the record, as `LogWriter.append()` takes them.

        Raises:
            As `LogWriter.append()`; TopologyError: the log exists, and is not the same.
        """
        await (await self._appenders_of().of(log)).append(value, **options)

    async def append_many(self, log: Appendable, values: Sequence[Any], /, **options: Any) -> None:
        """Append records to a `Log`, in their order; returns when the broker has them all.

        Args:
            options: `keys`, `times` and `headers` of the records, `producer` and `sequence` of the batch, as `LogWriter.append_many()`
                takes them.
        """
        await (await self._appenders_of().of(log)).append_many(values, **options)

    def _appenders_of(self) -> Appenders:
        if self._appenders is None:
            raise _not_open("async with Client(uri) as client:")
        return self._appenders


class _Exchanges:
    """The event exchanges that a client has declared: each once, however many publishings want it at the same time."""

    def __init__(self, link: Link, config: Mapping[str, Any], timeout: float) -> None:
        self._declared: set[str] = set()
        self._link = link
        self._config = config
        self._timeout = timeout
        self._declaring: dict[str, asyncio.Task[None]] = {}

    async def prepare(self, name: str, deadline: float) -> None:
        """Wait until exchange `name` is there; no longer than until `deadline`.

        Raises:
            BrokerUnavailable: not by `deadline`.
            TopologyError: an exchange of another type has the name.
        """
        if name in self._declared:
            return
        task = self._declaring.get(name)
        if task is None:
            task = asyncio.create_task(self._declare(name), name=f"mycelia:declare:{name}")
            task.add_done_callback(_look_at)
            self._declaring[name] = task
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await asyncio.shield(task)
        except TimeoutError:
            raise BrokerUnavailable(
                f'exchange "{name}" could not be declared within the time for the publishing.'
            ) from None
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise BrokerUnavailable(
                f'the client was closed before exchange "{name}" was declared.'
            ) from None

    async def _declare(self, name: str) -> None:
        try:
            if self._config.get("DECLARE_EVENT_EXCHANGES") is not False:
                auto_delete = bool(self._config.get("AUTO_DELETE_EVENT_EXCHANGES"))
                exchange = Exchange(name, auto_delete=auto_delete)
                await self._link.declare(exchange, timeout=self._timeout)
            self._declared.add(name)
        finally:
            del self._declaring[name]

    async def aclose(self) -> None:
        """Give up what is being declared. Idempotent."""
        tasks = list(self._declaring.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _look_at(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for any more is not worth a line about an unretrieved exception."""
    if not task.cancelled():
        task.exception()


def _not_open(how: str) -> RuntimeStateError:
    return RuntimeStateError(f"the client is not open: use `{how}`.")


class BlockingClient:
    """`Client` for programs without an event loop; safe to share among threads. Its loop runs in a thread of its own.

    with BlockingClient("amqp://localhost") as client:
        client.call("delays", "worst", n=5, timeout=2)
    """

    def __init__(self, uri: str, **options: Unpack[ClientArguments]) -> None:
        """Takes what `Client` takes."""
        self._uri = uri
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Client | None = None

    def open(self) -> None:
        """Connect. `with` does this."""
        if self._loop is not None:
            return
        loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=_run_loop, args=(loop,), name="mycelia-client", daemon=True
        )
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            self._client = self._run(self._make(), 0.0)
            self._run(self._client.open(), self._client.timeout)
        except BaseException:
            self.close()
            raise

    async def _make(self) -> Client:
        return Client(self._uri, **self._options)

    def close(self) -> None:
        """Disconnect and end the loop's thread. Idempotent."""
        loop, thread, client = self._loop, self._thread, self._client
        self._loop = self._thread = self._client = None  # from here on other threads are told
        if loop is None or thread is None:
            return
        if client is not None:
            run_from_thread(client.aclose(), loop, 10.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5.0)

    def call(
        self, service: str, method: str, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """As `Client.call()`, waiting for the result."""
        client = self._opened()
        return self._run(
            client.call(service, method, *args, timeout=timeout, **kwargs),
            client.timeout if timeout is None else timeout,
        )

    def publish(
        self,
        source_service: str,
        event_type: str,
        payload: Any = None,
        /,
        **options: Unpack[PublishArguments],
    ) -> None:
        """As `Client.publish()`, waiting for the broker."""
        client = self._opened()
        self._run(
            client.publish(source_service, event_type, payload, **options),
            options.get("timeout") or client.timeout,
        )

    def append(self, log: Appendable, value: Any, /, **options: Any) -> None:
        """As `Client.append()`, waiting for the broker."""
        client = self._opened()
        self._run(client.append(log, value, **options), 2 * client.timeout)

    def append_many(self, log: Appendable, values: Sequence[Any], /, **options: Any) -> None:
        """As `Client.append_many()`, waiting for the broker."""
        client = self._opened()
        self._run(client.append_many(log, values, **options), 2 * client.timeout)

    def statistics(self) -> ClientStatistics:
        """As `Client.statistics()`, from any thread but its loop's."""
        return self._run(_statistics_of(self._opened()), 0.0)

    def _opened(self) -> Client:
        if self._client is None:
            raise _not_open("with BlockingClient(uri) as client:")
        return self._client

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        loop = self._loop
        if loop is None:  # another thread has closed the client meanwhile
            coroutine.close()
            raise RuntimeStateError("the client was closed before the call was made.")
        try:
            return run_from_thread(coroutine, loop, timeout)
        except RuntimeError as exc:
            if not loop.is_closed():
                raise
            coroutine.close()
            raise RuntimeStateError("the client was closed before the call was made.") from exc

    def __enter__(self) -> BlockingClient:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _statistics_of(client: Client) -> ClientStatistics:
    return client.statistics()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run `loop` until it is stopped, and close it."""
    loop.run_forever()
    # Calls that other threads made in this very moment learn from the closed client that it is closed.
    loop.run_until_complete(_finish_others())
    loop.close()


async def _finish_others() -> None:
    """Let what else was given to this loop end, for a second at most."""
    await asyncio.sleep(0)  # what was handed over from other threads becomes tasks
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=1.0)
