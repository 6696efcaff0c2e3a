"""Connecting, reconnecting and closing while the network fails."""

from __future__ import annotations

import asyncio

import pytest
from tests.faults.conftest import HEARTBEAT_S, NOTICED_S, QUEUE
from tests.link.inbox import Inbox

from mycelia.amqp import LinkOptions, LinkState, Message, Properties
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.errors import BrokerUnavailable
from mycelia.testing import Fault, TcpProxy, eventually


@pytest.fixture
def closed_link(proxy: TcpProxy, rabbit_uri: str) -> RabbitLink:
    """Not open yet, through the proxy."""
    return RabbitLink(
        proxy.uri(rabbit_uri), LinkOptions(heartbeat=HEARTBEAT_S, connect_timeout=1.0)
    )


async def test_open_gives_up_in_time_and_is_closed_again(
    closed_link: RabbitLink, proxy: TcpProxy, fault: Fault
) -> None:
    await proxy.fail(fault)
    loop = asyncio.get_running_loop()

    started = loop.time()
    with pytest.raises(BrokerUnavailable):
        await closed_link.open(timeout=1.5)

    assert loop.time() - started < 10
    assert closed_link.state is LinkState.CLOSED


async def test_open_without_a_timeout_waits_for_the_broker(
    closed_link: RabbitLink, proxy: TcpProxy, fault: Fault
) -> None:
    await proxy.fail(fault)
    opening = asyncio.ensure_future(closed_link.open())
    done, _ = await asyncio.wait([opening], timeout=0.5)
    assert not done

    await proxy.heal()

    async with asyncio.timeout(NOTICED_S):
        await opening
    await closed_link.declare(QUEUE)
    await closed_link.publish(Message("", "work", b"", Properties(), mandatory=True))
    await closed_link.aclose()


async def test_cancelled_open_leaves_nothing_behind(
    closed_link: RabbitLink, proxy: TcpProxy
) -> None:
    await proxy.fail(Fault.REFUSED)
    opening = asyncio.ensure_future(closed_link.open())
    await asyncio.wait([opening], timeout=0.2)

    opening.cancel()
    await asyncio.wait([opening], timeout=5)

    assert opening.cancelled()
    assert closed_link.state is LinkState.CLOSED


async def test_reconnecting_does_not_spin(link: RabbitLink, proxy: TcpProxy) -> None:
    """Two connections, first delay 0.1 to 0.2 s, doubling: far below twenty attempts each in three seconds."""
    await link.consume("work", Inbox())
    before = proxy.accepted_count
    assert before == 2

    await proxy.fail(Fault.CLOSED)
    await asyncio.sleep(3)  # the time is what is measured
    attempts = proxy.accepted_count - before

    assert 4 <= attempts <= 20
    await proxy.heal()
    await link.ready(NOTICED_S)


async def test_connections_that_die_at_once_do_not_make_it_spin(
    link: RabbitLink, proxy: TcpProxy
) -> None:
    """A broker that takes the connection and drops it again must not reset the delay each time."""
    before = proxy.accepted_count
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 3
    link.on_state_change(lambda state: proxy.drop() if loop.time() < deadline else None)

    proxy.drop()
    await asyncio.sleep(3)  # the time is what is measured

    assert 2 <= proxy.accepted_count - before <= 20
    await link.ready(NOTICED_S)


async def test_link_is_healthy_after_many_short_faults(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    inbox = Inbox(acks=True)
    await link.consume("work", inbox)
    for number in range(4):
        proxy.drop()
        await link.publish(Message("", "work", b"%d" % number, Properties()), timeout=NOTICED_S)

    await eventually(
        lambda: {b"0", b"1", b"2", b"3"} <= set(inbox.bodies), NOTICED_S, what="all four arrive"
    )
    assert link.state is LinkState.CONNECTED


async def test_close_is_bounded_under_every_fault(
    closed_link: RabbitLink, proxy: TcpProxy, fault: Fault
) -> None:
    await closed_link.open(timeout=15)
    await closed_link.declare(QUEUE)
    await closed_link.consume("work", Inbox())
    await proxy.fail(fault)
    unconfirmed = asyncio.ensure_future(
        closed_link.publish(Message("", "work", b"", Properties()), timeout=20)
    )
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()

    started = loop.time()
    await closed_link.aclose(timeout=1.0)

    assert loop.time() - started < 10  # the publishing would have 20
    assert closed_link.state is LinkState.CLOSED
    with pytest.raises(BrokerUnavailable):
        await unconfirmed
