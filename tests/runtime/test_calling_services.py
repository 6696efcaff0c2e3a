"""`RpcProxy` in both kinds of worker: results, errors, timeouts, names."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Binding, Client, Exchange, Queue, RpcProxy, rpc
from mycelia.amqp import ConsumeOptions, Delivery, Link
from mycelia.amqp.memory.broker import broker_at
from mycelia.errors import (
    ConfigError,
    IncorrectSignature,
    MethodNotFound,
    RemoteError,
    RpcTimeout,
    RuntimeStateError,
    TopologyError,
    UnknownService,
    UnserializableValueError,
)
from mycelia.runtime import Runner


class Back:
    name = "back-service"

    @rpc
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @rpc
    async def fail(self, text: str) -> None:
        raise LookupError(text)

    @rpc
    async def never(self) -> None:
        await asyncio.Event().wait()


class Proxies:
    back = RpcProxy("back-service")
    impatient = RpcProxy("back-service", timeout=0.05)
    nobody = RpcProxy("nobody")


class OnLoop(Proxies):
    name = "front"

    @rpc
    async def add(self, *args: Any, **kwargs: Any) -> Any:
        return await self.back.add(*args, **kwargs)

    @rpc
    async def dynamic(self, method: str) -> list[Any]:
        return [await getattr(self.back, method)(1), await self.back[method](2)]

    @rpc
    async def many(self) -> list[int]:
        replies = [self.back.add.call_async(n) for n in range(5)]
        first = await replies[0].result()
        return [first, *[await reply.result() for reply in replies]]

    @rpc
    async def times_out(self, how: str) -> Any:
        if how == "proxy":
            await self.impatient.never()
        if how == "call":
            await self.back.never.options(timeout=0.05)()
        await self.back.never.options(timeout=0.05).call_async().result()

    @rpc
    async def catches(self, what: str) -> list[str]:
        try:
            await self._provoke(what)
        except Exception as exc:  # noqa: BLE001  whatever it is, it is what the test asks for
            return [type(exc).__name__, str(exc)]
        return []

    async def _provoke(self, what: str) -> None:
        if what == "unknown service":
            await self.nobody.method()
        elif what == "unknown method":
            await self.back.nothing()
        elif what == "wrong arguments":
            await self.back.add()
        elif what == "remote":
            await self.back.fail("gone")
        elif what == "unserializable":
            await self.back.add(object())
        elif what == "async remote":
            await self.back.fail.call_async("gone").result()


class Threaded(Proxies):
    name = "front"

    @rpc
    def add(self, *args: Any, **kwargs: Any) -> Any:
        return self.back.add(*args, **kwargs)

    @rpc
    def dynamic(self, method: str) -> list[Any]:
        return [getattr(self.back, method)(1), self.back[method](2)]

    @rpc
    def many(self) -> list[int]:
        replies = [self.back.add.call_async(n) for n in range(5)]
        return [replies[0].result(), *[reply.result() for reply in replies]]

    @rpc
    def times_out(self, how: str) -> Any:
        if how == "proxy":
            self.impatient.never()
        if how == "call":
            self.back.never.options(timeout=0.05)()
        self.back.never.options(timeout=0.05).call_async().result()

    @rpc
    def catches(self, what: str) -> list[str]:
        try:
            self._provoke(what)
        except Exception as exc:  # noqa: BLE001  whatever it is, it is what the test asks for
            return [type(exc).__name__, str(exc)]
        return []

    def _provoke(self, what: str) -> None:
        if what == "unknown service":
            self.nobody.method()
        elif what == "unknown method":
            self.back.nothing()
        elif what == "wrong arguments":
            self.back.add()
        elif what == "remote":
            self.back.fail("gone")
        elif what == "unserializable":
            self.back.add(object())
        elif what == "async remote":
            self.back.fail.call_async("gone").result()


@pytest.fixture(params=[Threaded, OnLoop], ids=["def", "async"])
async def front(request: pytest.FixtureRequest, serve: Serve) -> Runner:
    return await serve(request.param, Back)


async def test_proxy_returns_the_result(front: Runner, invoke: Invoke) -> None:
    assert await invoke("front", "add", 2) == 3
    assert await invoke("front", "add", 2, b=5) == 7


async def test_method_names_may_be_dynamic(front: Runner, invoke: Invoke) -> None:
    assert await invoke("front", "dynamic", "add") == [2, 3]


async def test_calls_may_be_sent_together_and_each_asked_more_than_once(
    front: Runner, invoke: Invoke
) -> None:
    assert await invoke("front", "many") == [1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["proxy", "call", "call_async"])
async def test_call_without_reply_times_out(front: Runner, invoke: Invoke, how: str) -> None:
    with pytest.raises(RemoteError, match=r"RpcTimeout back-service.never: no reply within 0.05 s"):
        await invoke("front", "times_out", how)


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("unknown service", UnknownService, 'no service "nobody" on this broker'),
        ("unknown method", MethodNotFound, "nothing"),
        ("wrong arguments", IncorrectSignature, "missing a required argument: 'a'"),
        ("remote", RemoteError, "LookupError gone"),
        ("async remote", RemoteError, "LookupError gone"),
        ("unserializable", UnserializableValueError, "object"),
    ],
)
async def test_error_of_a_call_is_raised_where_the_call_was_made(
    front: Runner, invoke: Invoke, what: str, error: type[Exception], text: str
) -> None:
    kind, message = await invoke("front", "catches", what)

    assert kind == error.__name__
    assert text in message


async def test_calls_of_a_client_raise_the_same_errors(serve: Serve, invoke: Invoke) -> None:
    await serve(Back)

    with pytest.raises(UnknownService) as unknown:
        await invoke("nobody", "method")
    assert unknown.value.service_name == "nobody"
    with pytest.raises(MethodNotFound, match="nothing"):
        await invoke("back-service", "nothing")
    with pytest.raises(IncorrectSignature):
        await invoke("back-service", "add", 1, 2, 3)
    with pytest.raises(RemoteError) as remote:
        await invoke("back-service", "fail", "gone")
    assert (remote.value.exc_type, remote.value.value) == ("LookupError", "gone")
    assert "raise LookupError(text)" in str(remote.value.remote_traceback)
    with pytest.raises(RpcTimeout) as late:
        await invoke("back-service", "never", timeout=0.05)
    assert (late.value.target, late.value.timeout) == ("back-service.never", 0.05)


class Lender:
    """A `def` worker that hands its blocking proxy to whoever asks."""

    name = "lender"
    back = RpcProxy("back-service", timeout=10)
    lent: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    def lend(self) -> None:
        self.lent.append(self.back)


async def test_blocking_proxy_on_the_loop_is_refused_in_words(serve: Serve, invoke: Invoke) -> None:
    await serve(Lender, Back)
    await invoke("lender", "lend")
    proxy = Lender.lent.pop()

    with pytest.raises(RuntimeStateError, match="would wait for itself"):
        proxy.add(1)
    with pytest.raises(RuntimeStateError, match="would wait for itself"):
        proxy.add.call_async(1).result()


async def test_blocking_proxy_serves_threads_that_a_worker_started(
    serve: Serve, invoke: Invoke
) -> None:
    await serve(Lender, Back)
    await invoke("lender", "lend")
    proxy = Lender.lent.pop()
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(proxy.add(n))) for n in range(5)]

    for thread in threads:
        thread.start()
    await asyncio.gather(*(asyncio.to_thread(thread.join, 5) for thread in threads))

    assert sorted(results) == [1, 2, 3, 4, 5]


def test_timeout_must_be_above_zero() -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        RpcProxy("back", timeout=0)


async def test_abandoned_call_async_leaves_no_error_behind(
    serve: Serve, invoke: Invoke, caplog: pytest.LogCaptureFixture
) -> None:
    class Careless:
        name = "careless"
        back = RpcProxy("back-service")

        @rpc
        async def fire(self) -> None:
            self.back.fail.call_async("nobody asks")

        @rpc
        def fire_threaded(self) -> None:
            self.back.fail.call_async("nobody asks")

    await serve(Careless, Back)

    await invoke("careless", "fire")
    await invoke("careless", "fire_threaded")
    await invoke("back-service", "add", 1)

    assert "never retrieved" not in caplog.text


async def test_caller_that_is_cancelled_forgets_its_call(serve: Serve, invoke: Invoke) -> None:
    runner = await serve(OnLoop, Back)
    listener = next(e for e in runner.containers[0].extensions if hasattr(e, "router"))
    call = asyncio.ensure_future(invoke("back-service", "never"))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert await invoke("back-service", "add", 1) == 2
    assert listener.statistics().pending == 0


class Sly:
    """Its methods are named like what a proxy might keep for itself."""

    name = "sly"

    @rpc
    async def service(self) -> str:
        return "service"

    @rpc
    async def timeout(self) -> str:
        return "timeout"

    @rpc
    async def loop(self) -> str:
        return "loop"

    @rpc
    async def priority(self) -> str:
        return "priority"

    @rpc
    async def serializer(self) -> str:
        return "serializer"

    @rpc
    async def caller(self) -> str:
        return "caller"

    @rpc
    async def options(self) -> str:
        return "options"

    @rpc
    async def blocking(self) -> str:
        return "blocking"

    @rpc
    async def _service(self) -> str:
        return "_service"


SLY = ["service", "timeout", "loop", "priority", "serializer", "caller", "options", "blocking"]


async def test_remote_methods_may_have_any_name(serve: Serve, invoke: Invoke, uri: str) -> None:
    class OfSly:
        name = "of-sly"
        sly = RpcProxy("sly", timeout=5, priority=1)

        @rpc
        async def on_loop(self, method: str) -> Any:
            return await getattr(self.sly, method)()

        @rpc
        def in_thread(self, method: str) -> Any:
            return getattr(self.sly, method)()

        @rpc
        def item(self, method: str) -> Any:
            return self.sly[method]()

    await serve(OfSly, Sly)

    for method in SLY:
        assert await invoke("of-sly", "on_loop", method) == method
        assert await invoke("of-sly", "in_thread", method) == method
    assert await invoke("of-sly", "item", "_service") == "_service"


async def test_options_of_proxy_and_of_method_are_merged(client: Client, link: Link) -> None:
    await link.declare(Queue("rpc-mute"), Exchange("nameko-rpc"))
    await link.declare(Binding("rpc-mute", "nameko-rpc", "mute.*"))
    mute = await client.service("mute", timeout=0.05, priority=3)

    with pytest.raises(RpcTimeout, match=r"0\.05 s"):
        await mute.any()
    with pytest.raises(RpcTimeout, match=r"0\.05 s"):
        await mute.any.options(priority=1)()
    with pytest.raises(RpcTimeout, match=r"0\.07 s"):
        await mute.any.options(priority=1).options(timeout=0.07)()
    with pytest.raises(ConfigError, match=r"mute\.add\.options\(\): unknown option timout; did"):
        mute.add.options(timout=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match='no serializer "xml"'):
        mute.add.options(serializer="xml")


async def test_unknown_serializer_of_a_declaration_stops_the_start(serve: Serve) -> None:
    class Wrong:
        name = "wrong"
        back = RpcProxy("back-service", serializer="xml")

    with pytest.raises(ConfigError, match="xml"):
        await serve(Wrong)


async def test_proxy_keeps_a_bound_of_methods(serve: Serve, client: Client) -> None:
    await serve(Back)
    back = await client.service("back-service")

    for n in range(1100):
        with contextlib.suppress(MethodNotFound):
            await back[f"m{n}"]()

    assert len(vars(back)) == 1000
    assert await back.add(1) == 2


async def test_call_that_the_broker_refuses_fails_at_once_and_no_other_does(
    serve: Serve, client: Client, uri: str
) -> None:
    await serve(Back)
    waiting = asyncio.ensure_future(client.call("back-service", "never"))
    assert await client.call("back-service", "add", 1) == 2

    broker_at(uri).delete_exchange("nameko-rpc")
    refused = await asyncio.gather(
        *(client.call("back-service", "add", n) for n in range(50)), return_exceptions=True
    )

    assert {type(error) for error in refused} == {TopologyError}
    assert not waiting.done()
    waiting.cancel()


NAMES = (
    *("service", "timeout", "loop", "priority", "caller", "options", "call_async", "serializer"),
    *("target", "method", "result", "router", "listener", "blocking", "awaited", "items"),
    *("headers", "compression", "call", "publish", "link", "statistics", "open", "aclose"),
)
"""What attributes of proxies and clients are called, or might be."""


def _named(name: str) -> Any:
    def method(self: Any) -> str:
        return f"called {name}"

    method.__name__ = name
    return rpc(method)


Named = type("Named", (), {"name": "named", **{name: _named(name) for name in NAMES}})


class NamesCaller:
    name = "names_caller"
    named = RpcProxy("named")

    @rpc
    async def on_loop(self, method: str) -> Any:
        return await getattr(self.named, method)()

    @rpc
    def in_thread(self, method: str) -> Any:
        return getattr(self.named, method)()


@pytest.mark.parametrize("way", ["on_loop", "in_thread", "client"])
async def test_remote_method_is_called_whatever_its_name(
    serve: Serve, client: Client, way: str
) -> None:
    await serve(Named, NamesCaller)

    for name in NAMES:
        if way == "client":
            result = await getattr(await client.service("named"), name)()
        else:
            result = await client.call("names_caller", way, name)
        assert result == f"called {name}"


@pytest.mark.parametrize("by", ["client", "proxy"])
@pytest.mark.parametrize("expire", [True, False])
async def test_requests_expire_at_the_broker_unless_told_otherwise(
    serve: Serve, uri: str, link: Link, by: str, expire: bool
) -> None:
    seen: list[Delivery] = []
    await link.declare(
        Queue("rpc-tap"), Exchange("nameko-rpc"), Binding("rpc-tap", "nameko-rpc", "tap.*")
    )
    await link.consume("rpc-tap", seen.extend, ConsumeOptions(no_ack=True))
    config = {"mycelia": {"requests_expire": expire}}

    class Asking:
        name = "asking"
        tap = RpcProxy("tap", timeout=2)

        @rpc
        async def ask(self) -> None:
            await self.tap.method()

    async with Client(uri, timeout=2, config=config) as client:
        if by == "proxy":
            await serve(Asking, config=config)
        with contextlib.suppress(RpcTimeout, RemoteError):
            await client.call(*(("tap", "method") if by == "client" else ("asking", "ask")))

    (request,) = seen
    assert "nameko.deadline_ms" in (request.properties.headers or {})
    if expire:
        assert 0 < int(request.properties.expiration or 0) <= 2000
    else:
        assert request.properties.expiration is None
