"""A consumer changes while it runs: its prefetch, and whether it is paused. Nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.link.inbox import Inbox, cut_until

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    Link,
    LinkConsumer,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import ConfigError, TopologyError
from mycelia.testing.eventually import eventually

Cut = Callable[[], Awaitable[None]]
LinkFactory = Callable[[], Awaitable[Link]]
ReadyCount = Callable[[str, int], Awaitable[None]]


async def publish(link: Link, queue: str, numbers: range) -> list[bytes]:
    bodies = [b"%d" % number for number in numbers]
    for body in bodies:
        await link.publish(Message("", queue, body, Properties()), timeout=15)
    return bodies


def settle(inbox: Inbox, start: int, stop: int) -> None:
    for delivery in inbox.deliveries[start:stop]:
        delivery.ack()


def assert_undisturbed(queue: str, inbox: Inbox, bodies: list[bytes]) -> None:
    """In order, none returned. RabbitMQ's quorum queues take back what was on its way to a cancelled consumer."""
    if "quorum" not in queue:
        assert inbox.bodies == bodies
        assert not any(one.redelivered for one in inbox.deliveries)


# --- prefetch ---


async def test_prefetch_changes_while_the_consumer_runs(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    """What was handed out before counts no more, as with a second consumer on the channel."""
    await publish(link, any_queue, range(30))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=2))
    await inbox.wait(2)

    await consumer.set_prefetch(5)
    await inbox.wait(7)
    await ready_count(any_queue, 23)
    settle(inbox, 0, 7)
    await inbox.wait(12)
    await ready_count(any_queue, 18)

    await consumer.set_prefetch(1)
    await inbox.wait(13)
    await ready_count(any_queue, 17)
    settle(inbox, 0, 12)
    await ready_count(any_queue, 17)  # the one that is unsettled is all there may be
    settle(inbox, 12, 13)
    await inbox.wait(14)
    await ready_count(any_queue, 16)

    assert consumer.prefetch == 1
    assert consumer.unsettled == 1
    assert inbox.bodies == [b"%d" % number for number in range(14)]
    assert not any(one.redelivered for one in inbox.deliveries)


async def test_nothing_is_lost_or_doubled_by_many_changes_under_load(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    inbox = Inbox(acks=True)
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=10))
    publishing = asyncio.ensure_future(publish(link, any_queue, range(500)))

    for change in range(40):
        await consumer.set_prefetch(1 + change % 7)
    bodies = await publishing
    await inbox.wait(500)
    await consumer.aclose()

    await ready_count(any_queue, 0)
    assert sorted(inbox.bodies) == sorted(bodies)
    assert_undisturbed(any_queue, inbox, bodies)


async def test_changes_at_once_end_with_the_last(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(200))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=1))

    await asyncio.gather(*(consumer.set_prefetch(n) for n in (50, 2, 30, 4)))
    settle(inbox, 0, 200)
    await eventually(lambda: consumer.unsettled == 4, 30)
    await ready_count(any_queue, 200 - len(inbox.deliveries))

    assert consumer.prefetch == 4


async def test_changed_prefetch_outlives_a_reconnect(
    link: Link, any_queue: str, cut: Cut, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(20))
    inbox = Inbox()
    lost: list[bool] = []
    consumer = await link.consume(
        any_queue, inbox, ConsumeOptions(prefetch=10, on_lost=lambda: lost.append(True))
    )
    await inbox.wait(10)
    await consumer.set_prefetch(3)

    await cut_until(cut, lambda: bool(lost))

    await eventually(lambda: consumer.unsettled == 3, 20)
    await ready_count(any_queue, 17)


async def test_prefetch_may_be_set_while_the_connection_is_away(
    link: Link, any_queue: str, cut: Cut, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(20))
    inbox = Inbox()
    changes: list[asyncio.Task[None]] = []
    consumer = await link.consume(
        any_queue,
        inbox,
        ConsumeOptions(
            prefetch=10,
            on_lost=lambda: changes.append(asyncio.ensure_future(consumer.set_prefetch(2))),
        ),
    )
    await inbox.wait(10)

    await cut_until(cut, lambda: bool(changes))

    await asyncio.wait_for(asyncio.gather(*changes), 10)
    await eventually(lambda: consumer.unsettled == 2, 20)
    await ready_count(any_queue, 18)


async def test_auto_delete_queue_outlives_a_change_and_a_pause(link: Link) -> None:
    await link.declare(
        Exchange("x"), Queue("brief", durable=False, auto_delete=True), Binding("brief", "x", "#")
    )
    inbox = Inbox(acks=True)
    consumer = await link.consume("brief", inbox, ConsumeOptions(prefetch=5))

    for number in range(5):
        await consumer.set_prefetch(number + 1)
        await consumer.pause()
        await link.publish(Message("x", "any", b"%d" % number, Properties(), mandatory=True))
        await consumer.resume()

    await inbox.wait(5)
    assert inbox.bodies == [b"0", b"1", b"2", b"3", b"4"]


async def test_prefetch_of_an_exclusive_consumer_changes(
    link: Link, ready_count: ReadyCount
) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "classic"}))
    await publish(link, "work", range(10))
    inbox = Inbox()
    consumer = await link.consume("work", inbox, ConsumeOptions(prefetch=2, exclusive=True))
    await inbox.wait(2)

    await consumer.set_prefetch(4)

    await inbox.wait(6)
    await ready_count("work", 4)
    assert inbox.bodies == [b"%d" % number for number in range(6)]


@pytest.mark.parametrize("prefetch", [-1, 65_536, 1.5, True, "3"])
async def test_what_is_no_prefetch_is_refused(link: Link, any_queue: str, prefetch: int) -> None:
    consumer = await link.consume(any_queue, Inbox())

    with pytest.raises(ConfigError, match="prefetch="):
        await consumer.set_prefetch(prefetch)
    with pytest.raises(ConfigError, match="prefetch="):
        await link.consume(any_queue, Inbox(), ConsumeOptions(prefetch=prefetch))

    assert consumer.prefetch == 100


# --- pause ---


async def test_paused_consumer_gets_nothing_and_can_settle_what_it_has(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(3))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    await inbox.wait(3)

    await consumer.pause()
    assert consumer.is_paused
    await publish(link, any_queue, range(3, 8))
    await ready_count(any_queue, 5)
    settle(inbox, 0, 3)
    await eventually(lambda: consumer.unsettled == 0)
    assert len(inbox.deliveries) == 3

    await consumer.resume()
    await inbox.wait(8)

    assert not consumer.is_paused
    assert inbox.bodies == [b"%d" % number for number in range(8)]
    assert not any(one.redelivered for one in inbox.deliveries)


async def test_pausing_and_resuming_twice_does_nothing(link: Link, any_queue: str) -> None:
    inbox = Inbox(acks=True)
    consumer = await link.consume(any_queue, inbox)

    await consumer.pause()
    await consumer.pause()
    await consumer.resume()
    await consumer.resume()

    await publish(link, any_queue, range(3))
    await inbox.wait(3)
    assert await link.consumer_count(any_queue) == 1


async def test_nothing_is_handed_out_between_pause_and_resume(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    """Under load, from the very moment pause() is called; and nothing is lost or doubled."""
    paused = False
    at_fault: list[bytes] = []
    inbox = Inbox(acks=True)

    def on_deliveries(batch: list) -> None:  # type: ignore[type-arg]
        if paused:
            at_fault.extend(one.body for one in batch)
        inbox(batch)

    consumer = await link.consume(any_queue, on_deliveries, ConsumeOptions(prefetch=10))
    publishing = asyncio.ensure_future(publish(link, any_queue, range(400)))

    for _ in range(25):
        paused = True
        await consumer.pause()
        await asyncio.sleep(0)
        paused = False
        await consumer.resume()
    bodies = await publishing
    await inbox.wait(400)
    await consumer.aclose()

    await ready_count(any_queue, 0)
    assert at_fault == []
    assert sorted(inbox.bodies) == sorted(bodies)
    assert_undisturbed(any_queue, inbox, bodies)


async def test_prefetch_set_during_a_pause_holds_after_it(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(20))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=2))
    await inbox.wait(2)

    await consumer.pause()
    await consumer.set_prefetch(6)
    await ready_count(any_queue, 18)
    await consumer.resume()

    await inbox.wait(8)
    await ready_count(any_queue, 12)


async def test_pause_outlives_a_reconnect(
    link: Link, any_queue: str, cut: Cut, ready_count: ReadyCount
) -> None:
    lost: list[bool] = []
    await publish(link, any_queue, range(3))
    inbox = Inbox()
    consumer = await link.consume(
        any_queue, inbox, ConsumeOptions(on_lost=lambda: lost.append(True))
    )
    await inbox.wait(3)
    await consumer.pause()

    await cut_until(cut, lambda: bool(lost))
    await ready_count(any_queue, 3)
    assert await link.consumer_count(any_queue) == 0
    await publish(link, any_queue, range(3, 5))
    assert len(inbox.deliveries) == 3

    await consumer.resume()
    await inbox.wait(8, 20)
    assert sorted(inbox.bodies[3:]) == [b"0", b"1", b"2", b"3", b"4"]


async def test_paused_consumer_can_be_closed_and_loses_nothing(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, range(50))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=30))
    pausing = asyncio.ensure_future(consumer.pause())  # while the first are on their way
    await pausing

    await consumer.cancel()
    await consumer.aclose()

    await ready_count(any_queue, 50)


async def test_paused_no_ack_consumer_loses_nothing(link: Link, any_queue: str) -> None:
    await publish(link, any_queue, range(50))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(no_ack=True))
    await consumer.pause()
    await publish(link, any_queue, range(50, 60))

    await consumer.resume()

    await inbox.wait(60)
    assert inbox.bodies == [b"%d" % number for number in range(60)]


async def test_queue_deleted_during_a_pause_is_there_again_afterwards(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    other = await link_factory()
    inbox = Inbox(acks=True)
    consumer = await link.consume(any_queue, inbox)
    await consumer.pause()

    await other.delete_queue(any_queue)
    await consumer.resume()

    async def arrives() -> bool:
        await link.publish(Message("", any_queue, b"again", Properties()))
        return b"again" in inbox.bodies

    await eventually(arrives, 20)


# --- streams ---


@pytest.fixture
async def stream(link: Link) -> str:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    return "log"


async def change_all(consumer: LinkConsumer, rounds: int) -> None:
    for number in range(rounds):
        await consumer.set_prefetch(2 + number % 9)
        await consumer.pause()
        await asyncio.sleep(0.002)
        await consumer.resume()


async def test_stream_goes_on_exactly_where_it_was_through_every_change(
    link: Link, stream: str
) -> None:
    inbox = Inbox(acks=True)
    consumer = await link.consume(
        stream, inbox, ConsumeOptions(prefetch=5, arguments={"x-stream-offset": "first"})
    )
    publishing = asyncio.ensure_future(publish(link, stream, range(300)))

    await change_all(consumer, 15)
    await publishing
    await inbox.wait(300, 20)

    assert [one.offset for one in inbox.deliveries] == list(range(300))


async def test_stream_that_has_seen_nothing_yet_misses_nothing_through_a_change(
    link: Link, stream: str
) -> None:
    """It began at `next`: asked for again later, `next` would be another place."""
    await publish(link, stream, range(3))
    inbox = Inbox(acks=True)
    consumer = await link.consume(stream, inbox, ConsumeOptions(prefetch=5))

    await consumer.set_prefetch(7)
    await consumer.pause()
    await publish(link, stream, range(3, 13))
    assert inbox.deliveries == []
    await consumer.resume()

    await inbox.wait(10, 20)
    assert [one.offset for one in inbox.deliveries] == list(range(3, 13))


async def test_unsettled_of_a_stream_can_be_settled_after_a_change_and_count_for_a_reconnect(
    link: Link, stream: str, cut: Cut
) -> None:
    await publish(link, stream, range(6))
    inbox = Inbox()
    consumer = await link.consume(
        stream, inbox, ConsumeOptions(prefetch=4, arguments={"x-stream-offset": "first"})
    )
    await inbox.wait(4)
    await consumer.set_prefetch(10)
    await inbox.wait(6)
    settle(inbox, 0, 2)
    await asyncio.sleep(0.01)

    await cut_until(cut, lambda: len(inbox.deliveries) > 6)

    await inbox.wait(10, 20)
    assert [one.offset for one in inbox.deliveries[6:10]] == [2, 3, 4, 5]


async def test_stream_needs_a_prefetch_and_goes_on_with_the_one_before(
    link: Link, stream: str
) -> None:
    await publish(link, stream, range(2))
    inbox = Inbox(acks=True)
    consumer = await link.consume(
        stream, inbox, ConsumeOptions(prefetch=4, arguments={"x-stream-offset": "first"})
    )
    await inbox.wait(2)

    with pytest.raises(TopologyError, match="prefetch 0 refused"):
        await consumer.set_prefetch(0)
    await publish(link, stream, range(2, 4))

    await inbox.wait(4, 20)
    assert consumer.prefetch == 4
    assert [one.offset for one in inbox.deliveries] == [0, 1, 2, 3]


async def test_consumer_says_whether_the_broker_has_it(
    link: Link, any_queue: str, cut: Cut
) -> None:
    consumer = await link.consume(any_queue, Inbox())
    assert consumer.is_consuming
    link.on_state_change(lambda _: seen.append(consumer.is_consuming))
    seen: list[bool] = []

    def is_lost() -> bool:
        return False in seen or not consumer.is_consuming

    await cut_until(cut, is_lost)

    await eventually(lambda: consumer.is_consuming, timeout=15)
    await consumer.pause()
    assert not consumer.is_consuming
    await consumer.resume()
    await eventually(lambda: consumer.is_consuming, timeout=15)
    await consumer.cancel()
    assert not consumer.is_consuming


# --- retired ---


async def test_what_a_retired_consumer_has_goes_back_in_the_order_of_the_queue(
    link: Link, any_queue: str
) -> None:
    """Also when acknowledgements make room for more until the end."""
    bodies = await publish(link, any_queue, range(60))
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox, ConsumeOptions(prefetch=10))
    await inbox.wait(10)

    consumer.retire()
    for place in (0, 2, 4, 6, 8):
        inbox.deliveries[place].ack()
    await consumer.aclose()
    handed_out = len(inbox.deliveries)
    again = Inbox()
    second = await link.consume(any_queue, again, ConsumeOptions(prefetch=100))
    await again.wait(55)
    await second.aclose()

    assert handed_out == 10
    assert again.bodies == [body for n, body in enumerate(bodies) if n not in (0, 2, 4, 6, 8)]
