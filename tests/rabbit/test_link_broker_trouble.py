"""The broker itself is in trouble: alarms, restarts, kills."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import Binding, Exchange, LinkState, Message, Properties, Queue, RabbitLink
from mycelia.broker.node import PrivateNode
from mycelia.errors import BrokerBlocked, BrokerUnavailable
from mycelia.testing import eventually


@pytest.fixture
async def link(own_rabbit_node: PrivateNode) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(own_rabbit_node.uri())
    await link.open(timeout=30)
    await link.declare(Queue("q"))
    yield link
    await link.aclose(timeout=2)


async def _start_again(node: PrivateNode) -> None:
    """Start the node on the port it had. A process killed a moment ago may still hold it."""
    port = node.port

    def is_free() -> bool:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

    await eventually(is_free, 30, what=f"port {port} is free")
    await asyncio.to_thread(node.start, leash=True)
    assert node.port == port


async def test_blocked_connection_is_back_pressure_with_a_bound(
    link: RabbitLink, own_rabbit_node: PrivateNode, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(acks=True)
    states: list[LinkState] = []
    link.on_state_change(states.append)
    await link.consume("q", inbox)
    for number in range(10):
        await link.publish(Message("", "q", b"%d" % number, Properties()))

    await asyncio.to_thread(own_rabbit_node.ctl, "set_vm_memory_high_watermark", "0")
    # the broker tells a connection when it publishes
    with pytest.raises(BrokerBlocked, match="not confirmed within 1 s"):
        await link.publish(Message("", "q", b"into the alarm", Properties()), timeout=1)
    assert link.state is LinkState.BLOCKED
    assert not link.writable
    with pytest.raises(BrokerBlocked, match="alarm"):
        link.publish_nowait(Message("", "q", b"", Properties()))
    with pytest.raises(BrokerBlocked, match="took no publishings"):
        await link.ready(timeout=0.1)
    waiting = asyncio.ensure_future(
        link.publish(Message("", "q", b"waited", Properties()), timeout=60)
    )
    ready = asyncio.ensure_future(link.ready(timeout=60))

    await asyncio.to_thread(own_rabbit_node.ctl, "set_vm_memory_high_watermark", "0.6")
    await ready
    await waiting
    await inbox.wait_for(b"waited")

    assert states == [LinkState.BLOCKED, LinkState.CONNECTED]
    assert link.statistics().blocked_s > 0.1
    assert sum("publishing_blocked" in one for one in caplog.messages) == 1
    assert sum("publishing_unblocked" in one for one in caplog.messages) == 1


@pytest.mark.long
async def test_link_survives_a_restart_of_the_broker(
    link: RabbitLink, own_rabbit_node: PrivateNode
) -> None:
    inbox = Inbox(acks=True)
    states: list[LinkState] = []
    link.on_state_change(states.append)
    await link.declare(
        Exchange("e", durable=False),
        Queue("own", durable=False, exclusive=True),
        Binding("own", "e", "#"),
    )
    await link.consume("own", inbox)

    await asyncio.to_thread(own_rabbit_node.stop)
    await eventually(lambda: link.state is LinkState.RECONNECTING, 30)
    with pytest.raises(BrokerUnavailable, match="no connection"):
        await link.publish(Message("e", "k", b"too short", Properties()), timeout=0.2)
    with pytest.raises(BrokerUnavailable):
        await link.declare(Queue("later"), timeout=0.2)
    waiting = asyncio.ensure_future(
        link.publish(Message("e", "k", b"waited", Properties()), timeout=60)
    )
    await _start_again(own_rabbit_node)
    await waiting
    await link.ready(timeout=30)

    # the transient exchange and the exclusive queue were lost with the broker, and are there again
    async def arrives() -> bool:
        await link.publish(Message("e", "k", b"after", Properties()), timeout=30)
        return b"after" in inbox.bodies

    await eventually(arrives, 30, interval=0.1, what="consuming again")
    assert states[0] is LinkState.RECONNECTING
    await eventually(lambda: states[-1] is LinkState.CONNECTED, 30)


async def test_nothing_confirmed_is_lost_when_the_broker_is_killed(
    link: RabbitLink, own_rabbit_node: PrivateNode
) -> None:
    await link.declare(Queue("safe", arguments={"x-queue-type": "quorum"}))
    confirmed: list[bytes] = []
    stop = asyncio.Event()

    async def publish_on(name: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            body = b"%d-%d" % (name, count)
            await link.publish(Message("", "safe", body, Properties(delivery_mode=2)), timeout=60)
            confirmed.append(body)

    loop = asyncio.get_running_loop()
    # RabbitMQ 3.10 notes a new quorum queue on disk only half a second after the declaration
    on_disk_at = loop.time() + 1.5
    publishers = [asyncio.ensure_future(publish_on(name)) for name in range(10)]
    await eventually(lambda: len(confirmed) > 50 and loop.time() > on_disk_at, 20)
    await asyncio.to_thread(own_rabbit_node.kill)
    await _start_again(own_rabbit_node)
    seen = len(confirmed)
    await eventually(lambda: len(confirmed) > seen + 50, 60, what="publishing again")
    stop.set()
    await asyncio.gather(*publishers)

    inbox = Inbox(acks=True)
    await link.consume("safe", inbox)
    await eventually(
        lambda: set(confirmed) <= set(inbox.bodies), 30, what="all that was confirmed is there"
    )


@pytest.mark.long
async def test_open_waits_for_a_broker_that_starts_later(
    own_rabbit_node: PrivateNode, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(own_rabbit_node.stop)
    link = RabbitLink(own_rabbit_node.uri())
    opening = asyncio.ensure_future(link.open())
    await eventually(lambda: any("broker_unreachable" in one for one in caplog.messages), 30)
    assert link.state is LinkState.CONNECTING

    await _start_again(own_rabbit_node)
    await asyncio.wait_for(opening, 30)

    assert link.state is LinkState.CONNECTED
    assert sum("broker_unreachable" in one for one in caplog.messages) <= 2
    await link.aclose()


@pytest.mark.long
async def test_link_closes_in_time_while_the_broker_is_down(
    link: RabbitLink, own_rabbit_node: PrivateNode
) -> None:
    await link.consume("q", Inbox())
    await asyncio.to_thread(own_rabbit_node.stop)
    await eventually(lambda: link.state is LinkState.RECONNECTING, 30)
    waiting = asyncio.ensure_future(link.publish(Message("", "q", b"", Properties()), timeout=60))
    await asyncio.sleep(0)
    started = asyncio.get_running_loop().time()

    await link.aclose(timeout=2)

    assert asyncio.get_running_loop().time() - started < 20  # the publishing would have 60
    assert link.state is LinkState.CLOSED
    with pytest.raises(BrokerUnavailable, match="closed before the broker confirmed"):
        await waiting
    await _start_again(own_rabbit_node)


async def test_refusal_while_reconnecting_is_waited_out(
    link: RabbitLink, own_rabbit_node: PrivateNode, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(own_rabbit_node.ctl, "change_password", "guest", "other")
    try:
        await asyncio.to_thread(
            own_rabbit_node.ctl, "close_all_connections", "--vhost", "/", "test"
        )
        await eventually(lambda: any("refused user" in one for one in caplog.messages), 30)
        assert link.state is LinkState.RECONNECTING
    finally:
        await asyncio.to_thread(own_rabbit_node.ctl, "change_password", "guest", "guest")

    await link.ready(timeout=30)
    assert link.state is LinkState.CONNECTED
