"""Publishings without a confirm that may be sent again: replies whose callers still wait."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import Message, Properties
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.errors import BrokerBlocked, BrokerUnavailable
from mycelia.testing import Fault, TcpProxy, eventually


async def _publish_numbered(link: RabbitLink, count: int, every: int, patience_s: float) -> None:
    """As a replier does: at once where it can be, else when the link is writable again."""
    for number in range(count):
        message = Message("", "work", b"%d" % number, Properties())
        until = time.monotonic() + patience_s
        while True:
            try:
                link.publish_nowait(message, resend_until=until)
                break
            except (BrokerUnavailable, BrokerBlocked):
                await link.ready(timeout=10)
        if number % every == 0:
            await asyncio.sleep(0.002)


@pytest.mark.long
async def test_ten_cuts_under_load_lose_no_publishing_whose_deadline_lasts(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    inbox = Inbox(acks=True)
    consumer = await direct.consume("work", inbox)
    count = 4000
    publishing = asyncio.ensure_future(_publish_numbered(link, count, every=2, patience_s=20))

    for cut in range(1, 11):
        await eventually(lambda cut=cut: len(inbox.deliveries) > cut * 200 or publishing.done(), 20)
        proxy.drop()
        await eventually(lambda cut=cut: link.statistics().reconnects >= cut, 20)
    await publishing
    await eventually(
        lambda: len(set(inbox.bodies)) == count, 15, what="every one arrives at least once"
    )
    await consumer.aclose()

    assert link.statistics().extra.get("resend_given_up", 0) == 0


async def test_only_what_is_unproven_is_sent_again(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """What the broker has processed before the last mark is not repeated."""
    until = time.monotonic() + 30
    for number in range(200):
        link.publish_nowait(Message("", "work", b"%d" % number, Properties()), resend_until=until)
    await eventually(lambda: link.statistics().unproven == 0, 30)

    proxy.drop()
    await eventually(lambda: link.statistics().reconnects == 1, 30)
    await link.publish(Message("", "work", b"last", Properties()))

    assert link.statistics().republished == 0
    assert await direct.message_count("work") == 201


async def test_publishing_into_a_black_hole_is_sent_again_after_it(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    await proxy.fail(Fault.UPSTREAM_BLACKHOLE)
    until = time.monotonic() + 20
    for number in range(20):
        link.publish_nowait(Message("", "work", b"%d" % number, Properties()), resend_until=until)
    link.publish_nowait(Message("", "work", b"at most once", Properties()))

    proxy.drop()
    await proxy.heal()
    inbox = Inbox(acks=True)
    consumer = await direct.consume("work", inbox)
    await inbox.wait(20, timeout=15)
    await consumer.aclose()

    assert set(inbox.bodies) == {b"%d" % number for number in range(20)}


async def test_publishing_whose_time_is_up_is_not_sent_again(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    await proxy.fail(Fault.UPSTREAM_BLACKHOLE)
    link.publish_nowait(
        Message("", "work", b"late", Properties()), resend_until=time.monotonic() + 0.05
    )

    await proxy.fail(Fault.REFUSED)
    await eventually(lambda: link.statistics().extra.get("resend_given_up") == 1, 30)
    await proxy.heal()
    await link.publish(Message("", "work", b"after", Properties()), timeout=20)

    assert await direct.message_count("work") == 1
    assert link.statistics().unconfirmed == 0
