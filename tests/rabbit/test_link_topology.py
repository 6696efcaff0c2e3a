"""Declaring on real RabbitMQ: what is there already is adopted, what cannot be is refused, nobody else is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    LinkOptions,
    LinkState,
    Message,
    Properties,
    Queue,
    RabbitLink,
)
from mycelia.errors import LinkError, TopologyError


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(rabbit_uri)
    await link.open(timeout=15)
    yield link
    await link.aclose()


async def test_queue_with_other_arguments_is_adopted_and_told_once(
    link: RabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    await link.declare(Queue("q"))
    other = Queue("q", arguments={"x-message-ttl": 1000})

    await link.declare(other, Binding("q", "amq.topic", "k"))
    await link.declare(other)

    told = [record for record in caplog.records if "declared_differently" in record.message]
    assert len(told) == 1
    assert told[0].levelname == "WARNING"
    assert "inequivalent arg 'x-message-ttl'" in told[0].message
    await link.publish(Message("amq.topic", "k", b"", Properties(), mandatory=True))


async def test_exchange_that_differs_in_durability_is_adopted(link: RabbitLink) -> None:
    await link.declare(Exchange("e", "topic", durable=False))

    await link.declare(Exchange("e", "topic", durable=True))


async def test_exchange_of_another_type_is_refused_by_name(link: RabbitLink) -> None:
    await link.declare(Exchange("e", "topic"))

    with pytest.raises(TopologyError, match=r'exchange "e".*fanout'):
        await link.declare(Exchange("e", "fanout"))


async def test_exchange_of_an_unknown_type_is_refused_and_the_link_recovers(
    link: RabbitLink,
) -> None:
    with pytest.raises(TopologyError, match='exchange "e" \\(no-such-type\\)'):
        await link.declare(Exchange("e", "no-such-type"))

    await link.declare(Queue("q"), timeout=15)
    assert link.state is LinkState.CONNECTED


async def test_binding_to_a_missing_exchange_is_refused(link: RabbitLink) -> None:
    with pytest.raises(TopologyError, match="no exchange 'missing'"):
        await link.declare(Queue("q"), Binding("q", "missing", "k"))


async def test_invalid_queue_argument_is_refused_with_the_brokers_words(link: RabbitLink) -> None:
    with pytest.raises(TopologyError, match="x-message-ttl"):
        await link.declare(Queue("q", arguments={"x-message-ttl": "soon"}))


async def test_argument_amqp_cannot_carry_is_refused(link: RabbitLink) -> None:
    with pytest.raises(TopologyError, match='queue "q" cannot be declared'):
        await link.declare(Queue("q", arguments={"x": object()}))


async def test_refused_declaration_leaves_consumers_alone(link: RabbitLink) -> None:
    inbox = Inbox(acks=True)
    await link.declare(Queue("q"))
    await link.consume("q", inbox)

    with pytest.raises(TopologyError):
        await link.declare(Exchange("missing", passive=True))
    await link.publish(Message("", "q", b"still here", Properties()))

    delivery = await inbox.wait_for(b"still here")
    assert not delivery.redelivered


async def test_consuming_from_a_missing_queue_is_refused(link: RabbitLink) -> None:
    with pytest.raises(TopologyError, match='queue "missing"'):
        await link.consume("missing", Inbox())


async def test_exclusive_queue_is_usable_for_all_the_link_does(link: RabbitLink) -> None:
    inbox = Inbox(acks=True)
    await link.declare(
        Queue("own", durable=False, exclusive=True), Binding("own", "amq.topic", "own")
    )
    await link.publish(Message("amq.topic", "own", b"1", Properties(), mandatory=True))

    assert await link.message_count("own") == 1
    await link.consume("own", inbox, ConsumeOptions(no_ack=True))
    await inbox.wait_for(b"1")
    await link.delete_queue("own")


async def test_exclusive_queue_of_another_link_is_refused(
    link: RabbitLink, rabbit_uri: str
) -> None:
    own = Queue("own", durable=False, exclusive=True)
    await link.declare(own)
    other = RabbitLink(rabbit_uri, LinkOptions(name="other"))
    await other.open(timeout=15)

    with pytest.raises(TopologyError, match="RESOURCE_LOCKED"):
        await other.declare(own)

    await other.aclose()


# --- many at once ----------------------------------------------------------------------------------


async def test_thousands_of_first_publishings_share_one_declaration(
    link: RabbitLink,
) -> None:
    """Each declares its exchange first, as a client does; a connection has 2047 channels."""

    async def publish(number: int) -> None:
        await link.declare(Exchange("new", type="topic"), timeout=20)
        await link.publish(Message("new", "k", b"%d" % number, Properties()), timeout=20)

    async with asyncio.timeout(20):
        await asyncio.gather(*(publish(number) for number in range(2500)))

    assert link.statistics().confirmed == 2500
    assert link.statistics().reconnects == 0


async def test_thousands_of_different_declarations_take_turns(link: RabbitLink) -> None:
    """Among them one that is refused: the others do not notice."""
    names = [f"x{number % 600}" for number in range(2400)]
    declaring = [link.declare(Exchange(name), timeout=60) for name in names]
    declaring.insert(1000, link.declare(Exchange("amq.mine"), timeout=60))

    results = await asyncio.gather(*declaring, return_exceptions=True)

    assert isinstance(results.pop(1000), LinkError)
    assert results == [None] * 2400
    assert link.statistics().reconnects == 0


async def test_thousands_of_counts_share_their_answers(link: RabbitLink) -> None:
    """As when thousands of calls time out and ask whether anybody serves them."""
    await link.declare(Queue("q"))

    counts = await asyncio.gather(*(link.consumer_count("q", timeout=10) for _ in range(2500)))
    missing = await asyncio.gather(
        *(link.consumer_count("missing", timeout=10) for _ in range(2500)), return_exceptions=True
    )

    assert counts == [0] * 2500
    assert {type(one) for one in missing} == {TopologyError}
    assert link.statistics().reconnects == 0


async def test_declaration_given_up_by_its_first_asker_is_done_for_the_second(
    link: RabbitLink,
) -> None:
    hasty = asyncio.ensure_future(link.declare(Queue("q2")))
    patient = asyncio.ensure_future(link.declare(Queue("q2")))
    await asyncio.sleep(0)

    hasty.cancel()
    await asyncio.wait([hasty])
    await patient

    assert await link.message_count("q2") == 0
