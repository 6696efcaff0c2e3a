"""The broker closes the channel of a consumer that leaves a delivery unsettled for too long (`consumer_timeout`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import ConsumeOptions, Message, Properties, Queue, RabbitLink
from mycelia.broker.node import PrivateNode
from mycelia.testing import eventually


async def set_limits(node: PrivateNode, *, timeout: int, tick: int) -> None:
    limits = ("consumer_timeout", timeout), ("channel_tick_interval", tick)
    set_all = ", ".join(f"application:set_env(rabbit, {name}, {ms})" for name, ms in limits)
    await asyncio.to_thread(node.ctl, "eval", f"{set_all}.")


@pytest.fixture
async def link(own_rabbit_node: PrivateNode) -> AsyncIterator[RabbitLink]:
    """On a broker that gives a delivery one second (a channel reads both settings when it is opened)."""
    node = own_rabbit_node
    await set_limits(node, timeout=1_000, tick=250)
    link = RabbitLink(node.uri())
    await link.open(timeout=30)
    yield link
    await link.aclose(timeout=2)
    await set_limits(node, timeout=1_800_000, tick=60_000)


@pytest.fixture
def before_4_3(rabbit_version: tuple[int, ...]) -> None:
    if rabbit_version >= (4, 3):
        pytest.skip("RabbitMQ 4.3 cancels the consumer (quorum), or sets no limit (classic)")


@pytest.fixture
def from_4_3_on(rabbit_version: tuple[int, ...]) -> None:
    if rabbit_version < (4, 3):
        pytest.skip("RabbitMQ before 4.3 closes the channel: the test below")


@pytest.mark.usefixtures("from_4_3_on")
async def test_ack_timeout_of_4_3_is_a_loss_that_names_the_setting(
    link: RabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    """It cancels the consumer and says no more, so the line can only name what it may have been."""
    slow = Inbox()
    await link.declare(Queue("slow", arguments={"x-queue-type": "quorum"}))
    await link.consume("slow", slow)
    await link.publish(Message("", "slow", b"long", Properties()))
    held = (await slow.wait(1))[0]

    again = (await slow.wait(2, 60))[1]
    again.ack()

    assert held.is_lost
    assert again.redelivered
    (line,) = [one for one in caplog.messages if one.startswith("consumer_lost queue=slow")]
    assert "consumer_timeout" in line


@pytest.mark.usefixtures("before_4_3")
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
async def test_ack_timeout_is_one_error_that_names_the_setting(
    link: RabbitLink, caplog: pytest.LogCaptureFixture, queue_type: str
) -> None:
    lost: list[bool] = []
    slow, quick = Inbox(), Inbox(acks=True)
    await link.declare(
        Queue("slow", arguments={"x-queue-type": queue_type}),
        Queue("quick", arguments={"x-queue-type": queue_type}),
    )
    consumer = await link.consume("slow", slow, ConsumeOptions(on_lost=lambda: lost.append(True)))
    await link.consume("quick", quick)
    await link.publish(Message("", "slow", b"long", Properties()))
    held = (await slow.wait(1))[0]

    again = (await slow.wait(2, 60))[1]  # nobody settled it in time
    again.ack()
    await eventually(lambda: consumer.unsettled == 0)
    await link.publish(Message("", "quick", b"", Properties()))
    await quick.wait(1)

    lines = [one for one in caplog.records if one.levelname == "ERROR"]
    assert len(lines) == 1
    text = lines[0].getMessage()
    assert text.startswith("delivery_ack_timeout queue=slow consumer_timeout_ms=1000 ")
    assert "Raise consumer_timeout in rabbitmq.conf" in text
    assert not any(one.startswith("consumer_lost") for one in caplog.messages)
    assert lost == [True]
    assert held.is_lost
    assert again.redelivered
    assert link.statistics().reconnects == 0
