"""Publishing with and without confirm, and what becomes of what cannot be routed or taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    Link,
    LinkOptions,
    Message,
    Properties,
    Queue,
    Returned,
)
from mycelia.errors import (
    AccessRefused,
    LinkError,
    ProtocolError,
    PublishRejected,
    TopologyError,
    Unroutable,
)
from mycelia.testing.eventually import eventually

EVERY_HEADER_TYPE = {
    "text": "Zürich → 東京",
    "empty text": "",
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "largest": 2**63 - 1,
    "true": True,
    "false": False,
    "none": None,
    "float": 1.5,
    "decimal": Decimal("12.34"),
    "bytes": b"\x00\xff",
    "time": datetime(2013, 1, 1, 5, 15, tzinfo=UTC),
    "list": ["a", 1, None, ["nested", {"deep": True}]],
    "empty list": [],
    "table": {"a": 1, "b": {"c": ["d"]}},
    "empty table": {},
}

EVERY_PROPERTY = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "headers": EVERY_HEADER_TYPE,
    "delivery_mode": 2,
    "priority": 9,
    "correlation_id": "c-1",
    "reply_to": "replies",
    "expiration": "60000",
    "message_id": "m-1",
    "timestamp": 1_356_998_400,
    "type": "flight.departed",
    "user_id": "guest",
    "app_id": "feed",
    "cluster_id": "one",
}


async def test_every_property_and_header_type_arrives_as_it_was_sent(
    link: Link, any_queue: str
) -> None:
    inbox = Inbox()
    await link.consume(any_queue, inbox)

    await link.publish(Message("", any_queue, b"body", Properties(**EVERY_PROPERTY)))  # type: ignore[arg-type]

    (delivery,) = await inbox.wait(1)
    assert delivery.properties == Properties(**EVERY_PROPERTY)  # type: ignore[arg-type]
    assert delivery.body == b"body"
    assert (delivery.exchange, delivery.routing_key) == ("", any_queue)
    assert delivery.redelivered is False


async def test_absent_properties_stay_absent(link: Link, any_queue: str) -> None:
    inbox = Inbox()
    await link.consume(any_queue, inbox)

    link.publish_nowait(Message("", any_queue, b"", Properties()))

    (delivery,) = await inbox.wait(1)
    assert delivery.properties == Properties()


async def test_confirmed_publishing_without_message_id_is_given_one(link: Link, queue: str) -> None:
    inbox = Inbox()
    await link.consume(queue, inbox)
    properties = Properties(content_type="text/plain")

    await link.publish(Message("", queue, b"1", properties))
    await link.publish(Message("", queue, b"2", properties))

    first, second = await inbox.wait(2)
    assert first.properties.message_id
    assert second.properties.message_id
    assert first.properties.message_id != second.properties.message_id


async def test_message_id_of_the_publisher_is_kept(link: Link, queue: str) -> None:
    inbox = Inbox()
    await link.consume(queue, inbox)

    await link.publish(Message("", queue, b"", Properties(message_id="order-7")))

    (delivery,) = await inbox.wait(1)
    assert delivery.properties.message_id == "order-7"


async def test_change_after_publishing_does_not_reach_the_message(link: Link, queue: str) -> None:
    inbox = Inbox()
    await link.consume(queue, inbox)
    properties = Properties(headers={"attempts": [1]})

    link.publish_nowait(Message("", queue, b"", properties))
    assert properties.headers is not None
    properties.headers["attempts"].append(2)

    (delivery,) = await inbox.wait(1)
    assert delivery.properties.headers == {"attempts": [1]}


async def test_two_queues_get_copies_of_their_own(link: Link) -> None:
    await link.declare(Queue("q1"), Queue("q2"), Exchange("x", "fanout"))
    await link.declare(Binding("q1", "x", ""), Binding("q2", "x", ""))
    one, two = Inbox(), Inbox()
    await link.consume("q1", one)
    await link.consume("q2", two)

    await link.publish(Message("x", "", b"", Properties(headers={"seen": []})))
    (first,) = await one.wait(1)
    (second,) = await two.wait(1)
    assert first.properties.headers is not None
    first.properties.headers["seen"].append("q1")

    assert second.properties.headers == {"seen": []}


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 3_000_000])
async def test_body_of_any_size_arrives_whole(link: Link, any_queue: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    inbox = Inbox()
    await link.consume(any_queue, inbox)

    await link.publish(Message("", any_queue, body, Properties()))

    (delivery,) = await inbox.wait(1)
    assert delivery.body == body


async def test_messages_of_one_publisher_arrive_in_order(link: Link, any_queue: str) -> None:
    inbox = Inbox(acks=True)
    await link.consume(any_queue, inbox, ConsumeOptions(prefetch=20))
    bodies = [b"%d" % number for number in range(500)]

    for body in bodies:
        link.publish_nowait(Message("", any_queue, body, Properties()))

    await inbox.wait(500)
    assert inbox.bodies == bodies


async def test_confirmed_publishings_keep_the_order_of_their_start(link: Link, queue: str) -> None:
    inbox = Inbox(acks=True)
    await link.consume(queue, inbox)

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(link.publish(Message("", queue, b"%d" % number, Properties())))

    await inbox.wait(200)
    assert inbox.bodies == [b"%d" % number for number in range(200)]


async def test_many_concurrent_publishers_each_get_their_own_outcome(
    link: Link, queue: str
) -> None:
    async def publish(number: int) -> str:
        key = queue if number % 3 else f"nobody-{number}"
        try:
            await link.publish(Message("", key, b"%d" % number, Properties(), mandatory=True))
        except Unroutable as error:
            return error.routing_key
        return "confirmed"

    outcomes = await asyncio.gather(*(publish(number) for number in range(300)))

    assert outcomes == ["confirmed" if number % 3 else f"nobody-{number}" for number in range(300)]
    assert await link.message_count(queue) == 200


async def test_confirmed_mandatory_publishing_without_a_queue_is_unroutable(link: Link) -> None:
    with pytest.raises(Unroutable) as caught:
        await link.publish(Message("amq.topic", "no.such.key", b"", Properties(), mandatory=True))

    assert (caught.value.exchange, caught.value.routing_key) == ("amq.topic", "no.such.key")


async def test_confirmed_publishing_without_a_queue_is_dropped_unless_mandatory(link: Link) -> None:
    await link.publish(Message("amq.topic", "no.such.key", b"", Properties()))


async def test_unconfirmed_mandatory_publishing_without_a_queue_comes_back(link: Link) -> None:
    came_back: list[Returned] = []
    link.on_return(came_back.append)

    link.publish_nowait(
        Message(
            "", "nobody", b"call", Properties(correlation_id="7", headers={"a": 1}), mandatory=True
        )
    )

    await eventually(lambda: came_back)
    assert came_back == [
        Returned(
            312,
            "NO_ROUTE",
            "",
            "nobody",
            Properties(correlation_id="7", headers={"a": 1}),
            b"call",
        )
    ]


async def test_return_of_a_confirmed_publishing_is_not_told_to_listeners(link: Link) -> None:
    came_back: list[Returned] = []
    link.on_return(came_back.append)

    with pytest.raises(Unroutable):
        await link.publish(Message("", "nobody-confirmed", b"", Properties(), mandatory=True))
    link.publish_nowait(Message("", "nobody", b"", Properties(), mandatory=True))

    await eventually(lambda: came_back)
    assert [one.routing_key for one in came_back] == ["nobody"]


async def test_removed_return_listener_is_not_called(link: Link) -> None:
    removed: list[Returned] = []
    kept: list[Returned] = []
    remove = link.on_return(removed.append)
    link.on_return(kept.append)

    remove()
    link.publish_nowait(Message("", "nobody", b"", Properties(), mandatory=True))

    await eventually(lambda: kept)
    assert removed == []


async def test_unconfirmed_publishing_to_an_absent_exchange_harms_nobody(
    link: Link, queue: str
) -> None:
    inbox = Inbox(acks=True)
    await link.consume(queue, inbox)

    link.publish_nowait(Message("absent", "key", b"", Properties()))

    # RabbitMQ closes the channel over it: what was in flight there may be lost, what is confirmed is not.
    await link.publish(Message("", queue, b"confirmed", Properties()))
    await inbox.wait_for(b"confirmed")


async def test_full_queue_that_rejects_is_told_to_the_publisher(
    make_link: Callable[..., Link],
) -> None:
    """When the patience is over. At the publisher's own timeout it may just be on its way again, which is another error."""
    link = make_link(LinkOptions(rejected_patience=0.5))
    await link.open(timeout=15)
    await link.declare(
        Queue("small", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    )
    await link.publish(Message("", "small", b"1", Properties()))

    with pytest.raises(PublishRejected, match="full"):
        await link.publish(Message("", "small", b"2", Properties()), timeout=60)

    assert await link.message_count("small") == 1
    await link.aclose()


async def test_full_queue_that_gets_room_takes_what_it_had_rejected(link: Link) -> None:
    """A nack is tried again within the publisher's timeout: a full queue is emptied, a leader is elected."""
    await link.declare(
        Queue("small", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    )
    await link.publish(Message("", "small", b"0", Properties()))
    patient = [
        asyncio.ensure_future(link.publish(Message("", "small", b"%d" % n, Properties())))
        for n in range(1, 6)
    ]
    done, _ = await asyncio.wait(patient, timeout=0.3)
    assert not done

    inbox = Inbox(acks=True)
    await link.consume("small", inbox, ConsumeOptions(prefetch=1))
    await asyncio.gather(*patient)

    await inbox.wait(6)
    assert sorted(inbox.bodies) == [b"%d" % n for n in range(6)]
    assert link.statistics().rejected == 0


async def test_cancelled_wait_for_a_full_queue_leaves_nothing_behind(link: Link) -> None:
    await link.declare(
        Queue("small", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    )
    await link.publish(Message("", "small", b"0", Properties()))
    waiting = asyncio.ensure_future(link.publish(Message("", "small", b"1", Properties())))
    await asyncio.wait([waiting], timeout=0.2)

    waiting.cancel()
    await asyncio.wait([waiting])

    await eventually(lambda: link.statistics().unconfirmed == 0)
    assert await link.message_count("small") == 1


async def test_refused_unconfirmed_publishing_is_told_with_its_error(
    link: Link, queue: str
) -> None:
    told: list[tuple[Message, LinkError]] = []
    kept: list[Message] = []
    remove = link.on_refused(lambda message, error: told.append((message, error)))
    link.on_refused(lambda message, error: kept.append(message))
    wrong = Message("absent", "key", b"wrong", Properties())

    for number in range(20):
        link.publish_nowait(
            wrong if number == 10 else Message("", queue, b"%d" % number, Properties())
        )

    await eventually(lambda: told)
    [(message, error)] = told
    assert message is wrong
    assert isinstance(error, TopologyError)
    assert "absent" in str(error)

    async def all_others_came() -> bool:
        return await link.message_count(queue) == 19

    await eventually(all_others_came, what="what was written beside it arrives, once")
    remove()
    link.publish_nowait(wrong)
    await eventually(lambda: len(kept) == 2)
    assert len(told) == 1


async def test_publishing_with_time_to_be_sent_again_arrives_once_where_nothing_breaks(
    link: Link, queue: str
) -> None:
    until = time.monotonic() + 60
    for number in range(50):
        link.publish_nowait(Message("", queue, b"%d" % number, Properties()), resend_until=until)
    await link.publish(Message("", queue, b"last", Properties()))

    inbox = Inbox(acks=True)
    await link.consume(queue, inbox)
    await inbox.wait(51)

    assert sorted(inbox.bodies) == sorted([b"%d" % number for number in range(50)] + [b"last"])


async def test_confirmed_publishing_to_an_absent_exchange_names_it(link: Link, queue: str) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.publish(Message("absent", "key", b"", Properties()), timeout=10)

    await link.publish(Message("", queue, b"", Properties(), mandatory=True))


async def test_one_wrong_publishing_does_not_fail_those_beside_it(link: Link, queue: str) -> None:
    async def publish(number: int) -> str:
        exchange = "absent" if number == 7 else ""
        try:
            await link.publish(Message(exchange, queue, b"%d" % number, Properties()), timeout=10)
        except TopologyError:
            return "refused"
        return "confirmed"

    outcomes = await asyncio.gather(*(publish(number) for number in range(20)))

    assert outcomes == ["refused" if number == 7 else "confirmed" for number in range(20)]


async def test_expiration_that_is_no_number_is_rejected(link: Link, queue: str) -> None:
    with pytest.raises(PublishRejected, match="expiration"):
        await link.publish(Message("", queue, b"", Properties(expiration="soon")), timeout=10)


async def test_publishing_to_an_internal_exchange_is_refused(link: Link) -> None:
    await link.declare(Exchange("inside", internal=True))

    with pytest.raises(AccessRefused, match="inside"):
        await link.publish(Message("inside", "key", b"", Properties()), timeout=10)


@pytest.mark.parametrize(
    "properties",
    [
        Properties(headers={"a": {1, 2}}),
        Properties(headers={"a": 2**63}),
        Properties(correlation_id="x" * 256),
        Properties(priority=256),
    ],
    ids=["set", "too large a number", "too long a text", "too high a priority"],
)
async def test_what_amqp_cannot_carry_is_refused_before_it_is_sent(
    link: Link, queue: str, properties: Properties
) -> None:
    with pytest.raises(ProtocolError):
        await link.publish(Message("", queue, b"", properties))
    with pytest.raises(ProtocolError):
        link.publish_nowait(Message("", queue, b"", properties))

    await link.publish(Message("", queue, b"", Properties()))
    assert await link.message_count(queue) == 1


async def test_statistics_count_what_was_published_confirmed_and_returned(
    link: Link, queue: str
) -> None:
    await link.publish(Message("", queue, b"", Properties()))
    with pytest.raises(Unroutable):
        await link.publish(Message("", "nobody", b"", Properties(), mandatory=True))
    link.publish_nowait(Message("", queue, b"", Properties()))

    statistics = link.statistics()
    assert (statistics.published, statistics.returned, statistics.unconfirmed) == (3, 1, 0)
