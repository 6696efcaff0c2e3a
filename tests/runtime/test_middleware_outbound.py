"""Whatever leaves passes the middleware: calls, events and messages, of services and of clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    Binding,
    BlockingClient,
    Call,
    CallOptions,
    Client,
    DependencyProvider,
    Direction,
    EventDispatcher,
    Exchange,
    Middleware,
    Next,
    Outcome,
    Publisher,
    PublishOptions,
    Queue,
    RpcProxy,
    Target,
    consume,
    event_handler,
    http,
    rpc,
    timer,
)
from mycelia.amqp import ConsumeOptions, Delivery, Link
from mycelia.errors import ConfigError, RemoteError, RpcTimeout, Unroutable
from mycelia.testing import eventually

Counts = Counter[tuple[str, str, str]]


class Metrics(DependencyProvider):
    """Counts calls of its service, in all directions."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def middleware(self, direction: Direction, target: Target) -> Middleware:
        async def count(call: Call, next: Next) -> Outcome:
            self.counts[direction.value, call.kind.value, call.target.name] += 1
            return await next(call)

        return count


def everything(counts: Counts, attribute: str) -> type:
    """A service that does all there is, with a counting provider under the name `attribute`."""

    class Everything:
        name = "everything"
        myself = RpcProxy("everything")
        emit = EventDispatcher()
        publish = Publisher(queue=Queue("jobs"))

        @rpc
        async def work(self) -> None:
            await self.myself.rest()
            await self.emit("worked", 1)
            await self.publish(1)

        @rpc
        def work_in_thread(self) -> None:
            self.myself.rest()
            self.emit("worked", 1)
            self.publish(1)

        @rpc
        def rest(self) -> None: ...

        @event_handler("everything", "worked")
        async def worked(self, payload: int) -> None: ...

        @consume(Queue("jobs"))
        async def job(self, payload: int) -> None: ...

        @timer(600, eager=True)
        async def tick(self) -> None: ...

        @http("GET", "/page")
        async def page(self, request: Any) -> str:
            return "page"

    setattr(Everything, attribute, Metrics(counts))
    return Everything


@pytest.mark.parametrize("attribute", ["a_metrics", "z_metrics"])
@pytest.mark.parametrize("method", ["work", "work_in_thread"])
async def test_provider_of_any_name_sees_all_directions(
    serve: Serve, invoke: Invoke, method: str, attribute: str
) -> None:
    counts: Counts = Counter()
    runner = await serve(
        everything(counts, attribute), config={"WEB_SERVER_ADDRESS": "127.0.0.1:0"}
    )

    await invoke("everything", method)
    await _get(runner.containers[0], "/page")

    wanted = {
        ("inbound", "rpc", f"everything.{method}"): 1,
        ("inbound", "rpc", "everything.rest"): 1,
        ("inbound", "event", "everything.worked"): 1,
        ("inbound", "message", "everything.job"): 1,
        ("inbound", "timer", "everything.tick"): 1,
        ("inbound", "http", "everything.page"): 1,
        ("outbound", "rpc", "everything.rest"): 1,
        ("outbound", "event", "everything.worked"): 1,
        ("outbound", "message", ".jobs"): 1,
    }
    await eventually(lambda: counts == wanted)


async def _get(container: Any, path: str) -> None:
    (address,) = {e.address for e in container.entrypoints if hasattr(e, "address")}
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert b"200 OK" in await reader.read()
    writer.close()


# --- events and messages ----------------------------------------------------------------------------


class Source:
    name = "source"
    emit = EventDispatcher()
    publish = Publisher(queue=Queue("tap"))

    @rpc
    async def tell(self, how: str, *args: Any, **options: Any) -> None:
        await getattr(self, how)(*args, **options)

    @rpc
    def tell_in_thread(self, how: str, *args: Any, **options: Any) -> None:
        getattr(self, how)(*args, **options)


class Tap:
    """A queue that gets everything: events of `source` and of `elsewhere`, and messages."""

    def __init__(self) -> None:
        self.seen: list[Delivery] = []

    def headers(self) -> list[dict[str, Any]]:
        return [delivery.properties.headers or {} for delivery in self.seen]

    def ids(self) -> list[str | None]:
        return [delivery.properties.message_id for delivery in self.seen]


@pytest.fixture
async def tap(link: Link) -> Tap:
    tap = Tap()
    exchanges = [Exchange("source.events"), Exchange("elsewhere.events")]
    bindings = [Binding("tap", exchange.name, "#") for exchange in exchanges]
    await link.declare(Queue("tap"), *exchanges, *bindings)
    await link.consume("tap", tap.seen.extend, ConsumeOptions(no_ack=True))
    return tap


WAYS = [
    ("tell", "emit", ("happened", {"n": 1})),
    ("tell", "publish", ({"n": 1},)),
    ("tell_in_thread", "emit", ("happened", {"n": 1})),
    ("tell_in_thread", "publish", ({"n": 1},)),
]


@pytest.mark.parametrize(("method", "how", "args"), WAYS)
async def test_what_middleware_changes_is_what_is_published(
    serve: Serve, invoke: Invoke, tap: Tap, method: str, how: str, args: tuple[Any, ...]
) -> None:
    async def changes(call: Call, next: Next) -> Outcome:
        if call.kind.value == "rpc":
            return await next(call)
        options = call.options
        assert isinstance(options, PublishOptions)
        call.args = ({**call.args[0], "stamped": True},)
        call.context["tenant"] = "blue"
        call.context.pop("user_id")
        call.headers = {**(call.headers or {}), "region": "north"}
        call.options = PublishOptions(priority=4, message_id=options.message_id)
        return await next(call)

    await serve(Source, outbound=(changes,))

    options = {"headers": {"a": 1, "user_id": 7}, "priority": 2}
    await invoke("source", method, how, *args, **options)

    await eventually(lambda: tap.seen)
    (delivery,) = tap.seen
    (headers,) = tap.headers()
    assert delivery.body == b'{"n":1,"stamped":true}'
    assert delivery.properties.priority == 4
    assert (headers["a"], headers["region"], headers["nameko.tenant"]) == (1, "north", "blue")
    assert "user_id" not in headers


@pytest.mark.parametrize(("method", "how", "args"), WAYS)
async def test_middleware_may_answer_publish_twice_raise_or_redirect(
    serve: Serve, invoke: Invoke, tap: Tap, method: str, how: str, args: tuple[Any, ...]
) -> None:
    async def answers(call: Call, next: Next) -> Outcome:
        return Outcome()

    async def twice(call: Call, next: Next) -> Outcome:
        await next(call)
        return await next(call)

    async def raises(call: Call, next: Next) -> Outcome:
        raise LookupError("in the middle")

    async def fails(call: Call, next: Next) -> Outcome:
        return Outcome(error=LookupError("as an outcome"))

    async def redirects(call: Call, next: Next) -> Outcome:
        call.target = Target(Direction.OUTBOUND, call.kind, "elsewhere", "moved")
        if how == "publish":
            call.target = Target(Direction.OUTBOUND, call.kind, "elsewhere.events", "moved")
        return await next(call)

    chosen: list[Middleware] = [answers]

    async def switch(call: Call, next: Next) -> Outcome:
        return await (chosen[0](call, next) if call.kind.value != "rpc" else next(call))

    await serve(Source, outbound=(switch,))

    await invoke("source", method, how, *args)  # answered, so nothing leaves
    for layer, text in ((raises, "in the middle"), (fails, "as an outcome")):
        chosen[:] = [layer]
        with pytest.raises(RemoteError, match=f"LookupError {text}"):
            await invoke("source", method, how, *args)
    chosen[:] = [twice]
    await invoke("source", method, how, *args)
    await eventually(lambda: len(tap.seen) == 2)
    first, second = tap.ids()
    assert first
    assert first == second  # one publishing is one message, however often it is sent
    chosen[:] = [redirects]
    await invoke("source", method, how, *args)
    await eventually(lambda: len(tap.seen) == 3)
    assert (tap.seen[2].exchange, tap.seen[2].routing_key) == ("elsewhere.events", "moved")


async def test_middleware_sees_the_broker_s_refusal_and_may_swallow_it(
    serve: Serve, invoke: Invoke
) -> None:
    seen: list[BaseException | None] = []

    async def swallows(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append(outcome.error)
        return Outcome() if call.args[0] == "swallow" else outcome

    await serve(Source, outbound=(swallows,))

    await invoke("source", "tell", "emit", "unheard", "swallow", mandatory=True)
    with pytest.raises(RemoteError, match="Unroutable"):
        await invoke("source", "tell", "emit", "unheard", "tell", mandatory=True)

    assert [type(error) for error in seen] == [Unroutable, Unroutable]


async def test_sources_are_asked_about_events_by_service_and_about_messages_by_exchange(
    serve: Serve, invoke: Invoke
) -> None:
    asked: list[str] = []
    named: list[str] = []

    class Source_(Source):
        metrics: Any = None

    class Asked(DependencyProvider):
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            if direction is Direction.INBOUND:
                return None
            asked.append(f"{target.kind.value} {target}")

            async def note(call: Call, next: Next) -> Outcome:
                named.append(call.target.name)
                return await next(call)

            return note

    Source_.metrics = Asked()
    await serve(Source_)

    for n in range(3):
        for method in ("tell", "tell_in_thread"):
            await invoke("source", method, "emit", f"type{n}")
            await invoke("source", method, "publish", n, routing_key=f"key{n}")

    assert sorted(asked) == ["event source.*", "message .*"]
    wanted = [f"source.type{n}" for n in range(3)] + [f".key{n}" for n in range(3)]
    assert sorted(set(named)) == sorted(wanted)


# --- calls ------------------------------------------------------------------------------------------


class Back:
    name = "back"

    @rpc
    async def echo(self, value: Any) -> Any:
        return value


@pytest.fixture
async def mute(link: Link) -> str:
    """The name of a service that takes requests and never answers."""
    await link.declare(Queue("rpc-mute"), Exchange("nameko-rpc"))
    await link.declare(Binding("rpc-mute", "nameko-rpc", "mute.*"))
    return "mute"


async def test_changed_deadline_options_and_target_of_a_call_have_effect(
    serve: Serve, uri: str, mute: str
) -> None:
    async def hurries(call: Call, next: Next) -> Outcome:
        match call.kwargs.pop("how", None):
            case "deadline":
                call.deadline = time.monotonic() + 0.05
            case "options":
                call.options = CallOptions(timeout=0.05)
            case "target":
                call.target = Target(Direction.OUTBOUND, call.kind, "back", "echo")
                call.args = ["redirected"]
        return await next(call)

    await serve(Back)
    async with Client(uri, timeout=20, middleware=[hurries]) as client:
        for how in ("deadline", "options"):
            started = time.monotonic()
            with pytest.raises(RpcTimeout):
                await client.call(mute, "method", how=how)
            assert time.monotonic() - started < 15
        assert await client.call("nobody", "method", how="target") == "redirected"


async def test_each_try_of_a_retry_has_its_own_time_within_the_deadline(
    uri: str, mute: str
) -> None:
    tries: list[float] = []

    async def retries(call: Call, next: Next) -> Outcome:
        call.options = CallOptions(timeout=0.05)
        while True:
            outcome = await next(call)
            remaining = call.remaining()
            assert remaining is not None
            tries.append(remaining)
            if remaining <= 0.01:
                return outcome

    async with Client(uri, middleware=[retries]) as client:
        with pytest.raises(RpcTimeout):
            await client.call(mute, "method", timeout=1)

    assert 3 <= len(tries) <= 30


# --- clients ----------------------------------------------------------------------------------------


class Watching:
    """A source of middleware, asked about targets."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        self.log.append(f"asked {target.kind.value} {target}")

        async def note(call: Call, next: Next) -> Outcome:
            self.log.append(f"saw {call.kind.value} {call.target}")
            return await next(call)

        return note


async def test_client_takes_sources_and_plain_middleware(serve: Serve, uri: str) -> None:
    log: list[str] = []

    async def plain(call: Call, next: Next) -> Outcome:
        log.append(f"plain {call.target}")
        return await next(call)

    await serve(Back)
    async with Client(uri, middleware=[Watching(log), plain]) as client:
        for n in (1, 2):
            assert await client.call("back", "echo", n) == n
            assert await (await client.service("back")).echo(n) == n
            await client.publish("tower", f"closed{n}", n)

    calls = ["asked rpc back.echo", *["saw rpc back.echo", "plain back.echo"] * 2]
    events = ["saw event tower.closed1", "plain tower.closed1"]
    assert log[:8] == [*calls, "asked event tower.*", *events]
    assert [line for line in log if line.startswith("asked")] == [log[0], log[5]]


async def test_blocking_client_takes_middleware_too(serve: Serve, uri: str) -> None:
    log: list[str] = []
    await serve(Back)

    def use() -> Any:
        with BlockingClient(uri, middleware=[Watching(log)]) as client:
            client.publish("tower", "closed", 1)
            return client.call("back", "echo", 1)

    assert await asyncio.to_thread(use) == 1
    assert [line for line in log if line.startswith("saw")] == [
        "saw event tower.closed",
        "saw rpc back.echo",
    ]


@pytest.mark.parametrize("given", [len, Watching, "shop.timing"])
def test_client_says_what_is_no_middleware(given: Any, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"Client\(middleware=…\) is .*; expected an `async def"):
        Client(uri, middleware=[given])


async def test_client_that_calls_and_publishes_under_many_names_keeps_a_bound_of_them(
    serve: Serve, uri: str
) -> None:
    log: list[str] = []
    await serve(Back)
    async with Client(uri, middleware=[Watching(log)]) as client:
        proxy = await client.service("back")
        for n in range(1200):
            call = proxy[f"m{n}"](n)
            call.close()
            client.call("back", f"m{n}", n).close()
        assert await proxy.echo("still") == "still"

    assert len([line for line in log if line.startswith("asked")]) <= 1001
