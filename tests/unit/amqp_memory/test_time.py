"""What happens with time, without waiting for it: TTL, expiry, delayed retries, stream timestamps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import ConsumeOptions, Message, Properties, Queue
from mycelia.amqp.memory.clock import ManualClock
from mycelia.amqp.memory.link import MemoryLink
from mycelia.errors import TopologyError


async def test_message_expires_at_its_ttl_and_not_before(
    link: MemoryLink, clock: ManualClock
) -> None:
    await link.declare(Queue("work"))
    await link.publish(Message("", "work", b"", Properties(expiration="1000")))

    clock.advance(0.999)
    assert await link.message_count("work") == 1

    clock.advance(0.001)
    assert await link.message_count("work") == 0


async def test_shorter_of_the_two_ttls_counts(link: MemoryLink, clock: ManualClock) -> None:
    await link.declare(Queue("work", arguments={"x-message-ttl": 5000}))
    await link.publish(Message("", "work", b"its own", Properties(expiration="1000")))
    await link.publish(Message("", "work", b"the queue's", Properties(expiration="60000")))

    clock.advance(1.0)
    assert await link.message_count("work") == 1
    clock.advance(4.0)
    assert await link.message_count("work") == 0


async def test_requeued_message_keeps_its_expiry(link: MemoryLink, clock: ManualClock) -> None:
    await link.declare(Queue("work"))
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    await link.publish(Message("", "work", b"", Properties(expiration="1000")))
    await inbox.wait(1)
    await consumer.cancel()
    clock.advance(0.6)

    inbox.deliveries[0].nack(requeue=True)

    assert await link.message_count("work") == 1
    clock.advance(0.4)
    assert await link.message_count("work") == 0


async def test_day_of_delayed_retries_passes_in_no_time(
    link: MemoryLink, clock: ManualClock
) -> None:
    """Thirty minutes in a delay queue, again and again, and the message is there each time at its minute."""
    await link.declare(
        Queue("work", arguments={"x-queue-type": "quorum"}),
        Queue(
            "delay",
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": 1_800_000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "work",
            },
        ),
    )
    inbox = Inbox(acks=True)
    await link.consume("work", inbox)

    for attempt in range(48):
        await link.publish(Message("", "delay", b"%d" % attempt, Properties()))
        clock.advance(1799.0)
        assert len(inbox.deliveries) == attempt
        clock.advance(1.0)
        await inbox.wait(attempt + 1)

    assert clock.monotonic() == 86_400.0


async def test_death_is_dated_by_the_clock(link: MemoryLink, clock: ManualClock) -> None:
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    await link.declare(Queue("dead"), Queue("work", arguments=dead_letters))
    inbox = Inbox()
    await link.consume("dead", inbox)
    await link.publish(Message("", "work", b"", Properties(expiration="90000")))

    clock.advance(3600.0)

    (delivery,) = await inbox.wait(1)
    assert delivery.properties.headers is not None
    assert delivery.properties.headers["x-death"][0]["time"] == datetime(
        2013, 1, 1, 0, 1, 30, tzinfo=UTC
    )


async def test_unused_queue_expires_and_use_puts_it_off(
    link: MemoryLink, clock: ManualClock
) -> None:
    queue = Queue("replies", arguments={"x-expires": 300_000})
    await link.declare(queue)

    clock.advance(299.0)
    await link.declare(queue)
    clock.advance(299.0)
    consumer = await link.consume("replies", Inbox())
    clock.advance(10_000.0)
    await consumer.aclose()
    clock.advance(299.0)
    assert await link.message_count("replies") == 0
    clock.advance(300.0)

    with pytest.raises(TopologyError):
        await link.message_count("replies")


async def test_stream_is_replayed_from_a_time(link: MemoryLink, clock: ManualClock) -> None:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    for body in (b"midnight", b"one", b"two"):
        await link.publish(Message("", "log", body, Properties()))
        clock.advance(3600.0)
    inbox = Inbox(acks=True)

    await link.consume(
        "log",
        inbox,
        ConsumeOptions(arguments={"x-stream-offset": datetime(2013, 1, 1, 1, tzinfo=UTC)}),
    )

    await inbox.wait(2)
    assert inbox.bodies == [b"one", b"two"]


async def test_offset_that_is_none_is_refused(link: MemoryLink) -> None:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))

    with pytest.raises(TopologyError, match="yesterday"):
        await link.consume(
            "log", Inbox(), ConsumeOptions(arguments={"x-stream-offset": "yesterday"})
        )


async def test_stream_needs_acks_and_a_prefetch(link: MemoryLink) -> None:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))

    with pytest.raises(TopologyError):
        await link.consume("log", Inbox(), ConsumeOptions(no_ack=True))
    with pytest.raises(TopologyError):
        await link.consume("log", Inbox(), ConsumeOptions(prefetch=0))
