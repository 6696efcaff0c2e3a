"""A table in the PostgreSQL of the flow's state: rows and checkpoint move together, whatever is refused, away or killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from tests.cli.commands import MYCELIA
from tests.flows.counting import statistics
from tests.flows.storing import (
    SERVICE,
    STORED,
    TABLE,
    Stored,
    checkpoint_and_rows,
    storing,
)
from tests.processes import Process

from mycelia import Client
from mycelia.flow import delivery as delivery_module
from mycelia.flow import owned_partition
from mycelia.logs import partition_of
from mycelia.policies.retry import exponential
from mycelia.testing import eventually, run_services, take_dead_letters

FLIGHTS = [Stored(f"N{n % 5}", n) for n in range(400)]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owned_partition, "PAUSES", (0.1,))
    monkeypatch.setattr(delivery_module, "_PAUSES", exponential("10ms", max="50ms", jitter=False))


@pytest.fixture
def uri(postgres_uri: str) -> str:
    ask(postgres_uri, TABLE)
    return postgres_uri


def ask(uri: str, statement: str) -> None:
    with psycopg.connect(uri, autocommit=True) as db:
        db.execute(statement.encode())


def config(uri: str) -> dict[str, Any]:
    return {"mycelia": {"flows": {"state": uri}}}


async def append(client: Client, flights: Sequence[Stored]) -> None:
    await asyncio.gather(*(client.append(STORED, one) for one in flights))


async def rows(uri: str) -> Sequence[Stored]:
    return (await asyncio.to_thread(checkpoint_and_rows, uri))[1]


async def by_entry(client: Client, appended: Sequence[Stored]) -> dict[tuple[int, int], list[int]]:
    """All that is in the log: numbers by partition and offset."""
    found: dict[tuple[int, int], list[int]] = {}
    for partition in range(STORED.partitions):
        left = sum(partition_of(one.plane, STORED.partitions) == partition for one in appended)
        if not left:
            continue
        async with STORED.reader(client.link, partition) as reader:
            async for entry in reader:
                found[partition, entry.offset] = [one.value.number for one in entry.records]
                left -= len(entry.records)
                if not left:
                    break
    return found


def agree(
    entries: dict[tuple[int, int], list[int]], taken: dict[int, int], found: Sequence[Stored]
) -> bool:
    """Whether the rows are those of the entries that the checkpoints say to have been taken."""
    wanted = [
        number
        for (partition, offset), numbers in entries.items()
        if offset < taken.get(partition, 0)
        for number in numbers
    ]
    return sorted(wanted) == sorted(one.number for one in found)


def in_order_of_planes(found: Sequence[Stored]) -> bool:
    return all(
        [one.number for one in found if one.plane == plane]
        == sorted(one.number for one in found if one.plane == plane)
        for plane in {one.plane for one in found}
    )


async def test_refused_rows_become_dead_letters_and_the_others_are_there(
    broker: str, uri: str
) -> None:
    ask(uri, "ALTER TABLE stored ADD CHECK (number NOT IN (3, 300))")
    service = storing(uri, on_error="dead-letter")
    async with run_services(service, broker=broker, config=config(uri)) as bed:
        await append(bed.client, FLIGHTS)
        await eventually(lambda: statistics(bed, service).records == 400, 20)
        letters = await take_dead_letters(bed.client.link, "log-stored--storing.on", 2)
        told = statistics(bed, service)

    found = await rows(uri)
    assert sorted(one.number for one in found) == [n for n in range(400) if n not in (3, 300)]
    assert in_order_of_planes(found)
    assert sorted(one.payload["number"] for one in letters) == [3, 300]
    assert {one.headers["x-flow-output"] for one in letters} == {"stored"}
    assert told.dead == 2
    assert told.delivered > 0
    assert told.waiting_bytes == 0


async def test_refused_row_stops_its_partition_is_named_and_loses_no_checkpoint(
    broker: str, uri: str
) -> None:
    ask(uri, "ALTER TABLE stored ADD CONSTRAINT no_thirteen CHECK (number <> 113)")
    service = storing(uri)
    async with run_services(service, broker=broker, config=config(uri)) as bed:
        await append(bed.client, FLIGHTS[:100])
        await eventually(lambda: statistics(bed, service).records == 100, 20)
        await append(bed.client, FLIGHTS[100:200])
        await eventually(lambda: bool(statistics(bed, service).standing_still), 20)
        (why,) = statistics(bed, service).standing_still.values()
        seen = await asyncio.to_thread(checkpoint_and_rows, uri)
        assert agree(await by_entry(bed.client, FLIGHTS[:200]), *seen)
        ask(uri, "ALTER TABLE stored DROP CONSTRAINT no_thirteen")
        await eventually(lambda: statistics(bed, service).records == 200, 20)
        await eventually(lambda: not statistics(bed, service).standing_still, 30)

    assert 'output "stored": table "stored" refuses the row of record storing.on/' in why
    assert 'violates check constraint "no_thirteen"' in why
    found = await rows(uri)
    assert sorted(one.number for one in found) == list(range(200))
    assert in_order_of_planes(found)


async def test_what_waits_in_the_outbox_is_written_before_what_goes_with_commits(
    broker: str, uri: str
) -> None:
    """The table's URL was another name of the same host before, so that rows went by the outbox; and the table was away."""
    by_outbox = storing(uri.replace("127.0.0.1", "localhost"))
    async with run_services(by_outbox, broker=broker, config=config(uri)) as bed:
        await append(bed.client, FLIGHTS[:100])
        await eventually(lambda: statistics(bed, by_outbox).records == 100, 20)
        await eventually(lambda: not statistics(bed, by_outbox).waiting_bytes, 20)
        ask(uri, "ALTER TABLE stored RENAME TO hidden")
        await append(bed.client, FLIGHTS[100:200])
        await eventually(lambda: statistics(bed, by_outbox).records == 200, 20)
        assert statistics(bed, by_outbox).waiting_bytes
    ask(uri, "ALTER TABLE hidden RENAME TO stored")
    ask(uri, "ALTER TABLE stored ADD CONSTRAINT not_yet CHECK (number <> 150)")
    beside = storing(uri)
    async with run_services(beside, broker=broker, config=config(uri)) as bed:
        await append(bed.client, FLIGHTS[200:])
        await eventually(lambda: bool(statistics(bed, beside).standing_still), 20)
        before = await rows(uri)
        ask(uri, "ALTER TABLE stored DROP CONSTRAINT not_yet")
        await eventually(lambda: statistics(bed, beside).records == 200, 20)

    stopped = {one.plane for one in FLIGHTS if one.number == 150}
    assert not [one for one in before if one.plane in stopped and one.number >= 150]
    found = await rows(uri)
    assert sorted(one.number for one in found) == list(range(400))
    assert in_order_of_planes(found)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_rows_and_checkpoint_are_of_one_commit_through_kills(
    rabbit_uri: str, uri: str, tmp_path: Path
) -> None:
    (tmp_path / "storing.py").write_text(SERVICE.read_text())
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: {rabbit_uri}\nmycelia: {{flows: {{state: '{uri}'}}}}\n"
    )
    chance = Random(5)
    count, kills = 2_500, 4
    part = count // (kills + 1)
    assert part % 25 == 0
    stored = [Stored(f"N{n % 7}", n) for n in range(count)]
    seen: list[Any] = []
    is_done, killed = asyncio.Event(), asyncio.Semaphore(0)

    async def start() -> Process:
        command = (*MYCELIA, "run", "storing", "--config", "config.yaml")
        process = processes.enter_context(Process(*command, cwd=tmp_path, STORED_AT=uri))
        await asyncio.to_thread(process.wait_until_ready)
        return process

    async def looking() -> None:
        while not is_done.is_set():
            seen.append(await asyncio.to_thread(checkpoint_and_rows, uri))

    async def appending(client: Client) -> None:
        for begin in range(0, count, 25):
            if begin and begin % part == 0:
                await killed.acquire()
            await append(client, stored[begin : begin + 25])
            await asyncio.sleep(0.02)

    async with Client(rabbit_uri) as client:
        with ExitStack() as processes:
            process = await start()
            appended = asyncio.ensure_future(appending(client))
            looked = asyncio.ensure_future(looking())
            for number in range(kills):
                # Not of what is there by now: a process may have stored the whole part before it is seen to be ready.
                had = number * part

                async def goes_on(had: int = had) -> bool:
                    return len(await rows(uri)) > had + 50

                await eventually(goes_on, 60)
                await asyncio.sleep(chance.random() * 0.3)
                os.kill(process.pid, signal.SIGKILL)
                killed.release()
                process = await start()
            await appended

            async def all_there() -> bool:
                return len(await rows(uri)) >= count

            await eventually(all_there, 60, interval=0.1)
            is_done.set()
            await looked
        entries = await by_entry(client, stored)

    found = await rows(uri)
    assert sorted(one.number for one in found) == list(range(count))
    assert in_order_of_planes(found)
    assert len({len(those) for _, those in seen}) > 2 * kills
    assert all(agree(entries, *one) for one in seen), "rows and checkpoint are of two commits"
