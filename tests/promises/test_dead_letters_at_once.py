"""Every handler fails at once, as with a database that is down: what is not handled is a dead letter, once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import BROADCAST, Queue, consume, event_handler
from mycelia.amqp import ConsumeOptions, Delivery, Message, Properties
from mycelia.broker.management_api import ManagementApi
from mycelia.entrypoints.dead_letters import dead_letter_queue
from mycelia.testing import ServiceBed, eventually, run_services

COUNT = 2400
WIDE = {"prefetch": COUNT, "concurrency": COUNT}


class Database:
    """Down, from the moment on that all have asked it something."""

    waiting = 0
    handled: Counter[int] = Counter()  # noqa: RUF012  shared on purpose
    asked: Counter[int] = Counter()  # noqa: RUF012  shared on purpose
    is_down: asyncio.Event

    @classmethod
    def reset(cls) -> None:
        cls.handled, cls.asked, cls.is_down = Counter(), Counter(), asyncio.Event()

    @classmethod
    def answer(cls, number: int) -> None:
        """Every fourth was quick enough."""
        if number % 4:
            raise ConnectionError("the database is down")
        cls.handled[number] += 1

    @classmethod
    async def ask(cls, number: int) -> None:
        cls.asked[number] += 1
        await cls.is_down.wait()
        cls.answer(number)


class Busy:
    name = "busy"

    @event_handler("source", "quorum", **WIDE)
    async def quorum(self, number: int) -> None:
        await Database.ask(number)

    @consume(Queue("classic"), **WIDE)
    async def classic(self, number: int) -> None:
        await Database.ask(number)

    @event_handler("source", "everywhere", BROADCAST, reliable_delivery=False, **WIDE)
    async def everywhere(self, number: int) -> None:
        await Database.ask(number)

    @event_handler("source", "threaded", prefetch=COUNT, concurrency=50)
    def threaded(self, number: int) -> None:
        Database.asked[number] += 1
        Database.answer(number)


async def publish(bed: ServiceBed, kind: str) -> str:
    """Publish all of them. Returns the queue that they fail in."""
    if kind == "classic":
        properties = Properties("application/json")
        link = bed.container(Busy).host.link
        messages = (Message("", kind, str(n).encode(), properties) for n in range(COUNT))
        await asyncio.gather(*(link.publish(message) for message in messages))
        return kind
    await asyncio.gather(*(bed.client.publish("source", kind, n) for n in range(COUNT)))
    return f"evt-source-{kind}--busy.{kind}"


GOOD = Counter(range(0, COUNT, 4))
BAD = Counter(number for number in range(COUNT) if number % 4)


@pytest.mark.long_variants("classic", "everywhere")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["quorum", "classic", "everywhere", "threaded"])
async def test_all_that_fail_at_once_are_dead_letters_once(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    Database.reset()
    async with run_services(Busy, broker=rabbit_uri, timeout=60) as bed:
        queue = await publish(bed, kind)
        if kind != "threaded":
            await eventually(lambda: len(Database.asked) == COUNT, 60)
        Database.is_down.set()
        link = bed.container(Busy).host.link
        dead = await read_dead_letters(link, queue, len(BAD), 90)
        assert await link.message_count(f"{queue}.dead") == 0

    assert Database.handled == GOOD
    assert Counter(int(letter.body) for letter in dead) == BAD
    assert Database.asked == GOOD + BAD
    assert not any("failed" in line and "worker_failed" not in line for line in caplog.messages)


@pytest.mark.long_variants("classic")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_none_is_lost_when_the_connections_go_at_the_same_moment(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str, kind: str
) -> None:
    """At least once: a confirm that was lost makes a second dead letter, more lost acknowledgements than are remembered (512)
    a second run."""
    Database.reset()
    letters: list[Delivery] = []
    async with run_services(Busy, broker=rabbit_uri, timeout=60) as bed:
        queue = await publish(bed, kind)
        await eventually(lambda: len(Database.asked) == COUNT, 60)

        def are_listed() -> bool:
            return len(rabbit_api.connections(rabbit_vhost)) >= 3

        await eventually(lambda: asyncio.to_thread(are_listed), 20, interval=0.1)
        Database.is_down.set()
        await asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost)
        link = bed.container(Busy).host.link
        await link.ready(30)
        dead = dead_letter_queue(f"{queue}.dead")
        await link.declare(dead)
        await link.consume(dead.name, letters.extend, ConsumeOptions(no_ack=True))
        await eventually(lambda: {int(one.body) for one in letters} == BAD.keys(), 90)

    assert Database.handled.keys() == GOOD.keys()
    assert Database.asked.keys() == (GOOD + BAD).keys()
