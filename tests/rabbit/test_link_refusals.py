"""Publishings that RabbitMQ refuses by closing the channel or the connection: the culprit is told, its neighbours go on."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from tests.link.inbox import Inbox

from mycelia import Client, Runner, rpc
from mycelia.amqp import Binding, Exchange, Message, Properties, Queue, RabbitLink
from mycelia.broker.management_api import ManagementApi
from mycelia.broker.node import PrivateNode
from mycelia.errors import (
    LinkError,
    MessageTooLarge,
    ProtocolError,
    PublishRejected,
    TopologyError,
)
from mycelia.testing import eventually

LIMIT = 65_536


class Refusals(list[tuple[Message, LinkError]]):
    """What `on_refused` was told."""

    def __init__(self, link: RabbitLink) -> None:
        super().__init__()
        link.on_refused(lambda message, error: self.append((message, error)))


@asynccontextmanager
async def opened(uri: str) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(uri)
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    yield link
    await link.aclose()


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    async with opened(rabbit_uri) as link:
        yield link


def limit(node: PrivateNode, size: int) -> None:
    """What the broker takes at most. It starts an Erlang, which is most of what a test takes here."""
    expression = f"application:set_env(rabbit, max_message_size, {size})"
    expression += f", persistent_term:put(max_message_size, {size})."  # RabbitMQ 4 looks here
    node.ctl("eval", expression)


@pytest.fixture(scope="module")
def limited() -> Iterator[list[PrivateNode]]:
    """The broker that has its limit from a test before."""
    nodes: list[PrivateNode] = []
    yield nodes
    for node in nodes:
        limit(node, 134_217_728)


@pytest.fixture
async def limited_uri(own_rabbit_node: PrivateNode, limited: list[PrivateNode]) -> str:
    """Of a broker that takes 64 KiB at most, and that no test here stops."""
    if not limited:
        await asyncio.to_thread(limit, own_rabbit_node, LIMIT)
        limited.append(own_rabbit_node)
    return own_rabbit_node.uri()


@pytest.fixture
async def limited_link(limited_uri: str) -> AsyncIterator[RabbitLink]:
    async with opened(limited_uri) as link:
        yield link


class Echo:
    name = "echo"

    @rpc
    async def length(self, value: str) -> int:
        return len(value)


async def _arrived(link: RabbitLink, count: int) -> list[bytes]:
    """The bodies in the queue: exactly so many, sorted."""
    inbox = Inbox(acks=True)
    consumer = await link.consume("q", inbox)
    await inbox.wait(count)
    await consumer.aclose()
    assert await link.message_count("q") == 0
    return sorted(inbox.bodies)


def _numbered(count: int) -> list[bytes]:
    return sorted(b"%d" % number for number in range(count))


# --- too large -----------------------------------------------------------------------------------


async def test_too_large_publishing_fails_at_once_with_the_sizes_and_its_neighbours_do_not(
    limited_link: RabbitLink,
) -> None:
    async with asyncio.timeout(10):
        results = await asyncio.gather(
            *(
                limited_link.publish(
                    Message("", "q", bytes(LIMIT + 1) if number == 50 else b"", Properties())
                )
                for number in range(100)
            ),
            return_exceptions=True,
        )

    error = results.pop(50)
    assert isinstance(error, MessageTooLarge)
    assert (error.size_bytes, error.max_bytes) == (LIMIT + 1, LIMIT)
    assert str(LIMIT + 1) in str(error)
    assert not error.retryable
    assert results == [None] * 99
    assert limited_link.statistics().reconnects == 0


async def test_too_large_unconfirmed_publishing_costs_no_neighbour_and_is_told(
    limited_link: RabbitLink,
) -> None:
    """Three of them among a hundred; each of the others arrives once."""
    refusals = Refusals(limited_link)
    for number in range(100):
        limited_link.publish_nowait(Message("", "q", b"%d" % number, Properties()))
        if number in (20, 21, 70):
            limited_link.publish_nowait(Message("", "q", bytes(LIMIT + number), Properties()))

    await eventually(lambda: len(refusals) == 3, 30, what="all three are told")
    assert await _arrived(limited_link, 100) == _numbered(100)
    sizes = [(e.size_bytes, e.max_bytes) for _, e in refusals if isinstance(e, MessageTooLarge)]
    assert sizes == [(LIMIT + number, LIMIT) for number in (20, 21, 70)]
    assert limited_link.statistics().reconnects == 0


async def test_size_once_refused_is_not_sent_again(limited_link: RabbitLink) -> None:
    with pytest.raises(MessageTooLarge):
        await limited_link.publish(Message("", "q", bytes(LIMIT + 1), Properties()))

    with pytest.raises(MessageTooLarge):
        limited_link.publish_nowait(Message("", "q", bytes(LIMIT + 2), Properties()))
    with pytest.raises(MessageTooLarge):
        await limited_link.publish(Message("", "q", bytes(LIMIT + 2), Properties()))
    await limited_link.publish(Message("", "q", bytes(LIMIT), Properties()))


async def test_request_over_the_broker_s_limit_fails_at_once_and_its_neighbours_are_answered(
    limited_uri: str,
) -> None:
    async with Runner({"AMQP_URI": limited_uri}, [Echo]), Client(limited_uri, timeout=20) as client:
        started = time.monotonic()

        async def call(n: int) -> Any:
            return await client.call("echo", "length", "x" * (2 * LIMIT if n % 10 == 5 else n))

        results = await asyncio.gather(*(call(n) for n in range(100)), return_exceptions=True)
        took = time.monotonic() - started

    assert took < 10
    for n, result in enumerate(results):
        if n % 10 != 5:
            assert result == n
            continue
        assert isinstance(result, MessageTooLarge)
        assert result.max_bytes == LIMIT
        assert result.size_bytes > 2 * LIMIT


# --- refusals that close the channel ---------------------------------------------------------------


async def test_wrong_exchanges_cost_no_neighbour_without_confirms(link: RabbitLink) -> None:
    refusals = Refusals(link)
    for number in range(400):
        link.publish_nowait(Message("", "q", b"%d" % number, Properties()))
        if number % 20 == 7:
            link.publish_nowait(Message(f"missing-{number}", "q", b"", Properties()))
        if number % 50 == 0:
            await asyncio.sleep(0)

    await eventually(lambda: len(refusals) == 20, 30, what="all twenty are told")
    assert await _arrived(link, 400) == _numbered(400)
    assert [message.exchange for message, _ in refusals] == [
        f"missing-{number}" for number in range(7, 400, 20)
    ]
    assert all(isinstance(error, TopologyError) for _, error in refusals)
    assert link.statistics().reconnects == 0


async def test_wrong_exchanges_cost_no_neighbour_with_confirms(link: RabbitLink) -> None:
    results = await asyncio.gather(
        *(
            link.publish(
                Message("missing" if number % 20 == 7 else "", "q", b"%d" % number, Properties())
            )
            for number in range(400)
        ),
        return_exceptions=True,
    )

    wrong = [index for index, one in enumerate(results) if isinstance(one, TopologyError)]
    assert wrong == list(range(7, 400, 20))
    assert [one for one in results if one is not None] == [results[index] for index in wrong]


@pytest.mark.parametrize(
    "properties", [Properties(expiration="soon"), Properties(user_id="somebody-else")]
)
async def test_property_that_the_broker_refuses_is_told_and_costs_no_neighbour(
    link: RabbitLink, properties: Properties
) -> None:
    refusals = Refusals(link)
    wrong = Message("", "q", b"wrong", properties)

    for number in range(50):
        link.publish_nowait(Message("", "q", b"%d" % number, Properties()))
        if number == 25:
            link.publish_nowait(wrong)

    await eventually(lambda: refusals, 30)
    assert await _arrived(link, 50) == _numbered(50)
    [(message, error)] = refusals
    assert message is wrong
    assert isinstance(error, PublishRejected)


async def test_deleted_exchange_is_declared_again_and_loses_nothing(
    link: RabbitLink, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    """As when an operator deletes `nameko-rpc`: the first publishing that meets its absence mends it."""
    await link.declare(Exchange("ours", type="topic"), Binding("q", "ours", "#"))
    refusals = Refusals(link)

    async def delete() -> None:
        path = f"/api/exchanges/{quote(rabbit_vhost, safe='')}/ours"
        await asyncio.to_thread(rabbit_api.request, "DELETE", path)

    for publish_first in (False, True):
        await delete()
        if publish_first:
            await link.publish(Message("ours", "k", b"first", Properties(), mandatory=True))
        for number in range(50):
            await link.ready(timeout=5)
            link.publish_nowait(Message("ours", "k", b"%d" % number, Properties()))
        expected = _numbered(50) + [b"first"] * publish_first
        assert await _arrived(link, len(expected)) == expected

    assert refusals == []
    assert link.statistics().reconnects == 0


async def test_exchange_deleted_under_many_publishers_is_declared_again(
    link: RabbitLink, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    await link.declare(Exchange("ours", type="topic"), Binding("q", "ours", "#"))
    path = f"/api/exchanges/{quote(rabbit_vhost, safe='')}/ours"
    await asyncio.to_thread(rabbit_api.request, "DELETE", path)

    async with asyncio.timeout(10):
        await asyncio.gather(
            *(link.publish(Message("ours", "k", b"%d" % n, Properties())) for n in range(200))
        )

    assert await _arrived(link, 200) == _numbered(200)


# --- refusals that close the connection ------------------------------------------------------------

STAND_IN = 1.2345678901234e300
"""A header that `forging` turns into NaN on its way, which our own encoder never lets pass."""


@asynccontextmanager
async def forging(uri: str) -> AsyncIterator[str]:
    """A way to the broker on which `STAND_IN` becomes NaN: RabbitMQ closes the connection over it (541)."""
    port = urlsplit(uri).port or 5672
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        change: Callable[[bytes], bytes],
    ) -> None:
        try:
            while data := await source.read(1 << 20):
                sink.write(change(data))
        except OSError:
            pass
        finally:
            sink.close()

    def forge(data: bytes) -> bytes:
        return data.replace(struct.pack(">d", STAND_IN), struct.pack(">d", float("nan")))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", port)
        for task in (
            asyncio.create_task(pump(reader, ours, forge)),
            asyncio.create_task(pump(theirs, writer, bytes)),
        ):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield uri.replace(f":{port}/", f":{server.sockets[0].getsockname()[1]}/")
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@pytest.fixture
async def forged_link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    async with forging(rabbit_uri) as uri, opened(uri) as link:
        yield link


POISON = Message("", "q", b"poison", Properties(headers={"x": STAND_IN}))


async def test_publishing_that_closes_the_connection_is_found_among_its_neighbours(
    forged_link: RabbitLink,
) -> None:
    async with asyncio.timeout(15):
        results = await asyncio.gather(
            *(
                forged_link.publish(
                    POISON
                    if number == 30
                    else Message("", "q", b"%d" % number, Properties(message_id=f"{number}"))
                )
                for number in range(100)
            ),
            return_exceptions=True,
        )

    error = results.pop(30)
    assert isinstance(error, PublishRejected)
    assert "541" in str(error)
    assert results == [None] * 99
    assert forged_link.statistics().reconnects <= 3


async def test_neighbours_go_on_while_the_culprit_is_looked_for(forged_link: RabbitLink) -> None:
    """A stream of publishings beside it: none fails, and none waits longer than the reconnects take."""
    loop = asyncio.get_running_loop()
    slowest = 0.0
    stop = asyncio.Event()

    async def neighbour() -> None:
        nonlocal slowest
        while not stop.is_set():
            started = loop.time()
            await forged_link.publish(Message("", "q", b"neighbour", Properties()), timeout=10)
            slowest = max(slowest, loop.time() - started)

    neighbours = [asyncio.ensure_future(neighbour()) for _ in range(20)]
    with pytest.raises(PublishRejected, match="541"):
        await forged_link.publish(POISON, timeout=20)
    stop.set()
    await asyncio.gather(*neighbours)

    assert slowest < 5.0
    assert forged_link.statistics().reconnects <= 4


async def test_culprit_without_a_confirm_is_found_too_and_told(forged_link: RabbitLink) -> None:
    """It may be sent again, so it would close one connection after the other until its time is up."""
    refusals = Refusals(forged_link)
    loop = asyncio.get_running_loop()

    for number in range(50):
        await forged_link.ready(timeout=5)
        message = POISON if number == 25 else Message("", "q", b"%d" % number, Properties())
        forged_link.publish_nowait(message, resend_until=loop.time() + 20)

    await eventually(lambda: refusals, 30)
    [(message, error)] = refusals
    assert message is POISON
    assert isinstance(error, PublishRejected)
    inbox = Inbox(acks=True)
    await forged_link.consume("q", inbox)
    await eventually(lambda: set(inbox.bodies) == {b"%d" % n for n in range(50) if n != 25}, 30)
    assert forged_link.statistics().reconnects <= 3


async def test_what_cannot_be_on_the_wire_never_gets_there(link: RabbitLink) -> None:
    """Every such thing, with and without confirm: refused by us, named, and nobody else notices."""
    properties = [
        Properties(headers={"x-odd": value})
        for value in (float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud83d", {"y": "\ud83d"})
    ]
    properties += [
        Properties(headers={"x-odd": "y" * 140_000}),
        Properties(correlation_id="x" * 256),
        Properties(timestamp=2**64),
    ]
    for one in properties:
        message = Message("", "q", b"", one)
        with pytest.raises(ProtocolError):
            link.publish_nowait(message)
        with pytest.raises(ProtocolError):
            await link.publish(message)

    await link.publish(Message("", "q", b"", Properties()))
    assert await link.message_count("q") == 1
    assert link.statistics().reconnects == 0
