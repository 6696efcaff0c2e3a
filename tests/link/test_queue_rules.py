"""What queues do by their own rules: requeue, count, expire, overflow, prioritise, dead-letter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    Link,
    Message,
    Properties,
    Queue,
)
from mycelia.testing.eventually import eventually

ReadyCount = Callable[[str, int], Awaitable[None]]

TO_DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


@pytest.fixture
async def dead(link: Link) -> Inbox:
    """What was dead-lettered with `TO_DEAD`."""
    await link.declare(Queue("dead"))
    inbox = Inbox(acks=True)
    await link.consume("dead", inbox)
    return inbox


async def publish(link: Link, queue: str, *bodies: bytes, **properties: Any) -> None:
    for body in bodies:
        await link.publish(Message("", queue, body, Properties(**properties)))


DEATH_KEYS = ("exchange", "queue", "reason")


def returns_header(broker_version: tuple[int, ...]) -> str:
    """Where a quorum queue counts every return: RabbitMQ 4.3 counts only failures in `x-delivery-count`."""
    return "x-delivery-count" if broker_version < (4, 3) else "x-acquired-count"


def death(delivery: Delivery) -> dict[str, Any]:
    """The newest entry of `x-death`, without its time, which must be about now."""
    assert delivery.properties.headers is not None
    newest = dict(delivery.properties.headers["x-death"][0])
    assert abs(datetime.now(UTC) - newest.pop("time")) < timedelta(minutes=2)
    return newest


# --- requeue -------------------------------------------------------------------------------------


async def test_requeued_message_is_redelivered_and_says_so(link: Link, any_queue: str) -> None:
    await publish(link, any_queue, b"1")
    inbox = Inbox()
    await link.consume(any_queue, inbox)
    (first,) = await inbox.wait(1)
    assert not first.redelivered

    first.nack(requeue=True)

    _, second = await inbox.wait(2)
    assert (second.body, second.redelivered) == (b"1", True)


async def test_classic_queue_takes_a_message_back_to_where_it_was(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "classic"}))
    await publish(link, "work", b"0", b"1", b"2", b"3", b"4")
    inbox = Inbox()
    await link.consume("work", inbox, ConsumeOptions(prefetch=3))
    await inbox.wait(3)

    inbox.deliveries[0].nack(requeue=True)
    await inbox.wait(4)
    inbox.deliveries[1].ack()
    inbox.deliveries[2].ack()

    await inbox.wait(6)
    assert inbox.bodies == [b"0", b"1", b"2", b"0", b"3", b"4"]


async def test_quorum_queue_without_a_limit_takes_a_message_back_at_its_end(
    link: Link, queue: str, broker_version: tuple[int, ...]
) -> None:
    """From RabbitMQ 4.0 on every quorum queue has a limit (20), and one with a limit takes it back in front."""
    await publish(link, queue, b"0", b"1", b"2", b"3")
    inbox = Inbox()
    await link.consume(queue, inbox, ConsumeOptions(prefetch=1))

    for at in range(4):
        (await inbox.wait(at + 1))[at].nack(requeue=True)

    await inbox.wait(5)
    at_the_end, in_front = [b"0", b"1", b"2", b"3", b"0"], [b"0"] * 5
    assert inbox.bodies == (at_the_end if broker_version < (4,) else in_front)


async def test_quorum_queue_counts_deliveries(
    link: Link, queue: str, broker_version: tuple[int, ...]
) -> None:
    await publish(link, queue, b"1", headers={"mine": 1})
    inbox = Inbox()
    await link.consume(queue, inbox)

    for at in range(3):
        (await inbox.wait(at + 1))[at].nack(requeue=True)

    await inbox.wait(4)
    counts = returns_header(broker_version)
    assert [delivery.properties.headers for delivery in inbox.deliveries] == [
        {"mine": 1},
        {"mine": 1, counts: 1},
        {"mine": 1, counts: 2},
        {"mine": 1, counts: 3},
    ]


async def test_classic_queue_does_not_count_deliveries(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "classic"}))
    await publish(link, "work", b"1")
    inbox = Inbox()
    await link.consume("work", inbox)
    (await inbox.wait(1))[0].nack(requeue=True)

    _, second = await inbox.wait(2)
    assert second.properties.headers is None


async def test_closed_consumer_counts_as_a_delivery_on_a_quorum_queue(
    link: Link, queue: str, broker_version: tuple[int, ...]
) -> None:
    await publish(link, queue, b"1")
    inbox = Inbox()
    consumer = await link.consume(queue, inbox)
    await inbox.wait(1)
    await consumer.aclose()

    await link.consume(queue, inbox)

    _, second = await inbox.wait(2)
    assert second.properties.headers == {"x-delivery-count": 1, returns_header(broker_version): 1}


async def test_message_past_the_delivery_limit_is_dead_lettered(link: Link, dead: Inbox) -> None:
    await link.declare(
        Queue("work", arguments={"x-queue-type": "quorum", "x-delivery-limit": 2, **TO_DEAD})
    )
    await publish(link, "work", b"poison", headers={"mine": 1})
    inbox = Inbox()

    for at in range(3):  # closed consumers count as failures in every version, nacks up to 4.2
        consumer = await link.consume("work", inbox)
        await inbox.wait(at + 1)
        await consumer.aclose()

    (delivery,) = await dead.wait(1)
    assert death(delivery)["reason"] == "delivery_limit"
    assert "x-delivery-count" not in (delivery.properties.headers or {})
    assert len(inbox.deliveries) == 3


async def test_delivery_limit_keeps_a_returned_message_in_front(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "quorum", "x-delivery-limit": 5}))
    await publish(link, "work", b"0", b"1", b"2")
    inbox = Inbox()
    await link.consume("work", inbox, ConsumeOptions(prefetch=1))

    (await inbox.wait(1))[0].nack(requeue=True)

    await inbox.wait(2)
    assert inbox.bodies == [b"0", b"0"]


# --- dead letters --------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_rejected_message_is_dead_lettered_with_its_reason(
    link: Link, dead: Inbox, queue_type: str
) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": queue_type, **TO_DEAD}))
    await publish(link, "work", b"bad", headers={"mine": 1}, message_id="m-1")
    inbox = Inbox()
    await link.consume("work", inbox)

    (await inbox.wait(1))[0].nack()

    (delivery,) = await dead.wait(1)
    assert (delivery.body, delivery.exchange, delivery.routing_key) == (b"bad", "", "dead")
    assert delivery.redelivered is False
    assert delivery.properties.message_id == "m-1"
    assert death(delivery) == {
        "count": 1,
        "reason": "rejected",
        "queue": "work",
        "exchange": "",
        "routing-keys": ["work"],
    }
    headers = dict(delivery.properties.headers or {})
    del headers["x-death"]
    since_4_0 = {f"x-last-death-{key}": headers.get(f"x-first-death-{key}") for key in DEATH_KEYS}
    assert since_4_0.items() >= {
        (name, value) for name, value in headers.items() if name.startswith("x-last-death-")
    }
    assert {name: headers[name] for name in headers if name not in since_4_0} == {
        "mine": 1,
        "x-first-death-exchange": "",
        "x-first-death-queue": "work",
        "x-first-death-reason": "rejected",
    }


async def test_rejected_message_without_a_dead_letter_exchange_is_dropped(
    link: Link, any_queue: str, ready_count: ReadyCount
) -> None:
    await publish(link, any_queue, b"bad")
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)

    (await inbox.wait(1))[0].nack()
    await consumer.aclose()

    await ready_count(any_queue, 0)


async def test_dead_letter_keeps_its_routing_key_unless_the_queue_names_one(link: Link) -> None:
    await link.declare(
        Exchange("dlx", "topic"),
        Queue("dead"),
        Binding("dead", "dlx", "#"),
        Queue("work", arguments={"x-dead-letter-exchange": "dlx"}),
        Exchange("x"),
        Binding("work", "x", "#"),
    )
    dead = Inbox()
    await link.consume("dead", dead)
    inbox = Inbox()
    await link.consume("work", inbox)
    await link.publish(Message("x", "order.placed", b"", Properties()))

    (await inbox.wait(1))[0].nack()

    (delivery,) = await dead.wait(1)
    assert (delivery.exchange, delivery.routing_key) == ("dlx", "order.placed")
    assert death(delivery)["exchange"] == "x"
    assert death(delivery)["routing-keys"] == ["order.placed"]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_repeated_death_in_one_queue_is_counted_up(
    link: Link, dead: Inbox, queue_type: str
) -> None:
    """The loop of every delayed retry: rejected, expired in the delay queue, delivered again."""
    back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"}
    delay = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "delay"}
    await link.declare(
        Queue("work", arguments={"x-queue-type": queue_type, **delay}),
        Queue("delay", arguments={"x-queue-type": queue_type, "x-message-ttl": 50, **back}),
    )
    await publish(link, "work", b"flaky")
    inbox = Inbox()
    await link.consume("work", inbox)

    for at in range(3):
        (await inbox.wait(at + 1))[at].nack()

    last = (await inbox.wait(4))[3]
    assert last.properties.headers is not None
    deaths = [
        (one["queue"], one["reason"], one["count"]) for one in last.properties.headers["x-death"]
    ]
    assert deaths == [("delay", "expired", 3), ("work", "rejected", 3)]
    assert last.properties.headers["x-first-death-reason"] == "rejected"


async def test_message_going_round_with_nobody_rejecting_it_is_dropped(link: Link) -> None:
    await link.declare(
        Queue("a", arguments={"x-message-ttl": 20, **TO_DEAD, "x-dead-letter-routing-key": "b"}),
        Queue("b", arguments={"x-message-ttl": 20, **TO_DEAD, "x-dead-letter-routing-key": "a"}),
        Queue("witness"),
    )
    await publish(link, "a", b"round")

    async def both_empty() -> bool:
        return await link.message_count("a") + await link.message_count("b") == 0

    await eventually(both_empty)


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_message_expires_by_its_own_ttl(link: Link, dead: Inbox, queue_type: str) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": queue_type, **TO_DEAD}))

    await publish(link, "work", b"late", expiration="30")

    (delivery,) = await dead.wait(1)
    assert death(delivery) == {
        "count": 1,
        "reason": "expired",
        "queue": "work",
        "exchange": "",
        "routing-keys": ["work"],
        "original-expiration": "30",
    }
    assert delivery.properties.expiration is None


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_message_expires_by_the_ttl_of_its_queue(
    link: Link, dead: Inbox, queue_type: str
) -> None:
    await link.declare(
        Queue("work", arguments={"x-queue-type": queue_type, "x-message-ttl": 30, **TO_DEAD})
    )

    await publish(link, "work", b"late", expiration="60000")

    (delivery,) = await dead.wait(1)
    assert death(delivery)["reason"] == "expired"


async def test_message_behind_a_longer_lived_one_does_not_expire_before_it(
    link: Link, dead: Inbox, ready_count: ReadyCount
) -> None:
    await link.declare(Queue("work", arguments=TO_DEAD))
    await publish(link, "work", b"stays", expiration="60000")
    await publish(link, "work", b"short", expiration="1")
    await publish(link, "marker", b"")  # nobody's: just a round trip
    await ready_count("work", 2)

    inbox = Inbox()
    await link.consume("work", inbox, ConsumeOptions(prefetch=1))

    (delivery,) = await dead.wait(1)
    assert delivery.body == b"short"
    await inbox.wait(1)  # on another channel: nothing orders the two
    assert inbox.bodies == [b"stays"]


async def test_message_with_ttl_0_is_delivered_only_where_a_consumer_is_ready(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-queue-type": "classic"}))
    await publish(link, "work", b"nobody is here", expiration="0")
    inbox = Inbox()
    await link.consume("work", inbox)

    await publish(link, "work", b"now", expiration="0")

    await inbox.wait(1)
    assert inbox.bodies == [b"now"]


async def test_delivered_message_does_not_expire(link: Link, dead: Inbox) -> None:
    await link.declare(Queue("work", arguments=TO_DEAD))
    await link.declare(Queue("clock", arguments=TO_DEAD))
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    await publish(link, "work", b"held", expiration="30")
    (held,) = await inbox.wait(1)

    await publish(link, "clock", b"tick", expiration="60")
    await dead.wait(1)
    held.ack()
    await consumer.aclose()

    assert dead.bodies == [b"tick"]


# --- length and priority -------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_full_queue_drops_its_oldest_message(
    link: Link, dead: Inbox, queue_type: str, ready_count: ReadyCount
) -> None:
    await link.declare(
        Queue("work", arguments={"x-queue-type": queue_type, "x-max-length": 2, **TO_DEAD})
    )

    await publish(link, "work", b"0", b"1", b"2")

    (delivery,) = await dead.wait(1)
    assert (delivery.body, death(delivery)["reason"]) == (b"0", "maxlen")
    await ready_count("work", 2)


async def test_queue_full_by_bytes_drops_its_oldest_message(
    link: Link, dead: Inbox, ready_count: ReadyCount
) -> None:
    await link.declare(Queue("work", arguments={"x-max-length-bytes": 10, **TO_DEAD}))

    await publish(link, "work", b"aaaaaa", b"bbbb", b"c")

    await dead.wait(1)
    assert dead.bodies == [b"aaaaaa"]
    await ready_count("work", 2)


async def test_higher_priority_is_delivered_first(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-max-priority": 5}))
    for priority in (0, 3, None, 9, 5):
        await publish(link, "work", str(priority).encode(), priority=priority)
    inbox = Inbox(acks=True)

    await link.consume("work", inbox, ConsumeOptions(prefetch=1))

    await inbox.wait(5)
    assert inbox.bodies == [b"9", b"5", b"3", b"0", b"None"]
