"""How often a quorum queue has taken a message back: told in another header by RabbitMQ 4.3 than by those before."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import Message, Properties, Queue, RabbitLink
from mycelia.entrypoints.received import returns_of


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(rabbit_uri)
    await link.open(timeout=15)
    await link.declare(Queue("q", arguments={"x-queue-type": "quorum"}))
    await link.publish(Message("", "q", b"1", Properties(delivery_mode=2), mandatory=True))
    yield link
    await link.aclose()


async def test_nacked_message_counts_its_returns(link: RabbitLink) -> None:
    inbox = Inbox()
    await link.consume("q", inbox)

    for at in range(4):
        (await inbox.wait(at + 1))[at].nack(requeue=True)

    await inbox.wait(5)
    assert [returns_of(delivery, True) for delivery in inbox.deliveries] == [0, 1, 2, 3, 4]


async def test_message_that_outlives_its_consumers_counts_its_returns(link: RabbitLink) -> None:
    inbox = Inbox()

    for at in range(3):
        consumer = await link.consume("q", inbox)
        await inbox.wait(at + 1)
        await consumer.aclose()

    assert [returns_of(delivery, True) for delivery in inbox.deliveries] == [0, 1, 2]
