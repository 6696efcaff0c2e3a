"""Sources that are no logs: each record counts once, through failures before and after commits, and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from tests.flows.counting import config, statistics

from mycelia import Client
from mycelia.amqp import Message, Properties, Queue
from mycelia.errors import StateUnavailable
from mycelia.flow import (
    FlowOutput,
    Stream,
    events,
    flow,
    iterator,
    owned_partition,
    queue,
    sql_changes,
    sql_table,
    ticks,
)
from mycelia.flow.state_file import StateFile
from mycelia.testing import eventually, run_services, take_dead_letters

COUNT = 1500


@dataclass
class Reading:
    meter: str
    number: int


READINGS = [Reading(f"m{n % 3}", n) for n in range(COUNT)]


def storing(source: Any, folder: Path, make: Any = None) -> type:
    """A service that puts what a source gives into a table, a row a record."""
    out = sql_table(f"sqlite:///{folder}/results.db", "given", of=Reading, create=True)

    class Storing:
        name = "storing"

        @flow(source, commit_every="10ms", commit_records=100)
        def on(self, stream: Stream[Any]) -> FlowOutput:
            return (stream if make is None else stream.map(make)).to(out)

    return Storing


def given(folder: Path) -> list[int]:
    engine = sa.create_engine(f"sqlite:///{folder}/results.db", connect_args={"timeout": 10})
    with engine.connect() as connection:
        numbers = connection.execute(sa.text("SELECT number FROM given ORDER BY rowid")).all()
    engine.dispose()
    return [number for (number,) in numbers]


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three commits in ten fail: what was computed is lost, before it is written or after. What the owner remembers is lost with it."""
    monkeypatch.setattr(owned_partition, "PAUSES", (0.01,))
    commit, chance, failed = StateFile.commit, Random(5), list[str]()
    first = iter([0.5, 0.0, 1.0])

    def unreliable(self: StateFile, *args: Any) -> Any:
        dice = next(first, chance.random())
        if dice < 0.15:
            failed.append("before")
            raise StateUnavailable("test", "here", "it fails before it is written")
        numbered = commit(self, *args)
        if dice > 0.85:
            failed.append("after")
            raise StateUnavailable("test", "here", "it fails after it was written")
        return numbered

    monkeypatch.setattr(StateFile, "commit", unreliable)
    return failed


@pytest.mark.long_variants("memory")
async def test_each_event_counts_once_through_failures_and_restarts(
    broker: str, tmp_path: Path, failures: list[str]
) -> None:
    service = storing(events("meters", "read", of=Reading, key="meter"), tmp_path)
    async with Client(broker) as client:
        for begin in range(0, COUNT, 500):
            async with run_services(service, broker=broker, config=config(tmp_path)):
                for at in range(begin, begin + 500, 25):
                    some = READINGS[at : at + 25]
                    await asyncio.gather(*(client.publish("meters", "read", one) for one in some))
                    await asyncio.sleep(0.02)  # for a commit to come between
                await eventually(
                    lambda begin=begin: len(given(tmp_path)) >= begin + 250,  # type: ignore[misc]
                    30,
                )
        async with run_services(service, broker=broker, config=config(tmp_path)):
            await eventually(lambda: len(given(tmp_path)) >= COUNT, 30)

    assert sorted(given(tmp_path)) == list(range(COUNT))
    assert {"before", "after"} <= set(failures)


async def test_message_that_was_published_twice_counts_once_and_a_bad_one_is_a_dead_letter(
    broker: str, tmp_path: Path
) -> None:
    service = storing(queue("readings", of=Reading), tmp_path)
    async with (
        Client(broker) as client,
        run_services(service, broker=broker, config=config(tmp_path)) as bed,
    ):

        def message(number: int, body: bytes) -> Message:
            told = Properties(content_type="application/json", message_id=f"id{number}")
            return Message("", "readings", body, told)

        for number in (0, 1, 0, 1, 2):
            body = b'{"meter":"m","number":%d}' % number
            await client.link.publish(message(number, body))
        await client.link.publish(message(9, b'{"meter":5}'))
        for number in (1, 3):
            body = b'{"meter":"m","number":%d}' % number
            await client.link.publish(message(number, body))
        await eventually(lambda: len(given(tmp_path)) == 4, 20)
        (letter,) = await take_dead_letters(client.link, "log-readings--storing.on")
        await eventually(lambda: statistics(bed, service).faults == 1, 30)

    assert given(tmp_path) == [0, 1, 2, 3]
    assert letter.reason == "undecodable"


async def test_messages_that_come_again_by_thousands_are_let_go(
    broker: str, tmp_path: Path
) -> None:
    """More repeated ones than the broker hands out at once, and nothing new among them."""
    service = storing(queue("readings", of=Reading), tmp_path)
    async with (
        Client(broker) as client,
        run_services(service, broker=broker, config=config(tmp_path)),
    ):

        async def publish(number: int, message_id: str) -> None:
            told = Properties(content_type="application/json", message_id=message_id)
            body = b'{"meter":"m","number":%d}' % number
            await client.link.publish(Message("", "readings", body, told))

        await publish(0, "same")
        await eventually(lambda: given(tmp_path) == [0], 20)
        await asyncio.gather(*(publish(0, "same") for _ in range(3000)))
        await publish(1, "other")
        await eventually(lambda: given(tmp_path) == [0, 1], 20)


async def readings(position: int | None) -> AsyncGenerator[tuple[int, Reading], None]:
    for number in range(0 if position is None else position + 1, COUNT):
        if number % 10 == 0:
            await asyncio.sleep(0.001)
        yield number, READINGS[number]


@pytest.mark.long
async def test_values_of_an_iterator_count_once_through_failures_and_restarts(
    tmp_path: Path, failures: list[str]
) -> None:
    service = storing(iterator(readings, of=Reading), tmp_path)
    broker = f"memory://{tmp_path.name}"
    async with Client(broker):
        for enough in (300, 900, COUNT):
            async with run_services(service, broker=broker, config=config(tmp_path)):
                await eventually(
                    lambda enough=enough: len(given(tmp_path)) >= enough,  # type: ignore[misc]
                    30,
                )

    assert given(tmp_path) == list(range(COUNT))
    assert {"before", "after"} <= set(failures)


async def test_ticks_are_there_once_through_failures_and_restarts(
    tmp_path: Path, failures: list[str]
) -> None:
    service = storing(
        ticks("5ms"), tmp_path, lambda at: Reading("clock", round(at.timestamp() * 1000))
    )
    broker = f"memory://{tmp_path.name}"
    async with Client(broker):
        for enough in (50, 200, 400):
            async with run_services(service, broker=broker, config=config(tmp_path)):
                await eventually(
                    lambda enough=enough: len(given(tmp_path)) >= enough,  # type: ignore[misc]
                    30,
                )
    at = given(tmp_path)

    assert at == list(range(at[0], at[0] + 5 * len(at), 5))
    assert failures


@pytest.mark.long_variants("postgresql")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_rows_of_a_table_count_once_through_failures_and_restarts(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, failures: list[str]
) -> None:
    """Some transactions commit behind others that began later, some never."""
    uri = (
        f"sqlite:///{tmp_path}/meters.db"
        if database == "sqlite"
        else str(request.getfixturevalue("postgres_uri"))
    )
    engine = sa.create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
    key = "INTEGER PRIMARY KEY AUTOINCREMENT" if database == "sqlite" else "BIGSERIAL PRIMARY KEY"
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE TABLE readings (id {key}, meter TEXT, number BIGINT)"))
    insert = sa.text("INSERT INTO readings (meter, number) VALUES ('m', :n)")
    committed: list[int] = []

    def add(numbers: range) -> None:
        with engine.begin() as connection:
            connection.execute(insert, [{"n": n} for n in numbers])
        committed.extend(numbers)

    def add_in_disorder(number: int) -> None:
        """Two transactions: the first takes its number first, and commits last; a third is rolled back."""
        with engine.connect() as first, engine.connect() as second, engine.connect() as third:
            first.execute(insert, {"n": number})
            third.execute(insert, {"n": -1})
            second.execute(insert, {"n": number + 1})
            second.commit()
            third.rollback()
            first.commit()
        committed.extend((number, number + 1))

    source = sql_changes(uri, "readings", of=Reading, every="5ms", settle="300ms")
    service = storing(source, tmp_path)
    broker = f"memory://{tmp_path.name}"
    async with Client(broker):
        for begin in range(0, 600, 200):
            await asyncio.to_thread(add, range(begin, begin + 150))
            async with run_services(service, broker=broker, config=config(tmp_path)):
                for number in range(begin + 150, begin + 200, 2):
                    if database == "sqlite":  # one transaction at a time writes
                        await asyncio.to_thread(add, range(number, number + 2))
                    else:
                        await asyncio.to_thread(add_in_disorder, number)
                await eventually(lambda: len(given(tmp_path)) >= len(committed) - 20, 30)
        async with run_services(service, broker=broker, config=config(tmp_path)):
            await eventually(lambda: len(given(tmp_path)) >= len(committed), 30)
    with engine.connect() as connection:
        wanted = connection.execute(sa.text("SELECT number FROM readings ORDER BY id")).all()
    engine.dispose()

    assert given(tmp_path) == [number for (number,) in wanted]
    assert failures


async def test_queue_of_a_kind_of_its_own_is_read(broker: str, tmp_path: Path) -> None:
    service = storing(queue(Queue("classic"), of=Reading), tmp_path)
    async with (
        Client(broker) as client,
        run_services(service, broker=broker, config=config(tmp_path)),
    ):
        body = b'{"meter":"m","number":7}'
        told = Properties(content_type="application/json")
        await client.link.publish(Message("", "classic", body, told))
        await eventually(lambda: given(tmp_path) == [7], 20)
