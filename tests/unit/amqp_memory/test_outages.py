"""A broker that stops, starts, blocks, drops connections and cancels consumers, when the test says so."""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.link.inbox import Inbox
from tests.unit.amqp_memory.conftest import LinkFactory

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    LinkState,
    Message,
    Properties,
    Queue,
)
from mycelia.amqp.memory.broker import MemoryBroker
from mycelia.amqp.memory.link import MemoryLink
from mycelia.errors import BrokerBlocked, BrokerUnavailable, TopologyError
from mycelia.testing.eventually import eventually

QUORUM = {"x-queue-type": "quorum"}


# --- stopping and starting -----------------------------------------------------------------------


async def test_links_of_one_uri_share_a_broker_and_others_do_not() -> None:
    name = secrets.token_hex(4)

    assert MemoryLink(f"memory://{name}").broker is MemoryLink(f"memory://{name}").broker
    assert MemoryLink(f"memory://{name}").broker is not MemoryLink(f"memory://{name}2").broker


async def test_states_tell_the_outage(link: MemoryLink, broker: MemoryBroker) -> None:
    states: list[LinkState] = []
    link.on_state_change(states.append)

    broker.stop()
    broker.start()
    await link.ready(timeout=1)

    assert states == [LinkState.RECONNECTING, LinkState.CONNECTED]
    assert link.statistics().reconnects == 1


async def test_open_waits_for_a_stopped_broker(broker: MemoryBroker) -> None:
    broker.stop()
    link = MemoryLink(broker=broker)
    opening = asyncio.ensure_future(link.open())
    await asyncio.sleep(0)
    states = [link.state]

    broker.start()
    await opening

    assert [*states, link.state] == [LinkState.CONNECTING, LinkState.CONNECTED]
    assert link.statistics().reconnects == 0
    await link.aclose()


async def test_open_gives_up_at_its_timeout(broker: MemoryBroker) -> None:
    broker.stop()
    link = MemoryLink(broker=broker)

    with pytest.raises(BrokerUnavailable, match="stopped"):
        await link.open(timeout=0.01)

    assert link.state is LinkState.CLOSED


async def test_publish_nowait_is_refused_while_the_broker_is_stopped(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    broker.stop()

    assert not link.writable
    with pytest.raises(BrokerUnavailable):
        link.publish_nowait(Message("", "work", b"", Properties()))


async def test_publish_waits_out_the_outage(link: MemoryLink, broker: MemoryBroker) -> None:
    await link.declare(Queue("work", arguments=QUORUM))
    broker.stop()
    publishing = asyncio.ensure_future(
        link.publish(Message("", "work", b"", Properties()), timeout=5)
    )
    await asyncio.sleep(0)
    assert link.statistics().unconfirmed == 1

    broker.start()
    await publishing

    assert await link.message_count("work") == 1
    assert link.statistics().unconfirmed == 0


async def test_publish_fails_at_its_deadline(link: MemoryLink, broker: MemoryBroker) -> None:
    broker.stop()

    with pytest.raises(BrokerUnavailable):
        await link.publish(Message("", "work", b"", Properties()), timeout=0.01)


async def test_declaring_consuming_and_counting_fail_at_their_deadlines(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    broker.stop()

    with pytest.raises(BrokerUnavailable):
        await link.declare(Queue("work"), timeout=0.01)
    with pytest.raises(BrokerUnavailable):
        await link.consume("work", Inbox(), timeout=0.01)
    with pytest.raises(BrokerUnavailable):
        await link.message_count("work", timeout=0.01)
    with pytest.raises(BrokerUnavailable):
        await link.delete_queue("work", timeout=0.01)
    with pytest.raises(BrokerUnavailable):
        await link.ready(timeout=0.01)


async def test_closing_a_link_ends_those_who_wait_on_it(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    broker.stop()
    publishing = asyncio.ensure_future(
        link.publish(Message("", "work", b"", Properties()), timeout=60)
    )
    await asyncio.sleep(0)

    await link.aclose()

    with pytest.raises(BrokerUnavailable):
        await publishing


async def test_restart_keeps_what_is_durable_and_persistent(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(
        Exchange("kept"),
        Exchange("gone", durable=False),
        Queue("quorum", arguments=QUORUM),
        Queue("classic"),
        Queue("fleeting", durable=False),
        Queue("log", arguments={"x-queue-type": "stream"}),
        Binding("classic", "kept", "#"),
    )
    for queue in ("quorum", "classic", "fleeting", "log"):
        await link.publish(Message("", queue, b"transient", Properties()))
        await link.publish(Message("", queue, b"persistent", Properties(delivery_mode=2)))
    link.forget(Exchange("gone", durable=False), Queue("fleeting", durable=False))

    broker.stop()
    broker.start()
    await link.ready(timeout=1)

    assert await link.message_count("quorum") == 2
    assert await link.message_count("classic") == 1
    assert await link.message_count("log") == 2
    with pytest.raises(TopologyError):
        await link.message_count("fleeting")
    with pytest.raises(TopologyError):
        await link.declare(Exchange("gone", passive=True))
    await link.publish(Message("kept", "any", b"", Properties(), mandatory=True))


async def test_remembered_topology_is_declared_again(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(
        Exchange("x", durable=False), Queue("mine", exclusive=True), Binding("mine", "x", "#")
    )

    broker.stop()
    broker.start()
    await link.ready(timeout=1)

    await link.publish(Message("x", "any", b"", Properties(), mandatory=True))
    assert await link.message_count("mine") == 1


async def test_consumer_resumes_and_gets_the_unsettled_again(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("work", arguments=QUORUM))
    inbox = Inbox()
    consumer = await link.consume("work", inbox, ConsumeOptions(prefetch=2))
    for body in (b"0", b"1", b"2"):
        await link.publish(Message("", "work", body, Properties()))
    await inbox.wait(2)

    broker.stop()
    assert consumer.unsettled == 0
    broker.start()
    await inbox.wait(4)
    for delivery in inbox.deliveries[:2]:
        delivery.ack()  # of the lost connection: does nothing

    assert inbox.bodies == [b"0", b"1", b"0", b"1"]
    assert [delivery.redelivered for delivery in inbox.deliveries] == [False, False, True, True]
    assert consumer.unsettled == 2


async def test_consumer_cancelled_in_the_outage_does_not_resume(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("work", arguments=QUORUM))
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    broker.stop()
    await consumer.cancel()
    broker.start()
    await link.ready(timeout=1)

    await link.publish(Message("", "work", b"", Properties()))

    assert await link.message_count("work") == 1
    assert inbox.bodies == []


async def test_stream_consumer_goes_on_from_the_first_unsettled(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    """And not from the `x-stream-offset` it began with: a reconnect must not replay a month."""
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    for number in range(6):
        await link.publish(Message("", "log", b"%d" % number, Properties()))
    inbox = Inbox()
    await link.consume(
        "log", inbox, ConsumeOptions(prefetch=4, arguments={"x-stream-offset": "first"})
    )
    await inbox.wait(4)
    inbox.deliveries[0].ack()
    inbox.deliveries[1].ack()
    await inbox.wait(6)
    inbox.deliveries.clear()

    broker.stop()
    broker.start()

    await inbox.wait(4)
    assert inbox.bodies == [b"2", b"3", b"4", b"5"]


async def test_stopping_and_starting_twice_does_nothing(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    broker.stop()
    broker.stop()
    broker.start()
    broker.start()
    await link.ready(timeout=1)

    assert link.statistics().reconnects == 1


# --- a network that drops ------------------------------------------------------------------------


async def test_dropped_connections_lose_no_message(
    link: MemoryLink, link_factory: LinkFactory, broker: MemoryBroker
) -> None:
    other = await link_factory()
    await link.declare(Queue("work"))
    await link.publish(Message("", "work", b"transient", Properties()))
    inbox = Inbox()
    await other.consume("work", inbox)
    await inbox.wait(1)

    broker.drop_connections()

    await inbox.wait(2)
    assert inbox.deliveries[1].redelivered
    assert link.statistics().reconnects == 1


async def test_exclusive_queue_vanishes_with_a_dropped_connection(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("mine", exclusive=True))
    await link.publish(Message("", "mine", b"", Properties()))

    broker.drop_connections()
    await link.ready(timeout=1)

    assert await link.message_count("mine") == 0


# --- blocking ------------------------------------------------------------------------------------


async def test_blocked_broker_takes_no_publishings(link: MemoryLink, broker: MemoryBroker) -> None:
    broker.block()

    assert link.state is LinkState.BLOCKED
    assert not link.writable
    with pytest.raises(BrokerBlocked):
        link.publish_nowait(Message("", "work", b"", Properties()))
    with pytest.raises(BrokerBlocked):
        await link.publish(Message("", "work", b"", Properties()), timeout=0.01)
    with pytest.raises(BrokerBlocked):
        await link.ready(timeout=0.01)


async def test_publish_waits_until_the_broker_is_unblocked(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("work"))
    broker.block()
    publishing = asyncio.ensure_future(
        link.publish(Message("", "work", b"", Properties()), timeout=5)
    )
    await asyncio.sleep(0)
    assert not publishing.done()

    broker.unblock()
    await publishing

    assert link.state is LinkState.CONNECTED
    assert link.statistics().blocked_s > 0


async def test_blocked_broker_still_delivers_and_takes_acks(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("work"))
    for number in range(10):
        await link.publish(Message("", "work", b"%d" % number, Properties()))
    broker.block()
    inbox = Inbox(acks=True)

    await link.consume("work", inbox, ConsumeOptions(prefetch=2))

    await inbox.wait(10)
    assert await link.message_count("work") == 0


async def test_link_opened_to_a_blocked_broker_says_so(broker: MemoryBroker) -> None:
    broker.block()
    link = MemoryLink(broker=broker)

    await link.open(timeout=1)

    assert link.state is LinkState.BLOCKED
    await link.aclose()


# --- cancellation by the broker ------------------------------------------------------------------


async def test_consumer_cancelled_by_the_broker_consumes_again(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(Queue("work", arguments=QUORUM))
    inbox = Inbox()
    consumer = await link.consume("work", inbox)
    await link.publish(Message("", "work", b"held", Properties()))
    await inbox.wait(1)

    broker.cancel_consumers("work")

    await inbox.wait(2)
    assert (inbox.deliveries[1].body, inbox.deliveries[1].redelivered) == (b"held", True)
    assert consumer.unsettled == 1


async def test_consumer_of_a_queue_that_is_nobodys_waits_for_it(
    link: MemoryLink, link_factory: LinkFactory
) -> None:
    other = await link_factory()
    await other.declare(Queue("work"))
    inbox = Inbox(acks=True)
    await link.consume("work", inbox)
    await other.delete_queue("work")
    await other.declare(Queue("work"))

    await other.publish(Message("", "work", b"again", Properties()))

    await inbox.wait_for(b"again")


async def test_callback_that_raises_harms_no_other_consumer(
    link: MemoryLink, caplog: pytest.LogCaptureFixture
) -> None:
    await link.declare(Queue("bad"), Queue("good"))

    def broken(_: object) -> None:
        raise ValueError("a fault in the runtime")

    await link.consume("bad", broken)
    inbox = Inbox(acks=True)
    await link.consume("good", inbox)

    await link.publish(Message("", "bad", b"", Properties()))
    await link.publish(Message("", "good", b"", Properties()))

    await inbox.wait(1)
    await eventually(lambda: "on_deliveries_raised" in caplog.text)


async def test_listener_that_raises_harms_nobody(
    link: MemoryLink, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ValueError("a fault in the runtime")

    link.on_state_change(broken)

    broker.drop_connections()
    await link.ready(timeout=1)

    assert "listener_raised listener=state" in caplog.text


# --- several event loops --------------------------------------------------------------------------


@pytest.fixture
def _threads_taking_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_taking_turns_often")
async def test_messages_of_another_thread_s_loop_come_at_once_and_all() -> None:
    """The loop that consumes sleeps, and nothing but the messages wakes it. Both threads are in the broker at once."""
    uri, count = f"memory://{secrets.token_hex(4)}", 2_000
    link, bodies, taken = MemoryLink(uri), list[bytes](), threading.Event()

    def take(batch: list[Delivery]) -> None:
        for delivery in batch:
            bodies.append(delivery.body)
            delivery.ack()
        if len(bodies) >= count:
            taken.set()

    async def publish() -> bool:
        other = MemoryLink(uri)
        await other.open()
        for number in range(count):
            await other.publish(Message("", "work", str(number).encode(), Properties()))
        all_are_taken = taken.wait(4)  # before the next look at the topology, which wakes the loop
        await other.aclose()
        return all_are_taken

    await link.open()
    await link.declare(Queue("work"))
    await link.consume("work", take)

    assert await asyncio.to_thread(asyncio.run, publish())
    assert Counter(bodies) == Counter(str(number).encode() for number in range(count))
    assert await link.message_count("work") == 0
    await link.aclose()


# --- several event loops, one after the other ----------------------------------------------------


def test_link_that_was_not_closed_dies_with_its_loop_and_leaves_its_messages() -> None:
    uri = f"memory://{secrets.token_hex(4)}"

    async def first() -> None:
        link = MemoryLink(uri)
        await link.open()
        await link.declare(Queue("work"))
        await link.publish(Message("", "work", b"left behind", Properties()))
        inbox = Inbox()
        await link.consume("work", inbox)
        await inbox.wait(1)

    async def second() -> Inbox:
        link = MemoryLink(uri)
        await link.open()
        inbox = Inbox(acks=True)
        await link.consume("work", inbox)
        await inbox.wait(1)
        await link.publish(Message("", "work", b"new", Properties()))
        await inbox.wait(2)
        await link.aclose()
        return inbox

    asyncio.run(first())
    inbox = asyncio.run(second())

    assert inbox.bodies == [b"left behind", b"new"]
    assert inbox.deliveries[0].redelivered
