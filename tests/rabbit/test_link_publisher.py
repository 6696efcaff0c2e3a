"""Publishing to real RabbitMQ: each publisher gets its own answer, whatever the others do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import LinkOptions, LinkState, Message, Properties, Queue, RabbitLink, Returned
from mycelia.broker.node import PrivateNode
from mycelia.errors import BrokerBlocked, ProtocolError, PublishRejected, TopologyError, Unroutable
from mycelia.testing import eventually


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    link = RabbitLink(rabbit_uri)
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    yield link
    await link.aclose()


async def test_publisher_to_a_missing_exchange_gets_the_error_and_the_others_their_confirms(
    link: RabbitLink,
) -> None:
    results = await asyncio.gather(
        *(
            link.publish(
                Message("missing" if number == 20 else "", "q", b"%d" % number, Properties())
            )
            for number in range(40)
        ),
        return_exceptions=True,
    )

    assert isinstance(results[20], TopologyError)
    assert "missing" in str(results[20])
    assert [one for index, one in enumerate(results) if index != 20] == [None] * 39
    assert await link.message_count("q") >= 39  # at least once: those before it may be there twice


async def test_publishing_the_broker_objects_to_is_rejected_with_its_words(
    link: RabbitLink,
) -> None:
    with pytest.raises(PublishRejected, match="expiration"):
        await link.publish(Message("", "q", b"", Properties(expiration="soon")))

    await link.publish(Message("", "q", b"", Properties()))


async def test_publishing_that_cannot_be_written_fails_alone(link: RabbitLink) -> None:
    with pytest.raises(ProtocolError, match="header 'x'"):
        await link.publish(Message("", "q", b"", Properties(headers={"x": object()})))
    with pytest.raises(ProtocolError, match="header 'x'"):
        link.publish_nowait(Message("", "q", b"", Properties(headers={"x": object()})))

    await link.publish(Message("", "q", b"", Properties()))
    assert link.statistics().unconfirmed == 0


async def test_unconfirmed_publishing_to_a_missing_exchange_costs_no_other_behind_it(
    link: RabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.publish_nowait(Message("missing", "q", b"", Properties()))
    await eventually(
        lambda: any("publishing_refused confirmed=False" in one for one in caplog.messages), 10
    )

    for number in range(50):
        link.publish_nowait(Message("", "q", b"%d" % number, Properties()))

    await eventually(lambda: _holds(link, 50), 30, what="all behind it arrived")
    assert link.state is LinkState.CONNECTED
    assert link.statistics().reconnects == 0


async def _holds(link: RabbitLink, count: int) -> bool:
    return await link.message_count("q") == count


async def test_returns_find_their_publisher_among_many(link: RabbitLink) -> None:
    results = await asyncio.gather(
        *(
            link.publish(
                Message("", "nobody" if number % 3 else "q", b"", Properties(), mandatory=True)
            )
            for number in range(60)
        ),
        return_exceptions=True,
    )

    assert [isinstance(one, Unroutable) for one in results] == [
        bool(number % 3) for number in range(60)
    ]


async def test_unconfirmed_return_brings_the_message_back_whole(link: RabbitLink) -> None:
    came_back: list[Returned] = []
    remove = link.on_return(came_back.append)
    properties = Properties(correlation_id="c", headers={"a": [1, "b"]})
    body = b"x" * 300_000

    link.publish_nowait(Message("", "nobody", body, properties, mandatory=True))
    await eventually(lambda: came_back, 30)

    assert came_back == [Returned(312, "NO_ROUTE", "", "nobody", properties, body)]
    remove()


async def test_full_queue_rejects(rabbit_uri: str) -> None:
    """Tried again for as long as the patience lasts, which counts from the first nack, however late that comes."""
    link = RabbitLink(rabbit_uri, LinkOptions(rejected_patience=2))
    await link.open(timeout=15)
    await link.declare(Queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}))
    await link.publish(Message("", "full", b"fits", Properties()))

    with pytest.raises(PublishRejected, match=r"basic\.nack"):
        await link.publish(Message("", "full", b"does not", Properties()), timeout=60)

    assert link.statistics().rejected == 1
    assert link.statistics().extra["nacks_tried_again"] >= 2
    await link.aclose()


async def test_window_smaller_than_the_burst_lets_everything_through(rabbit_uri: str) -> None:
    link = RabbitLink(rabbit_uri, LinkOptions(confirm_messages=7))
    await link.open(timeout=15)
    await link.declare(Queue("q"))

    await asyncio.gather(*(link.publish(Message("", "q", b"", Properties())) for _ in range(200)))

    assert await link.message_count("q") == 200
    assert link.statistics().confirmed == 200
    await link.aclose()


async def test_cancelled_publisher_leaves_the_window_in_order(link: RabbitLink) -> None:
    first = asyncio.ensure_future(link.publish(Message("", "q", b"cancelled", Properties())))
    second = asyncio.ensure_future(link.publish(Message("", "q", b"kept", Properties())))
    await asyncio.sleep(0)
    first.cancel()

    await second

    with pytest.raises(asyncio.CancelledError):
        await first
    await eventually(lambda: link.statistics().unconfirmed == 0)


async def test_unconfirmed_publishings_are_sent_again_with_the_same_message_id(
    link: RabbitLink, rabbit_vhost: str, rabbit_node: PrivateNode
) -> None:
    inbox = Inbox(acks=True)
    await link.consume("q", inbox)
    stop = asyncio.Event()
    count = 0

    async def publish_on() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            await link.publish(Message("", "q", b"%d" % count, Properties()))

    publishers = [asyncio.ensure_future(publish_on()) for _ in range(20)]
    await inbox.wait(100)
    # the management lists a connection some time after it was made
    await eventually(lambda: asyncio.to_thread(rabbit_node.api.close_connections, rabbit_vhost), 20)
    await eventually(lambda: link.statistics().reconnects >= 1, 20, what="reconnected")
    await inbox.wait(len(inbox.deliveries) + 100)
    stop.set()
    await asyncio.gather(*publishers)

    await eventually(lambda: len(set(inbox.bodies)) == count, 20, what="nothing is lost")
    ids: dict[bytes, set[str | None]] = {}
    for delivery in inbox.deliveries:
        ids.setdefault(delivery.body, set()).add(delivery.properties.message_id)
    assert all(len(one) == 1 for one in ids.values())
    assert len({next(iter(one)) for one in ids.values()}) == count


async def test_who_waits_for_room_goes_on_when_what_was_collected_has_been_written(
    rabbit_uri: str,
) -> None:
    """Collected in one turn of the loop, it is over the bound; written, all of it may fit into the socket at once."""
    link = RabbitLink(rabbit_uri, LinkOptions(write_buffer_bytes=16 * 1024))
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    large = Message("", "q", b"x" * 20_000, Properties())
    for round_ in range(1, 6):
        await asyncio.sleep(0.02)  # nothing is under way: no confirm will wake those who wait
        with suppress(BrokerBlocked):
            while True:
                link.publish_nowait(large)
        waiting = [link.publish(Message("", "q", b"", Properties()), timeout=5) for _ in range(20)]
        await asyncio.gather(link.ready(5), *waiting)

        assert link.statistics().confirmed == 20 * round_
    assert link.statistics().unconfirmed == 0
    await link.aclose()
