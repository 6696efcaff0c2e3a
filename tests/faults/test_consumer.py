"""Consuming while the network fails: consumers resume, and what was not settled is delivered again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.faults.conftest import NOTICED_S
from tests.link.inbox import Inbox

from mycelia.amqp import ConsumeOptions, Exchange, LinkState, Message, Properties, Queue
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.errors import BrokerUnavailable
from mycelia.testing import Fault, TcpProxy, eventually


@pytest.mark.long_variants("upstream-blackhole")
async def test_consumer_resumes_and_gets_the_unsettled_again(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy, cutting_fault: Fault
) -> None:
    inbox = Inbox()
    consumer = await link.consume("work", inbox, ConsumeOptions(prefetch=5))
    for number in range(5):
        await direct.publish(Message("", "work", b"before-%d" % number, Properties()))
    held = await inbox.wait(5)
    before = link.statistics().reconnects

    await proxy.fail(cutting_fault)
    for number in range(3):
        await direct.publish(Message("", "work", b"during-%d" % number, Properties()))
    await eventually(
        lambda: link.state is LinkState.RECONNECTING, NOTICED_S, what="the fault is noticed"
    )
    await proxy.heal()

    # The five come again on the new channel; settling the old deliveries must do nothing there.
    again = (await inbox.wait(10, NOTICED_S))[5:]
    for delivery in held:
        delivery.ack()
    assert {delivery.body for delivery in again} == {delivery.body for delivery in held}
    assert all(delivery.redelivered for delivery in again)
    for delivery in again:
        delivery.ack()
    late = (await inbox.wait(13))[10:]
    for delivery in late:
        delivery.ack()
    assert {delivery.body for delivery in late} == {b"during-0", b"during-1", b"during-2"}

    await eventually(lambda: consumer.unsettled == 0)
    await consumer.aclose()
    assert await direct.message_count("work") == 0
    assert link.statistics().reconnects > before


async def test_topology_is_declared_again_after_the_connection_was_lost(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    await link.declare(Queue("mine", exclusive=True))
    inbox = Inbox(acks=True)
    await link.consume("mine", inbox)

    proxy.drop()  # and the exclusive queue is gone with the connection

    async def arrives() -> bool:
        await direct.publish(Message("", "mine", b"again", Properties()))
        return b"again" in inbox.bodies

    await eventually(arrives, NOTICED_S)


async def test_consumer_is_cancelled_while_the_broker_is_away(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    await direct.publish(Message("", "work", b"held", Properties()))
    await inbox.wait(1)
    await proxy.fail(Fault.REFUSED)
    await eventually(lambda: link.state is LinkState.RECONNECTING, NOTICED_S)

    async with asyncio.timeout(10):
        await consumer.cancel()
        await consumer.aclose(timeout=1)
    await proxy.heal()
    await link.ready(NOTICED_S)

    other = Inbox(acks=True)
    taker = await direct.consume("work", other)
    await other.wait(1)
    await taker.aclose()
    assert inbox.bodies == [b"held"]


async def test_acks_lost_with_the_connection_bring_the_message_again(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    await direct.publish(Message("", "work", b"once more", Properties()))
    await inbox.wait(1)

    await proxy.fail(Fault.UPSTREAM_BLACKHOLE)
    inbox.deliveries[0].ack()
    await asyncio.sleep(0)  # the ack leaves with this turn's write, into the hole
    proxy.drop()
    await proxy.heal()

    _, again = await inbox.wait(2, NOTICED_S)
    assert again.redelivered
    again.ack()
    await eventually(lambda: consumer.unsettled == 0)
    await consumer.aclose()
    assert await direct.message_count("work") == 0


async def test_stalled_consumer_goes_on_where_it_stopped(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """Its acks wait in the buffer, so the broker stops at the prefetch; nothing is lost and nothing comes twice."""
    bodies = [b"%d" % number for number in range(20)]
    inbox = Inbox(acks=True)
    consumer = await link.consume("work", inbox, ConsumeOptions(prefetch=5))
    await proxy.fail(Fault.UPSTREAM_STALL)
    for body in bodies:
        await direct.publish(Message("", "work", body, Properties()))
    await inbox.wait(5)
    await eventually(lambda: _is_ready(direct, 15))
    await proxy.heal()

    await inbox.wait(20)
    await consumer.aclose()
    assert inbox.bodies == bodies
    assert await direct.message_count("work") == 0


async def _is_ready(direct: RabbitLink, count: int) -> bool:
    return await direct.message_count("work") == count


@pytest.mark.parametrize("fault_of_step", [Fault.REFUSED, Fault.DOWNSTREAM_BLACKHOLE])
async def test_every_step_with_a_timeout_ends_in_time_while_the_broker_is_away(
    link: RabbitLink, proxy: TcpProxy, fault_of_step: Fault
) -> None:
    await proxy.fail(fault_of_step)
    loop = asyncio.get_running_loop()
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "declare": lambda: link.declare(Exchange("x"), timeout=0.5),
        "consume": lambda: link.consume("work", Inbox(), timeout=0.5),
        "message_count": lambda: link.message_count("work", timeout=0.5),
        "delete_queue": lambda: link.delete_queue("work", timeout=0.5),
    }
    took: dict[str, float] = {}
    for name, step in steps.items():
        started = loop.time()
        with pytest.raises(BrokerUnavailable):
            await step()
        took[name] = loop.time() - started

    assert all(seconds < 1.5 for seconds in took.values()), took
