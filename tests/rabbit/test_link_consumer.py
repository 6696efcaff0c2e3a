"""Consuming from real RabbitMQ through what goes wrong on a channel, and what is told to the broker when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest
from tests.link.inbox import Inbox, cut_until

from mycelia.amqp import (
    ConsumeOptions,
    Delivery,
    LinkOptions,
    LinkState,
    Message,
    Properties,
    Queue,
    RabbitLink,
)
from mycelia.broker.node import PrivateNode
from mycelia.errors import ProtocolError
from mycelia.testing import eventually


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(rabbit_uri)
    await link.open(timeout=15)
    yield link
    await link.aclose()


async def _deliver(link: RabbitLink, inbox: Inbox, body: bytes) -> Delivery:
    """Publish until it is routed: the queue may be on its way back."""

    async def arrived() -> bool:
        await link.publish(Message("", "q", body, Properties()))
        await asyncio.wait([asyncio.ensure_future(inbox.wait_for(body, 1.0))])
        return body in inbox.bodies

    await eventually(arrived, 20, what=f"{body!r} delivered")
    return await inbox.wait_for(body)


async def test_consumer_of_a_deleted_queue_declares_it_again_and_goes_on(
    link: RabbitLink, rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(acks=True)
    await link.declare(Queue("q"))
    await link.consume("q", inbox)
    other = RabbitLink(rabbit_uri, LinkOptions(name="deletes"))
    await other.open(timeout=15)

    await other.delete_queue("q")
    await other.aclose()

    await _deliver(link, inbox, b"after")
    assert any("consumer_lost queue=q" in message for message in caplog.messages)
    assert any("cancelled by the broker" in message for message in caplog.messages)


async def test_consumer_whose_channel_is_closed_by_an_error_goes_on(
    link: RabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    await link.declare(Queue("q"))
    consumer = await link.consume("q", inbox)
    await link.publish(Message("", "q", b"held", Properties()))
    held = await inbox.wait_for(b"held")

    held.settler.ledger.delivered_through(1000)  # type: ignore[attr-defined]
    held.settler.ack(999)  # the broker does not know this tag, and closes the channel
    again = (await inbox.wait(2, timeout=20))[1]

    assert again.body == b"held"
    assert again.redelivered
    held.ack()  # of a channel that is gone: does nothing
    again.ack()
    await eventually(lambda: consumer.unsettled == 0)
    assert link.state is LinkState.CONNECTED
    assert any("unknown delivery tag" in message for message in caplog.messages)


async def test_settling_late_on_a_closed_channel_does_not_cost_the_connection(
    link: RabbitLink,
) -> None:
    inbox = Inbox()
    await link.declare(Queue("q"))
    consumer = await link.consume("q", inbox)
    await link.publish(Message("", "q", b"held", Properties()))
    held = await inbox.wait_for(b"held")

    await consumer.aclose()
    held.ack()
    held.nack(requeue=True)

    await eventually(lambda: _is_ready(link, 1), 30, what="requeued by the broker")
    assert link.statistics().reconnects == 0
    assert link.state is LinkState.CONNECTED


async def _is_ready(link: RabbitLink, count: int) -> bool:
    return await link.message_count("q") == count


async def test_slow_handler_holds_back_nobodys_acknowledgement(
    link: RabbitLink, rabbit_vhost: str, rabbit_node: PrivateNode
) -> None:
    inbox = Inbox()
    await link.declare(Queue("q"))
    consumer = await link.consume("q", inbox, ConsumeOptions(prefetch=10))
    for number in range(10):
        await link.publish(Message("", "q", b"%d" % number, Properties()))
    held = await inbox.wait(10)

    for delivery in held[1:]:
        delivery.ack()

    def unacknowledged() -> bool:
        queue = rabbit_node.api.queue(rabbit_vhost, "q")
        return bool(queue) and queue.get("messages_unacknowledged") == 1

    await eventually(lambda: asyncio.to_thread(unacknowledged), 30, what="nine acks at the broker")
    assert consumer.unsettled == 1
    held[0].ack()


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"k": value}
    return value


def _publish_with_pika(uri: str, queue: str, bodies: dict[bytes, dict[str, Any]]) -> None:
    """Publish what our own codec refuses to write: by body, its headers."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    channel = connection.channel()
    channel.confirm_delivery()
    for body, headers in bodies.items():
        properties = pika.BasicProperties(
            headers=headers, correlation_id="c-1", reply_to="r-1", delivery_mode=2
        )
        channel.basic_publish("", queue, body, properties)
    connection.close()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_message_with_undecodable_headers_comes_up_with_its_fault_and_is_not_lost(
    link: RabbitLink, rabbit_uri: str, queue_type: str
) -> None:
    inbox = Inbox()
    await link.declare(Queue("q", arguments={"x-queue-type": queue_type}))
    consumer = await link.consume("q", inbox)

    deep = {"before": "b", "deep": _nested(70), "later": 7}
    await asyncio.to_thread(
        _publish_with_pika, rabbit_uri, "q", {b"first": {}, b"deep": deep, b"next": {}}
    )
    first, faulty, following = await inbox.wait(3)

    assert (first.fault, following.fault) == (None, None)
    assert [one.body for one in inbox.deliveries] == [b"first", b"deep", b"next"]
    assert isinstance(faulty.fault, ProtocolError)
    assert faulty.properties.headers == {"before": "b", "later": 7}
    assert (faulty.properties.correlation_id, faulty.properties.reply_to) == ("c-1", "r-1")
    assert b"\x04deepF" in faulty.raw_headers
    assert link.statistics().extra == {"undecodable": 1}
    assert link.statistics().reconnects == 0
    await consumer.aclose()  # nothing settled it: it is still there
    await eventually(lambda: _is_ready(link, 3), 30, what="all three back in the queue")


async def test_message_with_undecodable_headers_can_be_got(
    link: RabbitLink, rabbit_uri: str
) -> None:
    await link.declare(Queue("q"))
    await asyncio.to_thread(_publish_with_pika, rabbit_uri, "q", {b"deep": {"d": _nested(300)}})

    delivery = await link.get("q")

    assert delivery is not None
    assert isinstance(delivery.fault, ProtocolError)
    assert delivery.properties.correlation_id == "c-1"
    delivery.ack()
    assert link.statistics().reconnects == 0


async def test_stream_goes_on_behind_what_was_settled(
    link: RabbitLink, rabbit_uri: str, rabbit_vhost: str, rabbit_node: PrivateNode
) -> None:
    inbox = Inbox()
    lost: list[bool] = []
    await link.declare(Queue("s", arguments={"x-queue-type": "stream"}))
    await link.consume(
        "s",
        inbox,
        ConsumeOptions(
            prefetch=10,
            arguments={"x-stream-offset": "first"},
            on_lost=lambda: lost.append(True),
        ),
    )
    for number in range(6):
        await link.publish(Message("", "s", b"%d" % number, Properties()))
    held = await inbox.wait(6)
    for delivery in (held[0], held[1], held[3]):
        delivery.ack()

    async def cut() -> None:
        await asyncio.to_thread(rabbit_node.api.close_connections, rabbit_vhost)

    # of the link's two connections the management may list the other one first
    await cut_until(cut, lambda: bool(lost))
    await inbox.wait(10, 30)

    assert inbox.bodies[6:10] == [b"2", b"3", b"4", b"5"]


async def test_what_is_flushed_is_known_to_the_broker_though_the_process_dies_then(
    link: RabbitLink,
) -> None:
    """As a kill does, the connection ends at once, with what it has not sent."""
    inbox = Inbox()
    await link.declare(Queue("q", arguments={"x-queue-type": "classic"}))
    consumer = await link.consume("q", inbox, ConsumeOptions(prefetch=100))
    for number in range(10):
        await link.publish(Message("", "q", b"%d" % number, Properties()))
    await inbox.wait(10)

    for delivery in inbox.deliveries[:9]:
        delivery.ack()
    await consumer.flush()
    connection = inbox.deliveries[9].settler._connection  # type: ignore[attr-defined]
    connection._transport.abort()

    await inbox.wait(11)
    assert inbox.bodies[10:] == [b"9"]
    await link.publish(Message("", "q", b"after", Properties()))
    await inbox.wait_for(b"after")
    assert inbox.bodies[10:] == [b"9", b"after"]
