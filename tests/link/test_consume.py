"""Consuming: prefetch, sharing a queue, exclusivity, cancelling, and what a closed consumer leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    Link,
    LinkState,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import TopologyError
from mycelia.testing.eventually import eventually

LinkFactory = Callable[[], Awaitable[Link]]
ReadyCount = Callable[[str, int], Awaitable[None]]


async def publish(link: Link, queue: str, count: int) -> list[bytes]:
    bodies = [b"%d" % number for number in range(count)]
    for body in bodies:
        await link.publish(Message("", queue, body, Properties()))
    return bodies


async def test_consuming_from_an_absent_queue_is_refused(link: Link) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.consume("absent", Inbox(), timeout=5)


async def test_prefetch_bounds_what_is_outstanding(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 10)
    inbox = Inbox()

    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=3))

    await ready_count(any_queue, 7)
    await inbox.wait(3)
    assert inbox.bodies == [b"0", b"1", b"2"]
    assert consumer.unsettled == 3


async def test_each_settled_delivery_makes_room_for_another(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 10)
    inbox = Inbox()
    await link.consume(any_queue, inbox, ConsumeOptions(prefetch=3))
    await inbox.wait(3)

    inbox.deliveries[1].ack()

    await inbox.wait(4)
    await ready_count(any_queue, 6)
    assert inbox.bodies == [b"0", b"1", b"2", b"3"]


async def test_slow_delivery_holds_back_nobody(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    """The first delivery stays unsettled, and yet a hundred others pass through a prefetch of five."""
    bodies = await publish(link, any_queue, 100)
    slow: list[Delivery] = []
    passed: list[bytes] = []

    def on_deliveries(batch: list[Delivery]) -> None:
        for delivery in batch:
            if delivery.body == b"0":
                slow.append(delivery)
            else:
                passed.append(delivery.body)
                delivery.ack()

    consumer = await link.consume(any_queue, on_deliveries, ConsumeOptions(prefetch=5))

    await eventually(lambda: len(passed) == 99, 30)
    assert passed == bodies[1:]
    await eventually(lambda: consumer.unsettled == 1)
    await consumer.aclose()
    await ready_count(any_queue, 1)


async def test_acknowledged_messages_do_not_come_back(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 20)
    inbox = Inbox(acks=True)
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=7))
    await inbox.wait(20)

    await consumer.aclose()

    await ready_count(any_queue, 0)
    assert link.statistics().acknowledged == 20


async def test_acks_out_of_order_settle_just_what_they_name(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 6)
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(6)

    for at in (4, 0, 5, 1):
        inbox.deliveries[at].ack()
    await consumer.aclose()

    again = Inbox()
    await link.consume(any_queue, again)
    await again.wait(2)
    assert again.bodies == [b"2", b"3"]


async def test_no_ack_consumer_takes_everything_at_once(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 10)
    inbox = Inbox()

    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=1, no_ack=True))

    await inbox.wait(10)
    assert consumer.unsettled == 0
    inbox.deliveries[0].nack(requeue=True)  # does nothing
    await consumer.aclose()
    await ready_count(any_queue, 0)


async def test_two_links_on_one_queue_share_its_messages(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    other = await link_factory()
    mine, theirs = Inbox(acks=True), Inbox(acks=True)
    await link.consume(any_queue, mine, ConsumeOptions(prefetch=5))
    await other.consume(any_queue, theirs, ConsumeOptions(prefetch=5))

    bodies = await publish(link, any_queue, 60)

    await eventually(lambda: len(mine.bodies) + len(theirs.bodies) == 60)
    assert sorted(mine.bodies + theirs.bodies) == sorted(bodies)
    assert len(mine.bodies) > 10
    assert len(theirs.bodies) > 10


async def test_idle_consumers_take_turns(link: Link, any_queue: str) -> None:
    first, second = Inbox(), Inbox()
    await link.consume(any_queue, first, ConsumeOptions(prefetch=2))
    await link.consume(any_queue, second, ConsumeOptions(prefetch=2))

    await publish(link, any_queue, 4)

    await first.wait(2)
    await second.wait(2)


async def test_consumer_of_higher_priority_is_served_first(link: Link, any_queue: str) -> None:
    low, high = Inbox(), Inbox()
    await link.consume(any_queue, low, ConsumeOptions(prefetch=10))
    await link.consume(any_queue, high, ConsumeOptions(prefetch=2, arguments={"x-priority": 10}))

    await publish(link, any_queue, 4)

    await high.wait(2)
    await low.wait(2)
    assert high.bodies == [b"0", b"1"]


async def test_exclusive_consumer_keeps_others_out_of_a_classic_queue(
    link: Link, link_factory: LinkFactory
) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "classic"}))
    other = await link_factory()
    consumer = await link.consume("work", Inbox(), ConsumeOptions(exclusive=True))

    with pytest.raises(TopologyError, match="exclusive"):
        await other.consume("work", Inbox(), timeout=5)

    await consumer.aclose()
    inbox = Inbox(acks=True)

    async def may_consume() -> bool:
        try:
            await other.consume("work", inbox, timeout=5)
        except TopologyError:
            return False
        return True

    await eventually(may_consume)
    await publish(link, "work", 1)
    await inbox.wait(1)


async def test_exclusive_consumer_keeps_nobody_out_of_a_quorum_queue(
    link: Link, link_factory: LinkFactory, queue: str
) -> None:
    """A fact about RabbitMQ 3.10 that whoever builds a lease on it must know: take single active consumer."""
    other = await link_factory()
    mine, theirs = Inbox(acks=True), Inbox(acks=True)
    await link.consume(queue, mine, ConsumeOptions(prefetch=1, exclusive=True))
    await other.consume(queue, theirs, ConsumeOptions(prefetch=1))

    await publish(link, queue, 20)

    await eventually(lambda: len(mine.bodies) + len(theirs.bodies) == 20)
    assert theirs.bodies


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_single_active_consumer_is_followed_by_the_next(
    link: Link, link_factory: LinkFactory, queue_type: str
) -> None:
    other = await link_factory()
    await link.declare(
        Queue("one", arguments={"x-queue-type": queue_type, "x-single-active-consumer": True})
    )
    active, standby = Inbox(acks=True), Inbox(acks=True)
    first = await link.consume("one", active)
    await other.consume("one", standby)

    await publish(link, "one", 10)
    await active.wait(10)
    assert standby.bodies == []

    await first.aclose()
    await link.publish(Message("", "one", b"after", Properties()))
    await standby.wait(1)
    assert standby.bodies == [b"after"]


async def test_cancelled_consumer_gets_no_more_and_can_still_settle(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 2)
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(2)

    await consumer.cancel()
    await link.publish(Message("", any_queue, b"later", Properties()))
    await ready_count(any_queue, 1)
    inbox.deliveries[0].ack()
    inbox.deliveries[1].ack()
    await consumer.aclose()

    await ready_count(any_queue, 1)
    assert inbox.bodies == [b"0", b"1"]
    assert consumer.unsettled == 0


async def test_cancelling_and_closing_twice_does_nothing(link: Link, any_queue: str) -> None:
    consumer = await link.consume(any_queue, Inbox())

    await consumer.cancel()
    await consumer.cancel()
    await consumer.aclose()
    await consumer.aclose()
    await consumer.cancel()


async def test_closed_consumer_returns_what_it_has_not_settled(link: Link, any_queue: str) -> None:
    await publish(link, any_queue, 4)
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(4)
    inbox.deliveries[1].ack()

    await consumer.aclose()

    again = Inbox()
    await link.consume(any_queue, again)
    await again.wait(3)
    assert again.bodies == [b"0", b"2", b"3"]
    assert all(delivery.redelivered for delivery in again.deliveries)


async def test_closed_link_returns_what_it_has_not_settled(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    other = await link_factory()
    await publish(link, any_queue, 4)
    inbox = Inbox()
    await other.consume(any_queue, inbox)
    await inbox.wait(4)
    inbox.deliveries[0].ack()

    await other.aclose()

    again = Inbox()
    await link.consume(any_queue, again)
    await again.wait(3)
    assert again.bodies == [b"1", b"2", b"3"]
    assert all(delivery.redelivered for delivery in again.deliveries)


@pytest.mark.parametrize("first", ["cancelled", "prefetch_changed", "retired", "nothing"])
async def test_what_is_settled_right_before_the_close_does_not_come_again(
    link: Link, link_factory: LinkFactory, first: str
) -> None:
    """Also where there is so much of it that the broker's channel keeps some back from a quorum queue."""
    await link.declare(Queue("many", arguments={"x-queue-type": "quorum"}))
    await asyncio.gather(
        *(link.publish(Message("", "many", b"%d" % n, Properties())) for n in range(1000))
    )
    inbox = Inbox()
    consumer = await link.consume("many", inbox, ConsumeOptions(prefetch=1000))
    await inbox.wait(1000)
    if first == "cancelled":
        await consumer.cancel()
    elif first == "prefetch_changed":
        await consumer.set_prefetch(500)
    elif first == "retired":
        consumer.retire()

    for delivery in inbox.deliveries[1::2]:
        delivery.ack()
    for delivery in inbox.deliveries[2::4]:
        delivery.nack(requeue=True)
    await consumer.aclose()

    again = Inbox()
    await (await link_factory()).consume("many", again, ConsumeOptions(prefetch=1000))
    await again.wait(500)
    assert sorted(map(int, again.bodies)) == list(range(0, 1000, 2))


async def test_settling_after_the_consumer_closed_does_nothing(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 2)
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(2)

    await consumer.aclose()
    inbox.deliveries[0].ack()
    inbox.deliveries[1].nack()

    await ready_count(any_queue, 2)


async def test_settling_twice_counts_once(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, 3)
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(3)

    inbox.deliveries[0].ack()
    inbox.deliveries[0].ack()
    inbox.deliveries[0].nack(requeue=True)
    await consumer.aclose()

    await ready_count(any_queue, 2)


async def test_consumer_of_a_deleted_queue_declares_it_again_and_goes_on(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    other = await link_factory()
    await link.declare(Exchange("x"), Binding(any_queue, "x", "#"))
    inbox = Inbox(acks=True)
    await link.consume(any_queue, inbox)
    await publish(link, any_queue, 1)
    await inbox.wait(1)

    await other.delete_queue(any_queue)

    async def arrives() -> bool:
        await link.publish(Message("x", "any", b"again", Properties()))
        return b"again" in inbox.bodies

    await eventually(arrives, 30)
    assert link.state is LinkState.CONNECTED


async def test_delivery_names_exchange_routing_key_and_consumer(link: Link) -> None:
    await link.declare(Exchange("x"), Queue("work"), Binding("work", "x", "a.*"))
    inbox = Inbox()
    await link.consume("work", inbox)

    await link.publish(Message("x", "a.b", b"", Properties()))

    (delivery,) = await inbox.wait(1)
    assert (delivery.exchange, delivery.routing_key, delivery.delivery_tag) == ("x", "a.b", 1)
    assert delivery.consumer_tag


async def test_consumers_of_one_link_have_tags_of_their_own(link: Link) -> None:
    await link.declare(Queue("q1"), Queue("q2"))
    one, two = Inbox(), Inbox()
    await link.consume("q1", one)
    await link.consume("q2", two)

    await link.publish(Message("", "q1", b"", Properties()))
    await link.publish(Message("", "q2", b"", Properties()))

    (first,) = await one.wait(1)
    (second,) = await two.wait(1)
    assert first.consumer_tag != second.consumer_tag


async def test_deliveries_come_in_batches(link: Link, any_queue: str) -> None:
    batches: list[int] = []
    await publish(link, any_queue, 200)

    await link.consume(
        any_queue, lambda batch: batches.append(len(batch)), ConsumeOptions(prefetch=200)
    )

    await eventually(lambda: sum(batches) == 200)
    assert len(batches) < 100


async def test_consumer_knows_its_queue(link: Link, any_queue: str) -> None:
    consumer = await link.consume(any_queue, Inbox())

    assert consumer.queue == any_queue
    assert consumer.unsettled == 0


async def test_consumer_count_tells_who_consumes_now(link: Link, any_queue: str) -> None:
    assert await link.consumer_count(any_queue) == 0
    first = await link.consume(any_queue, Inbox())
    await link.consume(any_queue, Inbox())
    assert await link.consumer_count(any_queue) == 2

    await first.cancel()

    assert await link.consumer_count(any_queue) == 1


async def test_consumer_count_of_an_absent_queue_is_refused(link: Link) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.consumer_count("absent")
