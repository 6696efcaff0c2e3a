"""`Client`: calls and events from programs that are not services: web apps, scripts, tests, notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, TypeVar

from mycelia.amqp import Exchange, Link, LinkOptions, connect
from mycelia.call import DEFAULT_TIMEOUT, get_current_call
from mycelia.clients.outbound import run_from_thread
from mycelia.clients.publishing import DEFAULT_OPTIONS, publish_message, read_options
from mycelia.clients.reply_router import ReplyRouter
from mycelia.clients.rpc_proxy import Caller, ServiceProxy
from mycelia.errors import RuntimeStateError
from mycelia.wire import RPC_EXCHANGE, SerializerRegistry, event_exchange_name

__all__ = ["BlockingClient", "Client"]

T = TypeVar("T")


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
            `rpc_exchange`, `AMQP_SSL`, `HEARTBEAT`.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        name: str = "mycelia_client",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        config = config or {}
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
        self._declared: set[str] = set()

    @property
    def link(self) -> Link:
        """The broker link.

        Raises:
            RuntimeStateError: the client is not open.
        """
        if self._link is None:
            raise RuntimeStateError(
                "the client is not open: use `async with Client(uri) as client:`."
            )
        return self._link

    async def open(self, timeout: float | None = None) -> None:
        """Connect, within `timeout` seconds (the client's own if `None`). `async with` does this."""
        if self._link is not None:
            return
        link = connect(
            self._uri,
            LinkOptions(
                ssl=self._config.get("AMQP_SSL"),
                heartbeat=self._config.get("HEARTBEAT", 60) or 0,
                name=self.name,
            ),
        )
        await link.open(self.timeout if timeout is None else timeout)
        self._link = link

    async def aclose(self) -> None:
        """Fail the calls under way and disconnect. Idempotent and bounded."""
        router, self._router, self._caller = self._router, None, None
        link, self._link = self._link, None
        self._declared.clear()
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
        caller = self._caller
        if caller is None:
            return self._first_call(service, method, args, kwargs, timeout)
        return caller.call(
            service, method, args, kwargs, parent=get_current_call(), timeout=timeout
        )

    async def _first_call(
        self,
        service: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Any:
        caller = await self._open_caller()
        return await caller.call(
            service, method, args, kwargs, parent=get_current_call(), timeout=timeout
        )

    async def _open_caller(self) -> Caller:
        """The reply queue is made at the first call: a client that only publishes needs none."""
        async with self._opening:
            if self._caller is None:
                router = ReplyRouter(
                    self.link, self._serializers, caller=self.name, exchange=self._exchange
                )
                await router.start(self.timeout)
                self._router = router
                self._caller = Caller(router, name=self.name, timeout=self.timeout)
            return self._caller

    async def service(self, name: str, *, timeout: float | None = None) -> ServiceProxy:
        """A proxy of one service: `planes = await client.service("planes")`, then `await planes.get("N14228")`."""
        caller = self._caller or await self._open_caller()
        return ServiceProxy(caller, name, timeout=timeout)

    async def publish(
        self, source_service: str, event_type: str, payload: Any = None, /, **options: Any
    ) -> None:
        """Publish an event as `source_service` would; returns when the broker has it.

        Args:
            options: as in `PublishOptions`: `mandatory=True` makes an event without subscribers an error.

        Raises:
            BrokerUnavailable, BrokerBlocked, PublishRejected, Unroutable, UnserializableValueError.
        """
        exchange = event_exchange_name(source_service)
        if exchange not in self._declared:
            if self._config.get("DECLARE_EVENT_EXCHANGES") is not False:
                await self.link.declare(
                    Exchange(
                        exchange,
                        auto_delete=bool(self._config.get("AUTO_DELETE_EVENT_EXCHANGES")),
                    ),
                    timeout=self.timeout,
                )
            self._declared.add(exchange)
        await publish_message(
            self.link,
            self._serializers,
            exchange,
            event_type,
            payload,
            read_options(DEFAULT_OPTIONS, options, f'event "{event_type}"')
            if options
            else DEFAULT_OPTIONS,
            parent=get_current_call(),
            caller=self.name,
            default_timeout=self.timeout,
        )


class BlockingClient:
    """`Client` for programs without an event loop; safe to share among threads. Its loop runs in a thread of its own.

    with BlockingClient("amqp://localhost") as client:
        client.call("delays", "worst", n=5, timeout=2)
    """

    def __init__(self, uri: str, **options: Any) -> None:
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
        self, source_service: str, event_type: str, payload: Any = None, /, **options: Any
    ) -> None:
        """As `Client.publish()`, waiting for the broker."""
        client = self._opened()
        self._run(
            client.publish(source_service, event_type, payload, **options),
            options.get("timeout") or client.timeout,
        )

    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeStateError(
                "the client is not open: use `with BlockingClient(uri) as client:`."
            )
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
