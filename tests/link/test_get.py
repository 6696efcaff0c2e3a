"""Getting one message: asked for, settled like any other, bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.link.inbox import Inbox, cut_until

from mycelia.amqp import Delivery, Link, Message, Properties, Queue
from mycelia.errors import BrokerUnavailable, TopologyError
from mycelia.testing.eventually import eventually

Cut = Callable[[], Awaitable[None]]
LinkFactory = Callable[[], Awaitable[Link]]
ReadyCount = Callable[[str, int], Awaitable[None]]


async def publish(link: Link, queue: str, count: int) -> None:
    for number in range(count):
        await link.publish(
            Message("", queue, b"%d" % number, Properties(correlation_id=f"c-{number}"))
        )


async def get(link: Link, queue: str) -> Delivery:
    """The next message; a quorum queue may take a moment to show it."""
    found: list[Delivery] = []

    async def is_there() -> bool:
        delivery = await link.get(queue)
        if delivery is not None:
            found.append(delivery)
        return delivery is not None

    await eventually(is_there, 30, what="a message")
    return found[0]


async def test_empty_queue_gives_nothing(link: Link, any_queue: str) -> None:
    assert await link.get(any_queue) is None
    assert await link.get(any_queue) is None


async def test_got_message_is_whole_and_gone_when_acknowledged(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 3)

    first = await get(link, any_queue)
    second = await get(link, any_queue)
    first.ack()
    second.ack()

    assert (first.body, first.exchange, first.routing_key) == (b"0", "", any_queue)
    assert first.properties.correlation_id == "c-0"
    assert (second.body, second.redelivered) == (b"1", False)
    await ready_count(any_queue, 1)
    assert link.statistics().acknowledged == 2


async def test_got_message_can_be_put_back(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 1)

    (await get(link, any_queue)).nack(requeue=True)

    again = await get(link, any_queue)
    assert (again.body, again.redelivered) == (b"0", True)
    again.nack()
    again.nack(requeue=True)  # a second settling does nothing
    await ready_count(any_queue, 0)


async def test_many_at_once_get_a_message_each(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 30)

    got = await asyncio.gather(*(link.get(any_queue) for _ in range(40)))

    deliveries = [one for one in got if one is not None]
    assert sorted(one.body for one in deliveries) == sorted(b"%d" % n for n in range(30))
    for one in deliveries:
        one.ack()
    await ready_count(any_queue, 0)


async def test_getting_from_an_absent_queue_is_refused_and_harms_nobody(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 1)
    held = await get(link, any_queue)

    with pytest.raises(TopologyError, match="absent"):
        await link.get("absent")

    assert not held.is_lost
    held.ack()
    await ready_count(any_queue, 0)


async def test_no_single_message_of_a_stream_can_be_got(link: Link, any_queue: str) -> None:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))

    with pytest.raises(TopologyError, match="stream"):
        await link.get("log")

    assert link.statistics().reconnects == 0


async def test_exclusive_queue_can_be_got_from(link: Link) -> None:
    await link.declare(Queue("mine", durable=False, exclusive=True))
    await publish(link, "mine", 1)

    (await get(link, "mine")).ack()

    assert await link.get("mine") is None


async def test_unsettled_message_goes_back_with_the_link(
    link: Link, link_factory: LinkFactory, any_queue: str, ready_count: ReadyCount
) -> None:
    other = await link_factory()
    await publish(link, any_queue, 1)
    held = await get(other, any_queue)
    await ready_count(any_queue, 0)

    await other.aclose()

    await ready_count(any_queue, 1)
    assert held.is_lost
    held.ack()  # does nothing
    assert (await get(link, any_queue)).redelivered


async def test_got_message_is_lost_with_its_connection(
    link: Link, any_queue: str, cut: Cut
) -> None:
    await publish(link, any_queue, 1)
    held = await get(link, any_queue)

    await cut_until(cut, lambda: held.is_lost)

    held.ack()
    again = await get(link, any_queue)
    assert (again.body, again.redelivered) == (b"0", True)
    again.ack()


async def test_getting_beside_a_consumer_takes_nothing_from_it(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    inbox = Inbox()
    await link.consume(any_queue, inbox)
    await publish(link, any_queue, 5)
    await inbox.wait(5)

    assert await link.get(any_queue) is None
    assert len(inbox.deliveries) == 5


async def test_getting_is_bounded_in_time(make_link: Callable[[], Link]) -> None:
    link = make_link()

    with pytest.raises(BrokerUnavailable):
        await link.get("work", timeout=0.1)
