"""Somebody deletes what a running service needs: it is there again within seconds, without a reconnect, and said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
from tests.link.inbox import Inbox

from mycelia import Client, Runner, event_handler, rpc
from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    LinkOptions,
    Message,
    Properties,
    Queue,
    RabbitLink,
)
from mycelia.broker.management_api import ManagementApi
from mycelia.errors import LinkError, Unroutable
from mycelia.testing import eventually

SOON = LinkOptions(topology_check=0.3)
HINTS_ONLY = LinkOptions(topology_check=0)

PARTS = (
    Exchange("x"),
    Queue("work", arguments={"x-queue-type": "quorum"}),
    Binding("work", "x", "a.#"),
    Binding("work", "x", "b.#"),
)

Delete = Callable[..., Awaitable[None]]


@pytest.fixture
def delete(rabbit_api: ManagementApi, rabbit_vhost: str) -> Delete:
    """Deletes an exchange, a queue, or a binding by key, as an operator does."""

    async def delete_it(*path: str) -> None:
        kind, *names = path
        places = {
            "exchange": ("exchanges", rabbit_vhost, *names),
            "queue": ("queues", rabbit_vhost, *names),
            "binding": ("bindings", rabbit_vhost, "e", names[0], "q", *names[1:]),
        }
        quoted = "/".join(quote(part, safe="") for part in places[kind])
        await asyncio.to_thread(rabbit_api.request, "DELETE", f"/api/{quoted}")

    return delete_it


LinkMaker = Callable[[LinkOptions], Awaitable[RabbitLink]]


@pytest.fixture
async def make_link(rabbit_uri: str) -> AsyncIterator[LinkMaker]:
    links: list[RabbitLink] = []

    async def make(options: LinkOptions) -> RabbitLink:
        link = RabbitLink(rabbit_uri, options)
        links.append(link)
        await link.open(timeout=15)
        return link

    yield make
    for link in links:
        await link.aclose()


def routed(link: RabbitLink, exchange: str, key: str) -> Callable[[], Awaitable[bool]]:
    """Whether a message arrives anywhere; looked at by another link, which declares nothing."""

    async def is_routed() -> bool:
        try:
            await link.publish(Message(exchange, key, b"", Properties(), mandatory=True), timeout=2)
        except LinkError:
            return False
        return True

    return is_routed


def said(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [one for one in caplog.messages if one.startswith(name)]


@pytest.mark.parametrize(
    "what",
    [("binding", "x", "work", "a.#"), ("exchange", "x"), ("queue", "work")],
    ids=lambda what: what[0],
)
@pytest.mark.parametrize("consumes", [True, False])
async def test_what_was_deleted_is_there_again(
    make_link: LinkMaker,
    delete: Delete,
    caplog: pytest.LogCaptureFixture,
    what: tuple[str, ...],
    consumes: bool,
) -> None:
    link, stranger = await make_link(SOON), await make_link(HINTS_ONLY)
    inbox = Inbox(acks=True)
    await link.declare(*PARTS)
    if consumes:
        await link.consume("work", inbox)
    await eventually(routed(stranger, "x", "a.1"), 30)

    await delete(*what)

    await eventually(routed(stranger, "x", "a.1"), 30, what="routed again")
    await eventually(routed(stranger, "x", "b.1"), 30, what="routed again")
    if consumes:
        await link.publish(Message("x", "b.2", b"again", Properties(), mandatory=True))
        await inbox.wait_for(b"again", 10)
    assert link.statistics().reconnects == 0
    assert len(said(caplog, "topology_repaired")) <= 1
    assert said(caplog, "redeclare_failed") == []


@pytest.mark.timeout(90)
async def test_all_of_a_topology_is_there_again(
    make_link: LinkMaker, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    """Many parts gone at once, exclusive ones among them, are back after one look."""
    link, stranger = await make_link(SOON), await make_link(HINTS_ONLY)
    names = [f"q{number}" for number in range(12)]
    inboxes = {name: Inbox(acks=True) for name in names}
    for number, name in enumerate(names):
        exclusive = number % 3 == 0
        await link.declare(
            Exchange(f"x-{name}", "fanout"),
            Queue(name, durable=not exclusive, exclusive=exclusive),
            Binding(name, f"x-{name}", ""),
        )
        await link.consume(name, inboxes[name])

    await asyncio.gather(*(delete("exchange", f"x-{name}") for name in names))

    for name in names:
        # The first waits for all of them: three dozen declarations, at a broker that may be busy.
        await eventually(routed(stranger, f"x-{name}", ""), 30, what=f"{name} bound again")
        await inboxes[name].wait(1)
    assert link.statistics().reconnects == 0


async def test_publishing_that_comes_back_is_hint_enough(
    make_link: LinkMaker, delete: Delete
) -> None:
    link = await make_link(HINTS_ONLY)
    await link.declare(*PARTS)
    await delete("binding", "x", "work", "a.#")

    with pytest.raises(Unroutable):
        await link.publish(Message("x", "a.1", b"", Properties(), mandatory=True))
    await eventually(routed(link, "x", "a.1"), 30, what="bound again")

    await delete("binding", "x", "work", "a.#")
    returned: list[Any] = []
    link.on_return(returned.append)
    link.publish_nowait(Message("x", "a.2", b"", Properties(), mandatory=True))
    await eventually(lambda: bool(returned), 30)

    async def is_bound() -> bool:
        before = len(returned)
        link.publish_nowait(Message("x", "a.3", b"", Properties(), mandatory=True))
        await link.message_count("work")
        await asyncio.sleep(0.05)  # a return would have come with or before the count
        return len(returned) == before

    await eventually(is_bound, 30, what="bound again")


async def test_forgotten_parts_stay_gone(
    make_link: LinkMaker, delete: Delete, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    link = await make_link(SOON)
    await link.declare(*PARTS, Queue("marker"))
    link.forget(*PARTS)

    await delete("queue", "work")
    await delete("exchange", "x")
    await delete("queue", "marker")

    def names() -> set[str]:
        return {one["name"] for one in rabbit_api.queues(rabbit_vhost)}

    async def marker_is_back() -> bool:
        return "marker" in await asyncio.to_thread(names)

    await eventually(marker_is_back, 30)
    assert await asyncio.to_thread(names) == {"marker"}
    exchanges = {one["name"] for one in await asyncio.to_thread(rabbit_api.exchanges, rabbit_vhost)}
    assert "x" not in exchanges


async def test_what_goes_by_itself_is_not_kept_alive(
    make_link: LinkMaker, delete: Delete, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    """Auto-delete and expiring queues that nobody here consumes, and the auto-delete exchange of a publisher."""
    link = await make_link(SOON)
    await link.declare(
        Exchange("brief", auto_delete=True),
        Exchange("used", auto_delete=True),
        Queue("last", auto_delete=True),
        Binding("last", "brief", "#"),
        Queue("timed", arguments={"x-expires": 700}),
        Queue("read", arguments={"x-expires": 700}),
        Binding("read", "used", "#"),
        Queue("marker"),
    )
    await link.consume("read", Inbox())
    consumer = await link.consume("last", Inbox())
    await consumer.aclose()  # and with it, its queue and the exchange

    def left() -> tuple[set[str], set[str]]:
        queues = {one["name"] for one in rabbit_api.queues(rabbit_vhost)}
        exchanges = {one["name"] for one in rabbit_api.exchanges(rabbit_vhost)}
        return queues, exchanges & {"brief", "used"}

    async def is_gone() -> bool:
        return await asyncio.to_thread(left) == ({"read", "marker"}, {"used"})

    await eventually(is_gone, 30, what="gone by themselves")
    await delete("queue", "marker")

    async def has_looked() -> bool:
        return "marker" in (await asyncio.to_thread(left))[0]

    await eventually(has_looked, 30)
    assert await asyncio.to_thread(left) == ({"read", "marker"}, {"used"})


async def test_what_cannot_be_declared_is_said_once_and_holds_up_nothing_else(
    make_link: LinkMaker, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    link, stranger = await make_link(SOON), await make_link(HINTS_ONLY)
    inbox = Inbox(acks=True)
    await link.declare(*PARTS, Exchange("other"), Binding("work", "other", "#"))
    await link.consume("work", inbox)
    await delete("exchange", "other")
    await stranger.declare(Exchange("other", "fanout"))  # now of another type
    stranger.forget(Exchange("other", "fanout"))

    for _ in range(4):
        await delete("exchange", "x")
        await eventually(routed(stranger, "x", "a.1"), 30, what="bound again")

    assert len(said(caplog, "redeclare_failed")) == 1


async def test_adopted_queue_is_looked_after_without_a_word(
    make_link: LinkMaker, caplog: pytest.LogCaptureFixture, delete: Delete
) -> None:
    stranger = await make_link(HINTS_ONLY)
    await stranger.declare(Queue("work", arguments={"x-message-ttl": 60_000}))
    link = await make_link(SOON)
    await link.declare(Queue("work"), Queue("marker"))

    for _ in range(2):
        await delete("queue", "marker")
        await eventually(routed(stranger, "", "marker"), 30)

    assert len(said(caplog, "declared_differently")) == 1
    assert said(caplog, "redeclare_failed") == []


async def test_many_cancelled_consumers_share_one_look(
    make_link: LinkMaker, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    link = await make_link(HINTS_ONLY)
    inboxes = [Inbox(acks=True) for _ in range(20)]
    await link.declare(*PARTS)
    for inbox in inboxes:
        await link.consume("work", inbox, ConsumeOptions(prefetch=1))

    await delete("queue", "work")

    async def all_are_back() -> bool:
        return await link.consumer_count("work") == 20

    async def is_whole() -> bool:
        try:
            return await all_are_back()
        except LinkError:
            return False

    await eventually(is_whole, 20, what="twenty consumers again")
    await eventually(routed(link, "x", "a.1"), 30)
    assert said(caplog, "redeclare_failed") == []


# --- services, with the defaults ---


class Watched:
    name = "watched"
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @event_handler("source", "happened")
    async def on_happened(self, payload: Any) -> None:
        self.got.append(payload)


@pytest.fixture
async def client(rabbit_uri: str) -> AsyncIterator[Client]:
    runner = Runner({"AMQP_URI": rabbit_uri, "mycelia": {"grace": 1}}, [Watched])
    await runner.start(20)
    async with Client(rabbit_uri, timeout=2) as client:
        yield client
    await runner.stop()


async def test_events_arrive_again_after_their_binding_was_deleted(
    client: Client, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    """Published without `mandatory`, so that nobody is told of the loss."""
    queue = "evt-source-happened--watched.on_happened"
    Watched.got.clear()
    await client.publish("source", "happened", "before")
    await eventually(lambda: "before" in Watched.got, 30)

    await delete("binding", "source.events", queue, "happened")

    async def arrives() -> bool:
        await client.publish("source", "happened", "again")
        return "again" in Watched.got

    await eventually(arrives, 30, interval=0.2)
    assert len(said(caplog, "topology_repaired")) <= 1
    assert said(caplog, "consumer_lost") == []
    assert said(caplog, "connection_lost") == []


async def test_rpc_works_again_after_its_exchange_was_deleted(
    client: Client, delete: Delete, caplog: pytest.LogCaptureFixture
) -> None:
    assert await client.call("watched", "echo", 1) == 1

    await delete("exchange", "nameko-rpc")

    async def answers() -> bool:
        try:
            return bool(await client.call("watched", "echo", 2) == 2)
        except Exception:  # noqa: BLE001  a timeout, or nobody there
            return False

    await eventually(answers, 20)
    assert said(caplog, "connection_lost") == []


async def test_rpc_works_again_after_its_queue_was_deleted(client: Client, delete: Delete) -> None:
    await delete("queue", "rpc-watched")

    async def answers() -> bool:
        try:
            return bool(await client.call("watched", "echo", 2) == 2)
        except Exception:  # noqa: BLE001  nobody there
            return False

    await eventually(answers, 20)
