"""What services declare on a real broker, and how they go on when it is changed under them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mycelia import (
    BROADCAST,
    SINGLETON,
    Client,
    EventDispatcher,
    Queue,
    RpcProxy,
    Runner,
    consume,
    event_handler,
    rpc,
)
from mycelia.amqp import Link, Message, Properties, connect
from mycelia.broker.management_api import ManagementApi
from mycelia.errors import RpcTimeout, UnknownService, Unroutable
from mycelia.testing import eventually


class Service:
    name = "service"
    other = RpcProxy("other")
    emit = EventDispatcher()
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @event_handler("source", "happened")
    async def pool(self, payload: Any) -> None:
        self.got.append(payload)

    @event_handler("source", "happened", handler_type=SINGLETON)
    async def single(self, payload: Any) -> None: ...

    @event_handler("source", "happened", handler_type=BROADCAST, reliable_delivery=False)
    async def every(self, payload: Any) -> None: ...

    @event_handler("source", "happened", reliable_delivery=False)
    async def unreliable(self, payload: Any) -> None: ...

    @event_handler("source", "happened", queue_type="classic")
    async def classic(self, payload: Any) -> None: ...

    @consume("jobs")
    async def job(self, payload: Any) -> None:
        self.got.append(payload)


POOL = "evt-source-happened--service.pool"


def _declared_arguments(queue: dict[str, Any]) -> dict[str, Any]:
    """The arguments without the type where it is the default one: RabbitMQ 4 lists it though nobody declared it."""
    arguments = dict(queue["arguments"])
    if arguments.get("x-queue-type") == "classic":
        del arguments["x-queue-type"]
    return arguments


@pytest.fixture(autouse=True)
def _nothing_got() -> None:
    Service.got.clear()


@pytest.fixture
async def client(rabbit_uri: str) -> AsyncIterator[Client]:
    async with Client(rabbit_uri, timeout=20) as client:
        yield client


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(20)
    yield link
    await link.aclose()


@pytest.fixture
async def runner(rabbit_uri: str) -> AsyncIterator[Runner]:
    runner = Runner({"AMQP_URI": rabbit_uri, "mycelia": {"grace": 1}}, [Service])
    await runner.start(20)
    yield runner
    await runner.stop()


async def test_declarations_are_stock_nameko_s_but_for_quorum_event_queues(
    runner: Runner, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    queues = {q["name"]: q for q in await asyncio.to_thread(rabbit_api.queues, rabbit_vhost)}
    shape = {
        name: (q["durable"], q["exclusive"], q["auto_delete"], _declared_arguments(q))
        for name, q in queues.items()
    }

    (reply_queue,) = [name for name in shape if name.startswith("rpc.reply-service-")]
    (broadcast,) = [name for name in shape if "service.every-" in name]
    quorum = (True, False, False, {"x-queue-type": "quorum"})
    assert shape == {
        "rpc-service": (True, False, False, {}),
        reply_queue: (True, False, False, {"x-expires": 300000}),
        POOL: quorum,
        "evt-source-happened": quorum,
        broadcast: (False, True, True, {}),  # RabbitMQ keeps no exclusive queue over a restart
        "evt-source-happened--service.unreliable": (True, False, True, {}),
        "evt-source-happened--service.classic": (True, False, False, {}),
        "jobs": quorum,
    }
    exchanges = await asyncio.to_thread(rabbit_api.exchanges, rabbit_vhost)
    ours = {
        e["name"]: (e["type"], e["durable"], e["auto_delete"], e["arguments"])
        for e in exchanges
        if e["name"] and not e["name"].startswith("amq.")
    }
    topic = ("topic", True, False, {})
    assert ours == {"nameko-rpc": topic, "source.events": topic, "service.events": topic}
    bindings = await asyncio.to_thread(rabbit_api.bindings, rabbit_vhost)
    bound = {(b["source"], b["destination"], b["routing_key"]) for b in bindings if b["source"]}
    events = {name for name in shape if name.startswith("evt-")}
    assert bound == {
        ("nameko-rpc", "rpc-service", "service.*"),
        ("nameko-rpc", reply_queue, reply_queue.removeprefix("rpc.reply-service-")),
        *(("source.events", name, "happened") for name in events),
    }


@pytest.mark.parametrize("there_before", [False, True], ids=["fresh", "classic before"])
async def test_rpc_queue_is_a_quorum_queue_when_asked_for_and_an_existing_one_is_adopted(
    rabbit_uri: str,
    client: Client,
    link: Link,
    rabbit_api: ManagementApi,
    rabbit_vhost: str,
    there_before: bool,
) -> None:
    if there_before:
        await link.declare(Queue("rpc-service"))
    config = {"AMQP_URI": rabbit_uri, "mycelia": {"rpc_queue_type": "quorum", "grace": 1}}
    runner = Runner(config, [Service])
    await runner.start(20)
    try:
        assert await client.call("service", "echo", 1) == 1
        queue = await asyncio.to_thread(rabbit_api.queue, rabbit_vhost, "rpc-service")
    finally:
        await runner.stop()

    assert queue is not None
    assert queue["type"] == ("classic" if there_before else "quorum")


async def test_existing_classic_queue_is_adopted_as_it_is(
    rabbit_uri: str,
    link: Link,
    client: Client,
    rabbit_api: ManagementApi,
    rabbit_vhost: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await link.declare(Queue(POOL), Queue("rpc-service", arguments={"x-max-priority": 3}))

    async with Runner({"AMQP_URI": rabbit_uri}, [Service]):
        await client.publish("source", "happened", 1)
        await eventually(lambda: Service.got == [1], 30)
        assert await client.call("service", "echo", 2) == 2
        found = await asyncio.to_thread(rabbit_api.queue, rabbit_vhost, POOL)

    assert found is not None
    assert _declared_arguments(found) == {}
    assert POOL in caplog.text
    assert "rpc-service" in caplog.text


@pytest.mark.parametrize("queue", [POOL, "jobs", "rpc-service"])
async def test_queue_deleted_under_a_running_service_is_made_and_consumed_again(
    runner: Runner, link: Link, client: Client, queue: str
) -> None:
    await link.delete_queue(queue)

    async def works() -> bool:
        try:
            if queue == "rpc-service":
                return bool(await client.call("service", "echo", True, timeout=1))
            if queue == "jobs":
                properties = Properties("application/json", "utf-8")
                await link.publish(Message("", "jobs", b"1", properties, mandatory=True))
            else:
                await client.publish("source", "happened", 1)
        except (UnknownService, RpcTimeout, Unroutable):
            return False
        return bool(Service.got)

    await eventually(works, 20, interval=0.1)


async def test_connections_closed_by_an_operator_come_back(
    runner: Runner, client: Client, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    await client.call("service", "echo", 0)
    closed = 0

    async def close() -> bool:
        nonlocal closed
        closed += await asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost)
        return closed >= 2

    await eventually(close, 30)

    async def is_answered() -> bool:
        try:
            return await client.call("service", "echo", 1, timeout=2) == 1
        except RpcTimeout:  # a request on a connection that is being closed is lost with it
            return False

    await eventually(is_answered, 20)
    await client.publish("source", "happened", 2, mandatory=True)
    await eventually(lambda: Service.got == [2], 20)


async def test_unknown_service_is_told_at_once_and_a_dead_one_at_the_deadline(
    rabbit_uri: str, client: Client, link: Link
) -> None:
    runner = Runner({"AMQP_URI": rabbit_uri}, [Service])
    await runner.start(20)
    await runner.stop()

    async with asyncio.timeout(20):
        with pytest.raises(UnknownService, match='no service "nobody"'):
            await client.call("nobody", "method", timeout=60)
    with pytest.raises(RpcTimeout, match=r"service\.echo: no reply within 0.3 s"):
        await client.call("service", "echo", 1, timeout=0.3)

    async def dropped() -> bool:
        return await link.message_count("rpc-service") == 0

    await eventually(dropped, 30)  # by the broker: nobody consumes the queue


async def test_large_and_many_messages_go_through(runner: Runner, client: Client) -> None:
    large = "x" * 3_000_000  # several frames of 128 KiB

    assert await client.call("service", "echo", large) == large
    results = await asyncio.gather(*(client.call("service", "echo", n) for n in range(1000)))
    assert results == list(range(1000))
