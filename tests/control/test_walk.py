"""Looking at a queue's messages leaves each where it is, however often it is done and however it ends."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from tests.control.letters import NO_LIMIT, bodies_in, bury
from tests.link.inbox import cut_until

from mycelia import Queue
from mycelia.amqp import ConsumeOptions, Link, connect
from mycelia.broker.management_api import ManagementApi
from mycelia.control.dead_letters import Walk, WalkInterrupted
from mycelia.entrypoints.dead_letters import dead_letter_queue
from mycelia.errors import TopologyError
from mycelia.testing import eventually

KINDS = {
    "ours": dead_letter_queue(NO_LIMIT.name),
    "without a limit": NO_LIMIT,
    "classic": Queue(NO_LIMIT.name),
}


@pytest.fixture(params=KINDS)
def queue(request: pytest.FixtureRequest) -> Queue:
    return KINDS[request.param]


async def look(link: Link, queue: str, count: int | None = None) -> list[str]:
    """The bodies of the first `count` messages, all of which are kept."""
    seen = []
    async with Walk(link, queue, count=count) as walk:
        async for delivery in walk:
            seen.append(delivery.body.decode())
            await walk.keep(delivery)
    return seen


@pytest.mark.parametrize("count", [1, 3, 5, 30, None])
async def test_what_was_looked_at_keeps_its_place(
    link: Link, queue: Queue, count: int | None
) -> None:
    name = await bury(link, *range(30), queue=queue)
    expected = [str(n) for n in range(30)]

    assert await look(link, name, count) == expected[:count]

    assert await bodies_in(link, name) == expected


@pytest.mark.parametrize("window", [2, 7])
async def test_what_is_taken_is_gone_and_the_others_keep_their_order(
    link: Link, queue: Queue, window: int
) -> None:
    name = await bury(link, *range(40), queue=queue)

    async with Walk(link, name, window=window) as walk:
        async for delivery in walk:
            if int(delivery.body) % 3:
                await walk.keep(delivery)
            else:
                walk.take(delivery)

    assert await bodies_in(link, name) == [str(n) for n in range(40) if n % 3]


async def test_message_that_was_looked_at_fifty_times_is_still_there(
    link: Link, queue: Queue
) -> None:
    """RabbitMQ 4 drops a message at its 21st return, where no limit was declared."""
    name = await bury(link, *range(3), queue=queue)

    for _ in range(50):
        assert sorted(await look(link, name, 3)) == ["0", "1", "2"]

    left = await bodies_in(link, name)
    assert sorted(left) == ["0", "1", "2"]
    if queue is not NO_LIMIT:  # that one is republished, not given back, from its 15th return on
        assert left == ["0", "1", "2"]


async def test_what_arrives_meanwhile_is_left_alone(link: Link) -> None:
    name = await bury(link, 1, 2)

    seen = []
    async with Walk(link, name) as walk:
        async for delivery in walk:
            seen.append(delivery.body)
            walk.take(delivery)
            await bury(link, f"again-{delivery.body.decode()}")

    assert seen == [b"1", b"2"]
    assert await bodies_in(link, name) == ["again-1", "again-2"]


async def test_empty_and_missing_queues(link: Link) -> None:
    name = await bury(link)

    assert await look(link, name) == []
    with pytest.raises(TopologyError, match="nobody"):
        await look(link, "nobody.dead")


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_queue_that_somebody_consumes_from_is_said_to_be_busy(
    link: Link, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("mycelia.control.dead_letters.walk.BUSY_LOOKS", 2)
    name = await bury(link, *range(count))
    other = await link.consume(name, lambda _: None, ConsumeOptions(prefetch=1))

    with pytest.raises(TopologyError, match="somebody else consumes from it"):
        await look(link, name)

    await other.aclose()
    await eventually(lambda: _counts(link, name, count), 30)
    assert await look(link, name) == ["0", "1"][:count]


async def test_two_walks_at_once_do_not_share_a_queue(
    link: Link, broker: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.control.dead_letters.walk.BUSY_LOOKS", 0)
    name = await bury(link, *range(20), queue=queue)
    other = connect(broker)
    await other.open(30)

    async with Walk(link, name) as walk:
        async for delivery in walk:
            await walk.keep(delivery)
            if walk.seen in (1, 10):
                with pytest.raises(TopologyError, match="somebody else consumes from it"):
                    await look(other, name)

    assert walk.seen == 20
    assert await look(other, name) == [str(n) for n in range(20)]
    await other.aclose()


async def test_walk_that_is_left_in_the_middle_gives_back_all_it_has_not_taken(
    link: Link, queue: Queue
) -> None:
    name = await bury(link, *range(20), queue=queue)

    async with Walk(link, name) as walk:
        async for delivery in walk:
            if walk.seen == 5:
                break
            walk.take(delivery)

    assert await bodies_in(link, name) == [str(n) for n in range(4, 20)]


async def test_lost_connection_is_told_and_nothing_is_lost(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    link = connect(rabbit_uri)
    await link.open(30)
    name = await bury(link, *range(10))

    with pytest.raises(WalkInterrupted, match="Nothing is lost"):
        await _look_and_cut(link, name, rabbit_api, rabbit_vhost)

    await link.ready(30)
    await eventually(lambda: _counts(link, name, 10), 30)
    assert await bodies_in(link, name) == [str(n) for n in range(10)]
    await link.aclose()


async def _look_and_cut(link: Link, name: str, api: ManagementApi, vhost: str) -> None:
    async with Walk(link, name) as walk:
        async for delivery in walk:
            await walk.keep(delivery)
            if walk.seen == 5:
                cut = partial(asyncio.to_thread, api.close_connections, vhost)
                await cut_until(cut, partial(getattr, delivery, "is_lost"))


async def _counts(link: Link, name: str, count: int) -> bool:
    return await link.message_count(name) == count


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_hundred_thousand_messages_are_looked_at_with_few_of_them_in_the_memory(
    rabbit_uri: str,
) -> None:
    count, body = 100_000, "x" * 1000
    link = connect(rabbit_uri)
    await link.open(30)
    name = await bury(link, *([body] * count))
    most = 0

    async with Walk(link, name) as walk:
        async for delivery in walk:
            most = max(most, len(walk._waiting))
            await walk.keep(delivery)
    seen = walk.seen

    await eventually(lambda: _counts(link, name, count), 60)
    await link.delete_queue(name, 30)
    await link.aclose()
    assert seen == count
    assert most * len(body) <= 64 * 1024 * 1024
