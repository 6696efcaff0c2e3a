"""What is deleted under a link in memory is there again: at the next look, or at once where something hints at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import Binding, Exchange, LinkOptions, Message, Properties, Queue
from mycelia.amqp.memory.broker import MemoryBroker, PublishOutcome, Refused
from mycelia.amqp.memory.link import MemoryLink
from mycelia.errors import Unroutable
from mycelia.testing.eventually import eventually

PARTS = (Exchange("x"), Queue("work"), Binding("work", "x", "a.#"))
IN_X = Message("x", "a.b", b"", Properties(), mandatory=True)


@pytest.fixture
async def link(broker: MemoryBroker, request: pytest.FixtureRequest) -> AsyncIterator[MemoryLink]:
    """Looks after its topology a hundred times a second (`watching`), or only where something hints at it (`by_hints`)."""
    link = MemoryLink(broker=broker, options=LinkOptions(topology_check=request.param))
    await link.open(timeout=1)
    yield link
    await link.aclose()


watching = pytest.mark.parametrize("link", [0.01], indirect=True)
by_hints = pytest.mark.parametrize("link", [0], indirect=True)


@pytest.fixture
async def other(broker: MemoryBroker) -> AsyncIterator[MemoryLink]:
    """A link that has declared nothing, and so repairs nothing."""
    link = MemoryLink(broker=broker)
    await link.open(timeout=1)
    yield link
    await link.aclose()


def is_routed(broker: MemoryBroker) -> bool:
    try:
        return broker.publish(IN_X) is not PublishOutcome.UNROUTABLE
    except Refused:
        return False


@watching
@pytest.mark.parametrize("what", ["exchange", "queue", "binding"])
async def test_what_was_deleted_is_there_again(
    link: MemoryLink, other: MemoryLink, broker: MemoryBroker, what: str
) -> None:
    await link.declare(*PARTS)
    assert is_routed(broker)

    if what == "exchange":
        broker.delete_exchange("x")
    elif what == "queue":
        broker.delete_queue(other, "work")
    else:
        broker.unbind(PARTS[2])
    assert not is_routed(broker)

    await eventually(lambda: is_routed(broker), 5)


@by_hints
async def test_publishing_that_comes_back_is_hint_enough(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(*PARTS)
    broker.unbind(PARTS[2])
    for _ in range(10):  # without a hint the link does not look
        await asyncio.sleep(0)
    assert not is_routed(broker)

    link.publish_nowait(IN_X)

    await eventually(lambda: is_routed(broker), 5)


@by_hints
async def test_confirmed_publishing_that_comes_back_is_hint_enough(
    link: MemoryLink, broker: MemoryBroker
) -> None:
    await link.declare(*PARTS)
    broker.unbind(PARTS[2])

    with pytest.raises(Unroutable):
        await link.publish(IN_X)

    await eventually(lambda: is_routed(broker), 5)


@watching
async def test_queue_that_went_by_itself_stays_away_unless_it_is_consumed(
    link: MemoryLink, other: MemoryLink, broker: MemoryBroker
) -> None:
    expires = {"x-expires": 60_000}
    await link.declare(*(Queue(name, arguments=expires) for name in ("idle", "consumed")))
    await link.declare(Queue("looked_for"))
    await link.consume("consumed", Inbox())

    for name in ("idle", "consumed", "looked_for"):
        broker.delete_queue(other, name)
    await eventually(lambda: "looked_for" in broker.queue_names, 5, what="a look later")

    await eventually(lambda: "consumed" in broker.queue_names, 5)
    assert "idle" not in broker.queue_names
