"""`@log_handler`: every record handled, in order, by whoever has its partition; what fails is tried again, then a dead letter."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mycelia import Client, Log, Record, Retry, fixed, get_current_call, log_handler
from mycelia.amqp import ConsumeOptions, Message, Properties, connect
from mycelia.errors import ConfigError
from mycelia.flow import FlowOutput, Stream, flow
from mycelia.logs import LogHandler, partition_of
from mycelia.logs.log_handler import LogHandlerStatistics
from mycelia.testing import ServiceBed, eventually, run_services

PARTITIONS = 6


@dataclass
class Landed:
    plane: str
    number: int


LANDED = Log("landed", of=Landed, key="plane", partitions=PARTITIONS, linger="1ms")


class Book:
    """What has been handled, by whom."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any, int]] = []

    def numbers(self) -> list[int]:
        return [number for _, _, number in self.lines]

    def by_key(self) -> dict[Any, list[int]]:
        found: dict[Any, list[int]] = defaultdict(list)
        for _, key, number in self.lines:
            found[key].append(number)
        return found


def counting(book: Book, who: str = "one", **options: Any) -> type:
    class Counting:
        name = "counting"

        @log_handler(LANDED, **options)
        async def landed(self, records: list[Record[Landed]]) -> None:
            for record in records:
                book.lines.append((who, record.key, record.value.number))

    return Counting


async def land(client: Client, count: int, begin: int = 0) -> None:
    await client.append_many(LANDED, [Landed(f"P{n % 17}", n) for n in range(begin, begin + count)])


def owned(bed: ServiceBed, service: type) -> list[int]:
    handlers = [e for e in bed.container(service).entrypoints if isinstance(e, LogHandler)]
    return handlers[0].statistics().partitions


async def test_all_is_handled_in_order_and_a_restart_goes_on(broker: str) -> None:
    book = Book()
    async with Client(broker) as client:
        await land(client, 200)
        async with run_services(counting(book), broker=broker):
            await land(client, 200, 200)
            await eventually(lambda: len(book.lines) >= 400, 20)
        await land(client, 100, 400)
        async with run_services(counting(book), broker=broker):
            await eventually(lambda: len(book.lines) >= 500, 20)

    assert sorted(book.numbers()) == list(range(500))
    assert all(numbers == sorted(numbers) for numbers in book.by_key().values())


async def test_def_methods_and_groups_that_know_nothing_of_each_other(broker: str) -> None:
    first, second = Book(), Book()

    class Two:
        name = "two"

        @log_handler(LANDED, group="audit")
        def audit(self, records: list[Record[Landed]]) -> None:
            first.lines += [("audit", one.key, one.value.number) for one in records]

        @log_handler(LANDED)
        async def count(self, records: list[Record[Landed]]) -> None:
            second.lines += [("count", one.key, one.value.number) for one in records]

    async with run_services(Two, broker=broker), Client(broker) as client:
        await land(client, 100)
        await eventually(lambda: len(first.lines) == len(second.lines) == 100, 20)

    assert sorted(first.numbers()) == sorted(second.numbers()) == list(range(100))


async def test_group_that_begins_with_what_is_next_keeps_to_it(broker: str) -> None:
    """Also when it is started anew before anything has come."""
    book = Book()
    service = counting(book, start="next")
    async with Client(broker) as client:
        await land(client, 50)
        async with run_services(service, broker=broker) as bed:
            await eventually(lambda: len(owned(bed, service)) == PARTITIONS, 20)
            handler = next(iter(bed.container(service).entrypoints))
            await eventually(lambda: handler.statistics().checkpoints >= PARTITIONS, 20)
        await land(client, 50, 50)
        async with run_services(service, broker=broker):
            await eventually(lambda: len(book.lines) >= 50, 20)

    assert sorted(book.numbers()) == list(range(50, 100))


async def dead_letters(broker: str, group: str, count: int) -> list[tuple[bytes, Properties]]:
    link = connect(broker)
    await link.open(15)
    letters: list[tuple[bytes, Properties]] = []
    consumer = await link.consume(
        f"log-landed--{group}.dead",
        lambda batch: letters.extend((one.body, one.properties) for one in batch),
        ConsumeOptions(no_ack=True),
    )
    await eventually(lambda: len(letters) >= count, 30)
    await consumer.aclose()
    await link.aclose()
    return letters


async def test_entry_that_fails_is_tried_again_and_holds_its_partition_only(broker: str) -> None:
    book, attempts = Book(), []

    class Failing:
        name = "failing"

        @log_handler(LANDED, retry=Retry(attempts=3, backoff=fixed("50ms")))
        async def landed(self, records: list[Record[Landed]]) -> None:
            if any(one.value.number == 13 for one in records):
                call = get_current_call()
                assert call is not None
                attempts.append(call.attempt)
                raise ConnectionError("no runway")
            book.lines += [("one", one.key, one.value.number) for one in records]

    async with run_services(Failing, broker=broker), Client(broker) as client:
        for number in range(30):
            await client.append(LANDED, Landed("P1", number))
        await eventually(lambda: len(book.lines) >= 29, 20)
        ((_, properties),) = await dead_letters(broker, "failing.landed", 1)

    assert attempts == [1, 2, 3]
    assert book.numbers() == [n for n in range(30) if n != 13]
    headers = properties.headers or {}
    assert headers["x-mycelia-error"] == "no runway"
    assert headers["x-mycelia-attempts"] == 3
    assert (headers["x-mycelia-exchange"], headers["x-mycelia-routing-key"]) == (
        "landed",
        str(partition_of("P1", PARTITIONS)),
    )


async def test_dead_letter_of_a_log_may_be_appended_again(broker: str) -> None:
    """As `mycelia dlq` sends it: to where it came from. It is no repetition of the one that failed."""
    seen: list[int] = []

    class Once:
        name = "once"

        @log_handler(LANDED, retry=None)
        async def landed(self, records: list[Record[Landed]]) -> None:
            seen.extend(one.value.number for one in records)
            if len(seen) == 1:
                raise ValueError("not yet")

    async with run_services(Once, broker=broker), Client(broker) as client:
        await client.append(LANDED, Landed("P1", 1))
        ((body, properties),) = await eventually_letters(broker, "once.landed")
        headers = {k: v for k, v in (properties.headers or {}).items() if "mycelia" not in k}
        partition = str(partition_of("P1", PARTITIONS))
        await client.link.publish(
            Message("landed", partition, body, properties.republished(headers), mandatory=True)
        )
        await eventually(lambda: seen == [1, 1], 20)


async def eventually_letters(broker: str, group: str) -> list[tuple[bytes, Properties]]:
    link = connect(broker)
    await link.open(15)

    async def is_there() -> bool:
        try:
            return await link.message_count(f"log-landed--{group}.dead") > 0
        except Exception:  # noqa: BLE001  it is made when it is needed
            return False

    await eventually(is_there, 20)
    await link.aclose()
    return await dead_letters(broker, group, 1)


async def test_what_cannot_be_read_is_a_dead_letter_and_the_rest_is_handled(broker: str) -> None:
    book = Book()
    async with run_services(counting(book), broker=broker), Client(broker) as client:
        await LANDED.declare(client.link)
        plain = Properties(content_type="application/json", headers={"x-log-key": "P1"})
        for body in (b'{"plane": "P1", "number": 1}', b'{"plane": 7}', b"\xff"):
            await client.link.publish(Message("landed", "0", body, plain, mandatory=True))
        await client.link.publish(
            Message("landed", "0", b'{"plane": "P1", "number": 2}', plain, mandatory=True)
        )
        await eventually(lambda: book.numbers() == [1, 2], 20)
        letters = await dead_letters(broker, "counting.landed", 2)

    assert [body for body, _ in letters] == [b'{"plane": 7}', b"\xff"]
    assert {(p.headers or {})["x-mycelia-reason"] for _, p in letters} == {"undecodable"}
    assert "Expected `str`, got `int`" in (letters[0][1].headers or {})["x-mycelia-error"]


@asynccontextmanager
async def instances(
    broker: str, book: Book, count: int
) -> AsyncIterator[list[tuple[ServiceBed, type, AsyncExitStack]]]:
    """Instances of one service in one process, each with its own connections."""
    started: list[tuple[ServiceBed, type, AsyncExitStack]] = []
    try:
        for number in range(count):
            started.append(await instance(broker, book, number))  # noqa: PERF401  those before are closed if one fails
        yield started
    finally:
        for _, _, stack in started:
            await stack.aclose()


async def instance(broker: str, book: Book, number: int) -> tuple[ServiceBed, type, AsyncExitStack]:
    stack = AsyncExitStack()
    service = counting(book, f"instance {number}")
    bed = await stack.enter_async_context(run_services(service, broker=broker))
    return bed, service, stack


def shares(started: list[tuple[ServiceBed, type, AsyncExitStack]]) -> list[int]:
    return sorted(len(owned(bed, service)) for bed, service, _ in started)


async def test_partitions_are_shared_evenly_as_instances_come_and_go(rabbit_uri: str) -> None:
    book = Book()
    stop = asyncio.Event()

    async def landing(client: Client) -> int:
        number = 0
        while not stop.is_set():
            await land(client, 20, number)
            number += 20
        return number

    async with Client(rabbit_uri) as client, instances(rabbit_uri, book, 1) as started:
        running = asyncio.ensure_future(landing(client))
        await eventually(lambda: shares(started) == [6], 20)
        started.append(await instance(rabbit_uri, book, 1))
        await eventually(lambda: shares(started) == [3, 3], 30)
        started += [await instance(rabbit_uri, book, number) for number in (2, 3)]
        await eventually(lambda: shares(started) == [1, 1, 2, 2], 30)
        _, _, leaving = started.pop(0)
        await leaving.aclose()
        await eventually(lambda: shares(started) == [2, 2, 2], 30)
        stop.set()
        total = await running
        await eventually(lambda: len(set(book.numbers())) == total, 30)
        who = {name for name, _, _ in book.lines}

    assert len(who) == 4
    assert sorted(book.numbers()) == list(range(total)), "nothing moves in the middle of an entry"
    assert all(numbers == sorted(numbers) for numbers in book.by_key().values())


async def test_group_whose_place_is_gone_stands_still_and_says_so(
    broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book()
    service = counting(book)
    async with Client(broker) as client:
        await land(client, 200)
        async with run_services(service, broker=broker):
            await eventually(lambda: len(book.lines) == 200, 20)
        for partition in range(PARTITIONS):
            await client.link.delete_queue(f"landed-{partition}")
        await LANDED.declare(client.link)
        async with run_services(service, broker=broker):
            await eventually(lambda: "log_handler_stands_still" in caplog.text, 30)

    assert "made anew" in caplog.text
    assert len(book.lines) == 200


async def test_handler_whose_dead_letters_cannot_be_published_stands_still_until_they_can(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    takes_it = False

    async def bury(*args: Any) -> bool:
        nonlocal tries
        tries += 1
        return takes_it

    module = sys.modules["mycelia.logs.log_handler"]  # the decorator has its name
    monkeypatch.setattr(module, "bury_entry", bury)

    class Failing:
        name = "failing"

        @log_handler(LANDED, retry=None)
        async def landed(self, records: list[Record[Any]]) -> None:
            raise ValueError("never")

    async with Client(broker) as client, run_services(Failing, broker=broker) as bed:

        def told() -> LogHandlerStatistics:
            (handler,) = bed.container(Failing).entrypoints
            statistics = handler.statistics()
            assert isinstance(statistics, LogHandlerStatistics)
            return statistics

        await land(client, 1)
        await eventually(lambda: tries >= 2 and told().standing_still, 30)
        (trouble,) = told().troubles()
        takes_it = True
        await eventually(lambda: told().dead == 1 and not told().standing_still, 30)

    assert "stands still: a dead letter cannot be published" in trouble


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("landed", {}, "'landed' is no Log"),
        (LANDED, {"start": "begin"}, "start="),
        (LANDED, {"retry": 3}, "retry=3"),
        (LANDED, {"group": ""}, "group=''"),
    ],
)
def test_handler_that_cannot_be_is_refused_where_it_is_written(
    source: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):

        class Wrong:
            name = "wrong"

            @log_handler(source, **options)
            def landed(self, records: list[Any]) -> None: ...


async def test_method_without_a_place_for_the_records_stops_the_start(broker: str) -> None:
    class Wrong:
        name = "wrong"

        @log_handler(LANDED)
        def landed(self) -> None: ...

    with pytest.raises(ConfigError, match="takes one argument, a list of records"):
        async with run_services(Wrong, broker=broker):
            pass


class HandlesTwice:
    name = "twice"

    @log_handler(LANDED, group="shared")
    async def one(self, records: list[Record[Any]]) -> None: ...

    @log_handler(LANDED, group="shared")
    async def other(self, records: list[Record[Any]]) -> None: ...


class Flows:
    name = "flows"

    @flow(LANDED, group="shared")
    def landed(self, landings: Stream[Landed]) -> FlowOutput:
        return landings.emit("landed")


class FlowsToo:
    name = "flows_too"

    @flow(LANDED, group="shared")
    def landed(self, landings: Stream[Landed]) -> FlowOutput:
        return landings.emit("landed")


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ((HandlesTwice,), 'twice.one and twice.other are both the group "shared" of log "landed"'),
        ((Flows, FlowsToo), "flows.landed and flows_too.landed are both"),
        ((FlowsToo, HandlesTwice), "are both the group"),
    ],
)
async def test_two_methods_of_one_group_stop_the_start(
    services: tuple[type, ...], said: str, tmp_path: Path
) -> None:
    """Each would have a part of the partitions, and neither all of the records."""
    state = {"mycelia": {"flows": {"state": str(tmp_path)}}}
    with pytest.raises(ConfigError, match=said):
        async with run_services(*services, config=state):
            pass


async def test_a_clock_that_is_set_back_holds_up_nothing(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a day, while records are appended and handled: they go by offsets, waits by a clock that only goes forward."""
    book, real = Book(), time.time
    service = counting(book)
    async with run_services(service, broker=broker) as bed, Client(broker) as client:
        handler = next(iter(bed.container(service).entrypoints))
        await land(client, 100)
        await eventually(lambda: len(book.lines) == 100, 20)
        monkeypatch.setattr(time, "time", lambda: real() - 86_400)
        await land(client, 100, 100)
        await eventually(lambda: len(book.lines) == 200, 20)
        written = handler.statistics().checkpoints
        await land(client, 50, 200)
        await eventually(lambda: handler.statistics().checkpoints > written, 20)
        await eventually(lambda: len(book.lines) == 250, 20)

    assert sorted(book.numbers()) == list(range(250))
    assert all(numbers == sorted(numbers) for numbers in book.by_key().values())
