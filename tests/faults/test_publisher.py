"""Publishing while the network fails: nothing hangs, and what was confirmed has arrived."""

from __future__ import annotations

import asyncio

import pytest
from tests.faults.conftest import NOTICED_S
from tests.link.inbox import Inbox

from mycelia.amqp import ConsumeOptions, LinkState, Message, Properties
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.errors import BrokerBlocked, BrokerUnavailable, LinkError
from mycelia.testing import Fault, TcpProxy, eventually


class Outcomes:
    """What became of each confirmed publishing, and how long its publisher waited."""

    def __init__(self, link: RabbitLink) -> None:
        self._link = link
        self.confirmed: set[bytes] = set()
        self.failed: dict[bytes, LinkError] = {}
        self.longest_over_s = 0.0
        """How far the slowest publisher waited past its deadline; negative where all were in time."""

    async def publish(self, body: bytes, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            await self._link.publish(Message("", "work", body, Properties()), timeout=timeout)
            self.confirmed.add(body)
        except (BrokerUnavailable, BrokerBlocked) as error:
            self.failed[body] = error
        self.longest_over_s = max(self.longest_over_s, loop.time() - deadline)


async def received(direct: RabbitLink, until: set[bytes]) -> list[bytes]:
    """What is in the queue, once all of `until` has come."""
    inbox = Inbox(acks=True)
    consumer = await direct.consume("work", inbox, ConsumeOptions(prefetch=1000))
    await eventually(lambda: until <= set(inbox.bodies), 30, what="every confirmed message arrives")
    await consumer.aclose()
    return inbox.bodies


@pytest.mark.long_variants("upstream-blackhole")
async def test_publishings_through_a_fault_are_confirmed_or_fail_in_time(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy, fault: Fault
) -> None:
    """Some before, some into the fault with a short deadline, some into it with a long one; then it heals."""
    outcomes = Outcomes(link)
    async with asyncio.timeout(25):
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(outcomes.publish(b"before-%d" % number, 10))
            await asyncio.sleep(0)
            await proxy.fail(fault)
            for number in range(50):
                group.create_task(outcomes.publish(b"patient-%d" % number, 20))
            async with asyncio.TaskGroup() as hasty:
                for number in range(50):
                    hasty.create_task(outcomes.publish(b"hasty-%d" % number, 1.0))
            await proxy.heal()

    assert outcomes.longest_over_s < 0.5
    patient = {b"patient-%d" % number for number in range(50)}
    assert patient <= outcomes.confirmed
    await received(direct, outcomes.confirmed)
    assert link.statistics().unconfirmed == 0
    assert link.state is LinkState.CONNECTED


async def test_failed_publishing_says_that_it_may_have_arrived(
    link: RabbitLink, proxy: TcpProxy
) -> None:
    await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)

    with pytest.raises(BrokerUnavailable, match="may or may not have arrived"):
        await link.publish(Message("", "work", b"", Properties()), timeout=0.3)


async def test_message_sent_again_after_a_lost_confirm_keeps_its_id(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """The duplicate is the price of at-least-once; the same `message_id` lets its receiver know it."""
    await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
    publishing = asyncio.ensure_future(
        link.publish(Message("", "work", b"twice", Properties()), timeout=20)
    )

    inbox = Inbox(acks=True)
    consumer = await direct.consume("work", inbox)
    await inbox.wait(1)  # the broker has it, and its confirm is lost
    proxy.drop()
    await proxy.heal()
    await publishing
    await inbox.wait(2)
    await consumer.aclose()

    first, second = inbox.deliveries
    assert first.properties.message_id == second.properties.message_id
    assert link.statistics().republished == 1


@pytest.mark.long
async def test_publish_nowait_never_waits_and_works_again_after_the_fault(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy, fault: Fault
) -> None:
    """Into a fault it is taken (and lost) or refused; nobody waits; and nothing of it is sent twice."""
    await proxy.fail(fault)
    loop = asyncio.get_running_loop()

    async def is_refused() -> bool:
        started = loop.time()
        try:
            link.publish_nowait(Message("", "work", b"into the fault", Properties()))
        except (BrokerUnavailable, BrokerBlocked):
            return True
        finally:
            assert loop.time() - started < 5  # a wait would take as long as the fault
        return False

    await eventually(is_refused, NOTICED_S, interval=0.05, what="the fault is noticed")
    assert not link.writable
    await proxy.heal()
    await link.ready(timeout=NOTICED_S)
    link.publish_nowait(Message("", "work", b"after the fault", Properties()))

    inbox = Inbox(acks=True)
    consumer = await direct.consume("work", inbox)
    await inbox.wait_for(b"after the fault")
    await consumer.aclose()
    assert inbox.bodies.count(b"after the fault") == 1


async def test_stalled_broker_becomes_back_pressure_with_a_bound(
    link: RabbitLink, direct: RabbitLink, proxy: TcpProxy
) -> None:
    """A broker that does not read fills the write buffer up to its bound; then publishers are refused, and told why."""
    await proxy.fail(Fault.UPSTREAM_STALL)
    body = bytes(100_000)
    taken = 0
    while link.writable and taken < 1000:
        link.publish_nowait(Message("", "work", body, Properties()))
        taken += 1
        await asyncio.sleep(0)

    assert 0 < taken < 1000
    with pytest.raises(BrokerBlocked):
        link.publish_nowait(Message("", "work", body, Properties()))
    with pytest.raises(BrokerBlocked):
        await link.publish(Message("", "work", b"", Properties()), timeout=0.3)
    with pytest.raises(BrokerBlocked):
        await link.ready(timeout=0.1)
    await proxy.heal()
    await link.ready(timeout=NOTICED_S)

    async def all_came() -> bool:
        return await direct.message_count("work") == taken

    await eventually(all_came, 30, what=f"the {taken} that were taken arrive")


async def test_confirms_are_pipelined_over_a_slow_network(
    link: RabbitLink, proxy: TcpProxy
) -> None:
    """A hundred publishings with 50 ms each way take about one round trip, and not a hundred: 10 s."""
    proxy.latency_s = 0.05
    loop = asyncio.get_running_loop()

    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(link.publish(Message("", "work", b"%d" % number, Properties())))
    took = loop.time() - started
    proxy.latency_s = 0.0

    assert 0.09 <= took < 5
