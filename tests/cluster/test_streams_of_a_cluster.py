"""A node of a cluster dies that leads streams: what was published to them, beside each other on one link, is there."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from tests.cluster.conftest import Scene
from tests.progress import until

from mycelia.amqp import (
    STREAM_OFFSET,
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    LinkOptions,
    Message,
    Properties,
    Queue,
    RabbitLink,
)
from mycelia.errors import BrokerUnavailable

STREAM = {"x-queue-type": "stream"}
EXCHANGE = Exchange("days", type="direct")


class Numbers:
    """Publishes numbers to a stream, so many at a time, and keeps those that were confirmed."""

    def __init__(self, link: RabbitLink, exchange: str, routing_key: str) -> None:
        self.confirmed: list[int] = []
        self._link = link
        self._exchange = exchange
        self._routing_key = routing_key
        self._numbers = count()

    async def publish(self) -> None:
        """Until cancelled."""
        while True:
            number = next(self._numbers)
            message = Message(
                self._exchange,
                self._routing_key,
                str(number).encode(),
                Properties(delivery_mode=2),
                mandatory=True,
            )
            while True:
                try:
                    await self._link.publish(message, timeout=10)
                except BrokerUnavailable:
                    continue  # as who appends to a log does
                break
            self.confirmed.append(number)

    async def more(self, count: int, what: str) -> None:
        """So many more are confirmed."""
        goal = len(self.confirmed) + count
        await until(
            lambda: len(self.confirmed) >= goal,
            lambda: len(self.confirmed),
            what=what,
            stalled_s=60,
        )


async def numbers_in(link: RabbitLink, stream: str, wanted: int) -> set[int]:
    """Those that a stream holds, once nothing more comes or there are as many."""
    found: set[int] = set()

    def take(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            found.add(int(delivery.body))
            delivery.ack()

    options = ConsumeOptions(prefetch=500, arguments={STREAM_OFFSET: "first"})
    consumer = await link.consume(stream, take, options, timeout=30)
    try:
        await until(
            lambda: len(found) >= wanted, lambda: len(found), what=f"{stream} is read", stalled_s=10
        )
    except AssertionError:
        pass  # what is missing is named by who asks
    finally:
        await consumer.aclose()
    return found


@pytest.mark.parametrize("published_from", ["the leader", "another node"])
async def test_what_streams_have_confirmed_is_there_when_the_node_dies_that_leads_them(
    scene: Scene, published_from: str
) -> None:
    """Several are on their way to each of them when it does. RabbitMQ 3.10 sends them again under numbers of its own."""
    node, other, _ = scene.cluster.nodes
    options = LinkOptions(heartbeat=2, connect_timeout=2.0)
    # The leader is on the node where a stream is declared.
    links = [RabbitLink(scene.uri(node), options)]
    if published_from == "another node":
        links.append(RabbitLink(scene.uri(other, without=node), options))
    writes = links[-1]
    streams = [Queue("one", arguments=STREAM), Queue("two", arguments=STREAM)]
    for link in links:
        await link.open(timeout=30)
        await link.declare(EXCHANGE, *streams, Binding("two", EXCHANGE.name, "2"), timeout=30)
    numbers = {"one": Numbers(writes, "", "one"), "two": Numbers(writes, EXCHANGE.name, "2")}
    publishing = [asyncio.create_task(one.publish()) for one in numbers.values() for _ in range(20)]

    async def some_more(what: str) -> None:
        for name, its in numbers.items():
            await its.more(300, f"{name}: {what}")

    try:
        for one in streams:
            await scene.await_replicas(one.name)
            assert await scene.home_of(one.name) is node
        await some_more("confirms begin")
        await scene.kill(node)
        await some_more("confirms go on without the node")
        for task in publishing:
            task.cancel()
        await asyncio.wait(publishing)
        missing = {}
        for name, its in numbers.items():
            found = await numbers_in(writes, name, len(its.confirmed))
            missing[name] = sorted(set(its.confirmed) - found)
    finally:
        for task in publishing:
            task.cancel()
        for link in links:
            await link.aclose()

    assert missing == {"one": [], "two": []}
