"""What failed comes again: hundreds at once, the broker away at the moment of failure, the process killed in the pause."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import Client, Retry, event_handler, fixed, get_current_call
from mycelia.amqp import connect
from mycelia.broker.node import PrivateNode
from mycelia.testing import eventually, run_services

COUNT = 600
FIRST = -1


class Database:
    """Down until it is up."""

    is_up = False
    tried: Counter[int] = Counter()  # noqa: RUF012  shared on purpose
    done: Counter[int] = Counter()  # noqa: RUF012
    attempts: set[int] = set()  # noqa: RUF012

    @classmethod
    def reset(cls) -> None:
        cls.is_up, cls.tried, cls.done, cls.attempts = False, Counter(), Counter(), set()


class Needs:
    """Fails while the database is down."""

    name = "needs"

    @event_handler("source", "came", retry=Retry(attempts=9, backoff=fixed("2s")))
    async def take(self, number: int) -> None:
        Database.tried[number] += 1
        if not Database.is_up:
            raise ConnectionError("the database is down")
        call = get_current_call()
        assert call is not None
        Database.attempts.add(call.attempt)
        Database.done[number] += 1


@pytest.fixture(autouse=True)
def _reset() -> None:
    Database.reset()


async def publish_all(uri: str, count: int = COUNT) -> None:
    async with Client(uri, timeout=30) as client:
        await asyncio.gather(*(client.publish("source", "came", n) for n in range(count)))


@pytest.mark.timeout(180)
async def test_all_that_fail_at_once_come_again_and_none_is_lost(rabbit_uri: str) -> None:
    async with run_services(Needs, broker=rabbit_uri, timeout=15):
        await publish_all(rabbit_uri)
        await eventually(lambda: len(Database.tried) == COUNT, 60)
        Database.is_up = True
        await eventually(lambda: len(Database.done) == COUNT, 60)

    assert set(Database.done.values()) == {1}


@pytest.mark.long
@pytest.mark.settling
@pytest.mark.timeout(240)
async def test_broker_away_at_the_moment_of_failure_loses_none(
    own_rabbit_node: PrivateNode,
) -> None:
    """The handlers hold their messages when the broker goes, and fail while it is away."""
    uri = own_rabbit_node.uri()
    fail, begun = asyncio.Event(), Counter[int]()

    class Holding:
        name = "holding"

        @event_handler(
            "source", "came", concurrency=50, retry=Retry(attempts=9, backoff=fixed("250ms"))
        )
        async def take(self, number: int) -> None:
            begun[number] += 1
            if number == FIRST:
                if begun[number] == 1:
                    raise ConnectionError
                return
            await fail.wait()
            if not Database.is_up:
                raise ConnectionError("the database is down")
            Database.done[number] += 1

    async with run_services(Holding, broker=uri, timeout=15):
        async with Client(uri, timeout=30) as client:
            await client.publish("source", "came", FIRST)
        await eventually(lambda: begun[FIRST] == 2, 60)  # so the broker has all queues on its disk
        await publish_all(uri, 50)
        await eventually(lambda: len(begun) == 51, 60)
        await asyncio.to_thread(own_rabbit_node.kill)
        fail.set()  # all fail now, and nobody takes them
        await asyncio.to_thread(own_rabbit_node.start, leash=True)
        Database.is_up = True
        await eventually(lambda: len(Database.done) == 50, 120)


@pytest.mark.settling
@pytest.mark.timeout(240)
async def test_pause_that_ends_while_a_killed_broker_is_down_loses_none(
    own_rabbit_node: PrivateNode,
) -> None:
    """On a broker that has never seen a retry: all that fail wait there for the end of one pause, and it is killed meanwhile."""
    uri = own_rabbit_node.uri()

    class Waiting:
        name = "waiting"

        @event_handler("source", "came", retry=Retry(attempts=9, backoff=fixed("4s")))
        async def take(self, number: int) -> None:
            if not Database.is_up:
                raise ConnectionError("the database is down")
            Database.done[number] += 1

    link = connect(uri)
    await link.open(15)

    async def all_wait() -> bool:
        return await link.message_count("mycelia.delay.short.4s") == COUNT

    async with run_services(Waiting, broker=uri, timeout=15):
        await publish_all(uri)
        await eventually(all_wait, 60, interval=0.02)
        pause_ends = asyncio.get_running_loop().time() + 4.25
        await asyncio.to_thread(own_rabbit_node.kill)
        Database.is_up = True
        await asyncio.sleep(pause_ends - asyncio.get_running_loop().time())
        await asyncio.to_thread(own_rabbit_node.start, leash=True)
        await eventually(lambda: len(Database.done) == COUNT, 120)
    await link.aclose()


SERVICE = """
from mycelia import Retry, event_handler, fixed, get_current_call

class Needs:
    name = "needs"

    @event_handler("source", "came", retry=Retry(attempts=9, backoff=fixed("2s")))
    async def take(self, number):
        with open("book.txt", "a") as book:
            book.write(f"{number}:{get_current_call().attempt}\\n")
        raise ConnectionError("the database is down")
"""


@pytest.mark.timeout(180)
async def test_process_killed_in_the_pause_takes_none_along(
    tmp_path: Path, rabbit_uri: str
) -> None:
    (tmp_path / "needs.py").write_text(SERVICE)
    (tmp_path / "book.txt").touch()
    command = (NAMEKO, "run", "needs", "--broker", rabbit_uri)
    with Process(*command, cwd=tmp_path) as service:
        await asyncio.to_thread(service.wait_until_ready)
        await publish_all(rabbit_uri, 200)
        await eventually(
            lambda: len({line.split(":")[0] for line in _book(tmp_path)}) == 200, 60, interval=0.05
        )
        service.kill()

    Database.is_up = True
    async with run_services(Needs, broker=rabbit_uri, timeout=15):
        await eventually(lambda: len(Database.done) == 200, 60)

    assert min(Database.attempts) >= 1
    assert max(Database.attempts) >= 2  # counted on, not begun anew


def _book(folder: Path) -> list[str]:
    return (folder / "book.txt").read_text().split()


class Hopeless:
    """Fails whatever comes."""

    name = "hopeless"

    @event_handler("source", "came", retry=Retry(attempts=3, backoff=fixed("250ms")))
    async def take(self, number: int) -> None:
        Database.tried[number] += 1
        raise ConnectionError("the database is down")


@pytest.mark.timeout(120)
async def test_attempts_are_counted_over_all_instances(rabbit_uri: str) -> None:
    link = connect(rabbit_uri)
    await link.open(15)
    async with (
        run_services(Hopeless, broker=rabbit_uri, timeout=15),
        run_services(Hopeless, broker=rabbit_uri, timeout=15),
        run_services(Hopeless, broker=rabbit_uri, timeout=15),
    ):
        await publish_all(rabbit_uri, 50)
        letters = await read_dead_letters(link, "evt-source-came--hopeless.take", 50, 60)
    await link.aclose()

    assert Database.tried == Counter(dict.fromkeys(range(50), 3))
    assert {(letter.properties.headers or {})["x-mycelia-attempts"] for letter in letters} == {3}
