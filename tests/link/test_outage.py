"""What a link does when its connections are cut: everything it had comes back, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.link.inbox import Inbox, cut_until

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    Link,
    LinkState,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import TopologyError
from mycelia.testing.eventually import eventually

Cut = Callable[[], Awaitable[None]]


async def test_cut_link_reconnects_by_itself(link: Link, cut: Cut) -> None:
    states: list[LinkState] = []
    link.on_state_change(states.append)

    await cut()
    await link.ready(timeout=15)

    assert states[0] is LinkState.RECONNECTING
    assert link.state is LinkState.CONNECTED
    assert link.statistics().reconnects >= 1


async def test_cut_consumer_resumes_and_gets_the_unsettled_again(
    link: Link, any_queue: str, cut: Cut
) -> None:
    inbox = Inbox()
    consumer = await link.consume(any_queue, inbox)
    for body in (b"0", b"1"):
        await link.publish(Message("", any_queue, body, Properties()))
    await inbox.wait(2)
    inbox.deliveries[0].ack()
    await asyncio.sleep(0)  # the ack leaves with this turn

    await cut_until(cut, lambda: inbox.deliveries[1].is_lost)

    again = (await inbox.wait(3, 20))[2]
    inbox.deliveries[1].ack()  # of the lost connection: does nothing
    assert (again.body, again.redelivered) == (b"1", True)
    assert consumer.unsettled == 1
    assert len(inbox.deliveries) == 3


async def test_exclusive_queue_is_declared_and_bound_again(link: Link, cut: Cut) -> None:
    await link.declare(Exchange("x"), Queue("mine", exclusive=True), Binding("mine", "x", "#"))
    inbox = Inbox(acks=True)
    lost: list[bool] = []
    await link.consume("mine", inbox, ConsumeOptions(on_lost=lambda: lost.append(True)))
    await link.publish(Message("x", "any", b"before", Properties()))
    await inbox.wait(1)

    await cut_until(cut, lambda: bool(lost))

    async def arrives() -> bool:
        await link.publish(Message("x", "any", b"again", Properties()), timeout=15)
        return b"again" in inbox.bodies

    await eventually(arrives, 20)


async def test_publishing_waits_for_the_reconnect(link: Link, queue: str, cut: Cut) -> None:
    await cut()

    await link.publish(Message("", queue, b"", Properties(), mandatory=True), timeout=15)

    assert await link.message_count(queue) == 1


async def test_cancelled_consumer_does_not_come_back(link: Link, queue: str, cut: Cut) -> None:
    inbox = Inbox(acks=True)
    consumer = await link.consume(queue, inbox)
    await consumer.cancel()

    await cut()
    await link.publish(Message("", queue, b"", Properties()), timeout=15)

    assert await link.message_count(queue) == 1
    assert inbox.bodies == []


async def test_forgotten_queue_is_not_declared_again(link: Link, cut: Cut) -> None:
    mine = Queue("mine", exclusive=True)
    await link.declare(mine)
    link.forget(mine)

    async def is_free() -> bool:
        await (
            cut()
        )  # of the link's two connections the queue is the second's, which may be listed later
        await link.ready(timeout=15)
        try:
            await link.declare(Queue("mine"))
        except TopologyError:
            return False
        return True

    await eventually(is_free, 30, what="the exclusive queue is gone and does not come back")

    await link.publish(Message("", "mine", b"", Properties(), mandatory=True))


async def test_stream_consumer_goes_on_from_the_first_unsettled(link: Link, cut: Cut) -> None:
    """And not from the `x-stream-offset` it began with: a reconnect must not replay a month."""
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    for number in range(6):
        await link.publish(Message("", "log", b"%d" % number, Properties()))
    inbox = Inbox()
    await link.consume(
        "log", inbox, ConsumeOptions(prefetch=4, arguments={"x-stream-offset": "first"})
    )
    await inbox.wait(4)
    for delivery in inbox.deliveries[:2]:
        delivery.ack()
    await inbox.wait(6)

    await cut_until(cut, lambda: inbox.deliveries[5].is_lost)

    await inbox.wait(10, 20)
    assert inbox.bodies[6:] == [b"2", b"3", b"4", b"5"]


async def test_stream_consumer_misses_nothing_that_came_while_it_was_away(
    link: Link, cut: Cut
) -> None:
    """It began at `next`; after the reconnect `next` would be too late."""
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    inbox = Inbox(acks=True)
    lost: list[bool] = []
    await link.consume("log", inbox, ConsumeOptions(prefetch=10, on_lost=lambda: lost.append(True)))
    await link.publish(Message("", "log", b"before", Properties()))
    await inbox.wait(1)

    await cut_until(cut, lambda: bool(lost))
    await link.publish(Message("", "log", b"while away", Properties()), timeout=15)
    await link.publish(Message("", "log", b"after", Properties()), timeout=15)

    await inbox.wait_for(b"after", 20)
    assert inbox.bodies == [b"before", b"while away", b"after"]
