"""Streams: an append-only log that consumers read from where they like, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import ConsumeOptions, Link, Message, Properties, Queue
from mycelia.errors import Unroutable
from mycelia.testing.eventually import eventually

LinkFactory = Callable[[], Awaitable[Link]]


@pytest.fixture
async def stream(link: Link) -> str:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    return "log"


async def append(link: Link, stream: str, *bodies: bytes, **properties: Any) -> None:
    for body in bodies:
        await link.publish(Message("", stream, body, Properties(**properties)))


def offsets(inbox: Inbox) -> list[int]:
    return [(delivery.properties.headers or {})["x-stream-offset"] for delivery in inbox.deliveries]


async def test_stream_is_read_from_its_first_message_with_offsets(link: Link, stream: str) -> None:
    await append(link, stream, b"0", b"1", b"2")
    inbox = Inbox(acks=True)

    await link.consume(stream, inbox, ConsumeOptions(arguments={"x-stream-offset": "first"}))

    await inbox.wait(3)
    assert inbox.bodies == [b"0", b"1", b"2"]
    assert offsets(inbox) == [0, 1, 2]
    assert not any(delivery.redelivered for delivery in inbox.deliveries)


async def test_acknowledged_messages_stay_in_a_stream(link: Link, stream: str) -> None:
    await append(link, stream, b"0", b"1")
    for _ in range(2):
        inbox = Inbox(acks=True)
        consumer = await link.consume(
            stream, inbox, ConsumeOptions(arguments={"x-stream-offset": "first"})
        )
        await inbox.wait(2)
        await consumer.aclose()

        assert inbox.bodies == [b"0", b"1"]


async def test_stream_is_replayed_from_an_offset(link: Link, stream: str) -> None:
    await append(link, stream, b"0", b"1", b"2", b"3")
    inbox = Inbox(acks=True)

    await link.consume(stream, inbox, ConsumeOptions(arguments={"x-stream-offset": 2}))

    await inbox.wait(2)
    assert inbox.bodies == [b"2", b"3"]


async def test_stream_read_from_next_brings_only_what_comes_later(link: Link, stream: str) -> None:
    await append(link, stream, b"before")
    inbox = Inbox(acks=True)
    await link.consume(stream, inbox, ConsumeOptions(arguments={"x-stream-offset": "next"}))

    await append(link, stream, b"after")

    await inbox.wait(1)
    assert inbox.bodies == [b"after"]


async def test_stream_is_read_from_next_where_no_offset_is_given(link: Link, stream: str) -> None:
    await append(link, stream, b"before")
    inbox = Inbox(acks=True)
    await link.consume(stream, inbox)

    await append(link, stream, b"after")

    await inbox.wait(1)
    assert inbox.bodies == [b"after"]


async def test_stream_read_from_last_begins_at_its_end(link: Link, stream: str) -> None:
    """`last` is the last chunk as it was written: at least the last message, perhaps some before it."""
    await append(link, stream, *(b"%d" % number for number in range(50)))
    inbox = Inbox(acks=True)

    await link.consume(stream, inbox, ConsumeOptions(arguments={"x-stream-offset": "last"}))

    await inbox.wait_for(b"49")
    assert inbox.bodies == [b"%d" % number for number in range(50)][-len(inbox.bodies) :]


async def test_stream_read_from_a_time_long_past_begins_at_its_start(
    link: Link, stream: str
) -> None:
    await append(link, stream, b"0", b"1")
    inbox = Inbox(acks=True)

    await link.consume(
        stream,
        inbox,
        ConsumeOptions(arguments={"x-stream-offset": datetime(2001, 1, 1, tzinfo=UTC)}),
    )

    await inbox.wait(2)
    assert inbox.bodies == [b"0", b"1"]


async def test_ack_is_credit_on_a_stream(link: Link, stream: str) -> None:
    await append(link, stream, *(b"%d" % number for number in range(10)))
    inbox = Inbox()
    consumer = await link.consume(
        stream, inbox, ConsumeOptions(prefetch=3, arguments={"x-stream-offset": "first"})
    )
    await inbox.wait(3)
    assert consumer.unsettled == 3

    for delivery in inbox.deliveries[:3]:
        delivery.ack()

    await inbox.wait(6)
    assert inbox.bodies == [b"%d" % number for number in range(6)]


async def test_stream_may_be_consumed_to_its_end_by_several_links(
    link: Link, link_factory: LinkFactory, stream: str
) -> None:
    other = await link_factory()
    mine, theirs = Inbox(acks=True), Inbox(acks=True)
    await link.consume(stream, mine, ConsumeOptions(arguments={"x-stream-offset": "first"}))
    await other.consume(stream, theirs, ConsumeOptions(arguments={"x-stream-offset": "first"}))

    await append(link, stream, b"0", b"1", b"2")

    await mine.wait(3)
    await theirs.wait(3)
    assert mine.bodies == theirs.bodies == [b"0", b"1", b"2"]


async def test_stream_drops_headers_that_are_lists_or_tables(link: Link, stream: str) -> None:
    """A fact about RabbitMQ up to 3.12 that whoever puts lists into headers must know."""
    inbox = Inbox(acks=True)
    await link.consume(stream, inbox)

    await append(
        link,
        stream,
        b"",
        headers={"text": "kept", "number": 7, "bytes": b"\xff", "list": [1], "table": {"a": 1}},
        message_id="m-1",
        delivery_mode=2,
    )

    (delivery,) = await inbox.wait(1)
    assert delivery.properties == Properties(
        headers={"text": "kept", "number": 7, "bytes": b"\xff", "x-stream-offset": 0},
        message_id="m-1",
        delivery_mode=2,
    )


async def test_messages_of_a_stream_are_counted(link: Link, stream: str) -> None:
    await append(link, stream, b"0", b"1", b"2")

    async def counted() -> bool:
        return await link.message_count(stream) == 3

    await eventually(counted, 30)


async def test_streams_and_queues_are_published_to_beside_each_other(
    link: Link, queue: str
) -> None:
    """In order, each; a stream may have a channel of its own, and what it must wait for holds up nobody else."""
    streams = [Queue(f"stream-{n}", arguments={"x-queue-type": "stream"}) for n in range(3)]
    await link.declare(*streams)
    targets = [queue, *(one.name for one in streams)]
    for target in targets[1:]:
        await link.publish(Message("", target, b"begin", Properties()), timeout=15)
    await asyncio.gather(
        *(
            link.publish(Message("", target, b"%d" % n, Properties()), timeout=15)
            for n in range(100)
            for target in targets
        )
    )

    for target in targets[1:]:
        inbox = Inbox(acks=True)
        options = ConsumeOptions(prefetch=500, arguments={"x-stream-offset": "first"})
        consumer = await link.consume(target, inbox, options, timeout=15)
        await inbox.wait(101)
        await consumer.aclose()
        assert inbox.bodies == [b"begin", *(b"%d" % n for n in range(100))]
    assert link.statistics().unconfirmed == 0


async def test_publishing_to_a_stream_that_somebody_has_deleted_is_unroutable(
    link: Link, stream: str, make_link: Callable[..., Link], queue: str
) -> None:
    to_stream = Message("", stream, b"gone", Properties(), mandatory=True)
    await link.publish(to_stream, timeout=15)
    other = make_link()
    await other.open(timeout=15)
    await other.delete_queue(stream)

    ended = await asyncio.gather(
        link.publish(to_stream, timeout=15),
        link.publish(Message("", queue, b"arrives", Properties()), timeout=15),
        return_exceptions=True,
    )

    assert isinstance(ended[0], Unroutable)
    assert ended[1] is None
    await other.declare(Queue(stream, arguments={"x-queue-type": "stream"}))
    await link.publish(to_stream, timeout=15)
    await other.aclose()
