"""Opening, closing, state and what a closed link answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import Link, LinkState, Message, Properties, Queue
from mycelia.errors import BrokerUnavailable


async def test_link_tells_its_states_from_closed_to_closed(make_link: Callable[[], Link]) -> None:
    link = make_link()
    states = [link.state]
    link.on_state_change(states.append)

    await link.open(timeout=15)
    await link.aclose()

    assert states == [
        LinkState.CLOSED,
        LinkState.CONNECTING,
        LinkState.CONNECTED,
        LinkState.CLOSED,
    ]


async def test_removed_state_listener_is_not_called(make_link: Callable[[], Link]) -> None:
    link = make_link()
    states: list[LinkState] = []
    remove = link.on_state_change(states.append)

    remove()
    await link.open(timeout=15)
    await link.aclose()

    assert states == []


async def test_open_link_is_writable_and_ready(link: Link) -> None:
    await link.ready(timeout=15)

    assert link.writable
    assert link.state is LinkState.CONNECTED


async def test_opening_an_open_link_does_nothing(link: Link) -> None:
    await link.open(timeout=5)

    assert link.state is LinkState.CONNECTED


async def test_closing_twice_does_nothing(link: Link) -> None:
    await link.aclose()
    await link.aclose()

    assert link.state is LinkState.CLOSED


async def test_closing_a_link_that_was_never_opened_does_nothing(
    make_link: Callable[[], Link],
) -> None:
    link = make_link()

    await link.aclose()

    assert link.state is LinkState.CLOSED


async def test_closed_link_refuses_to_publish_and_to_consume(link: Link, queue: str) -> None:
    await link.aclose()

    assert not link.writable
    with pytest.raises(BrokerUnavailable):
        link.publish_nowait(Message("", queue, b"", Properties()))
    with pytest.raises(BrokerUnavailable):
        await link.publish(Message("", queue, b"", Properties()), timeout=0.2)
    with pytest.raises(BrokerUnavailable):
        await link.consume(queue, Inbox(), timeout=0.2)
    with pytest.raises(BrokerUnavailable):
        await link.declare(Queue("other"), timeout=0.2)
    with pytest.raises(BrokerUnavailable):
        await link.ready(timeout=0.2)


async def test_link_that_was_never_opened_refuses_to_publish(
    make_link: Callable[[], Link],
) -> None:
    link = make_link()

    with pytest.raises(BrokerUnavailable):
        link.publish_nowait(Message("", "work", b"", Properties()))


async def test_closed_link_has_written_what_was_published(
    make_link: Callable[[], Link], link: Link
) -> None:
    # A classic queue: RabbitMQ 3.10 may forget what was published to a quorum queue without confirm by a channel that
    # is closed at once, long after it has read it.
    queue = "plain"
    await link.declare(Queue(queue))
    other = make_link()
    await other.open(timeout=15)
    inbox = Inbox(acks=True)
    await link.consume(queue, inbox)

    for number in range(50):
        other.publish_nowait(Message("", queue, b"%d" % number, Properties()))
    await other.aclose()

    await inbox.wait(50)
    assert inbox.bodies == [b"%d" % number for number in range(50)]


async def test_closed_link_has_written_its_acks(
    make_link: Callable[[], Link], link: Link, queue: str
) -> None:
    other = make_link()
    await other.open(timeout=15)
    inbox = Inbox()
    await other.consume(queue, inbox)
    for number in range(5):
        await link.publish(Message("", queue, b"%d" % number, Properties()))
    await inbox.wait(5)

    for delivery in inbox.deliveries[:4]:
        delivery.ack()
    await other.aclose()

    left = Inbox()
    await link.consume(queue, left)
    await left.wait(1)
    assert left.bodies == [b"4"]


async def test_no_delivery_comes_after_the_link_is_closed(
    make_link: Callable[[], Link], link: Link, queue: str
) -> None:
    other = make_link()
    await other.open(timeout=15)
    inbox = Inbox()
    await other.consume(queue, inbox)

    await other.aclose()
    await link.publish(Message("", queue, b"later", Properties()))
    mine = Inbox(acks=True)
    await link.consume(queue, mine)

    await mine.wait(1)
    assert inbox.bodies == []


async def test_cancelled_publisher_leaves_the_link_in_order(link: Link, queue: str) -> None:
    task = asyncio.ensure_future(link.publish(Message("", queue, b"given up", Properties())))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    await link.publish(Message("", queue, b"next", Properties()))
    inbox = Inbox(acks=True)
    await link.consume(queue, inbox)

    await inbox.wait_for(b"next")
    assert link.statistics().unconfirmed == 0
