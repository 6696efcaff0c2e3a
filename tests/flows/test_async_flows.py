"""Enrichment by calls of another service: in order, bounded, as often as it takes, and called off where the service stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.flows.counting import config, statistics

from mycelia import Client, Log, Retry, RpcProxy, fixed, rpc
from mycelia.flow import FlowOutput, Stream, flow, owned_partition
from mycelia.testing import eventually, run_services


@dataclass
class Flown:
    plane: str
    number: int


@dataclass
class Enriched:
    plane: str
    number: int
    seats: int


FLOWN: Log[Flown] = Log("flown", of=Flown, key="plane", partitions=2)
ENRICHED: Log[Enriched] = Log("enriched", of=Enriched, key="plane", partitions=2)

FLIGHTS = [Flown(f"N{n % 7}", n) for n in range(1000)]


class Planes:
    """Knows the seats of a plane; the first `failures` calls fail."""

    name = "planes"
    failures = 0
    calls: ClassVar[Counter[int]] = Counter()
    running = most = 0

    @rpc
    async def seats(self, plane: str, number: int) -> int:
        cls = type(self)
        cls.calls[number] += 1
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        try:
            await asyncio.sleep(0.001)
            if cls.failures > 0:
                cls.failures -= 1
                raise ConnectionError("not well")
            return 100 + int(plane[1:])
        finally:
            cls.running -= 1


def planes(failures: int = 0) -> type[Planes]:
    return type("Planes", (Planes,), {"failures": failures, "calls": Counter()})


def enriching(concurrency: int = 16, retry: Retry | None = None, **options: Any) -> type:
    class Enriching:
        name = "enriching"
        planes = RpcProxy("planes", timeout=5)

        @flow(FLOWN, **{"commit_every": "20ms", **options})
        def on(self, flights: Stream[Flown]) -> FlowOutput:
            return flights.map_async(self.enrich, concurrency=concurrency, retry=retry).to(ENRICHED)

        async def enrich(self, flight: Flown) -> Enriched:
            seats = await self.planes.seats(flight.plane, flight.number)
            return Enriched(flight.plane, flight.number, seats)

    return Enriching


async def append(client: Client, flights: list[Flown] = FLIGHTS) -> None:
    await client.append_many(FLOWN, flights)


async def enriched(client: Client, count: int) -> list[Enriched]:
    """What is in the log, of both partitions, each in order."""

    async def of(partition: int) -> list[Enriched]:
        found: list[Enriched] = []
        async with ENRICHED.reader(client.link, partition) as reader:
            while (entry := await reader.take(1.0)) is not None:
                found += entry.values
        return found

    first, second = await asyncio.gather(of(0), of(1))
    assert len(first) + len(second) == count
    return first + second


async def test_records_are_enriched_by_another_service_in_order(
    broker: str, tmp_path: Path
) -> None:
    service, asked = enriching(concurrency=8), planes()
    async with (
        run_services(asked, broker=broker),
        run_services(service, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(bed.client)
        await eventually(lambda: statistics(bed, service).records == 1000, 30)
        found = await enriched(bed.client, 1000)

    for plane in range(7):
        name = f"N{plane}"
        wanted = [Enriched(name, n, 100 + plane) for n in range(plane, 1000, 7)]
        assert [one for one in found if one.plane == name] == wanted
    assert set(asked.calls.values()) == {1}
    assert asked.most <= 2 * 8, "of each partition"


async def test_two_hundred_failing_at_once_are_asked_again_or_become_dead_letters(
    broker: str, tmp_path: Path
) -> None:
    again = enriching(200, Retry(attempts=5, backoff=fixed("5ms")))
    asked = planes(failures=200)
    async with (
        run_services(asked, broker=broker),
        run_services(again, broker=broker, config=config(tmp_path)) as bed,
    ):
        await append(bed.client, FLIGHTS[:200])
        await eventually(lambda: statistics(bed, again).records == 200, 30)
        await enriched(bed.client, 200)
        assert sum(asked.calls.values()) == 400

    asked = planes(failures=10**6)
    burying = enriching(200, on_error="dead-letter", group="burying", start="next")
    async with (
        run_services(asked, broker=broker),
        run_services(burying, broker=broker, config=config(tmp_path)) as bed,
    ):
        await eventually(lambda: len(statistics(bed, burying).partitions) == 2, 20)
        await eventually(lambda: statistics(bed, burying).commits >= 2, 20)
        await append(bed.client, FLIGHTS[:200])
        await eventually(lambda: statistics(bed, burying).dead == 200, 30)
        asked.failures = 0
        await append(bed.client, FLIGHTS[200:300])
        await eventually(lambda: statistics(bed, burying).records >= 100, 30)
        found = await enriched(bed.client, 300)
    assert sorted(one.number for one in found) == list(range(300))


async def test_stop_calls_off_what_is_awaited_and_the_next_owner_takes_it_again(
    broker: str, tmp_path: Path
) -> None:
    began = asyncio.Event()
    cancelled: list[int] = []

    class Waiting:
        name = "enriching"

        @flow(FLOWN, commit_every="20ms")
        def on(self, flights: Stream[Flown]) -> FlowOutput:
            return flights.map_async(self.wait, timeout=None).to(ENRICHED)

        async def wait(self, flight: Flown) -> Enriched:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(flight.number)
                raise
            return Enriched(flight.plane, flight.number, 0)

    loop = asyncio.get_running_loop()
    async with run_services(Waiting, broker=broker, config=config(tmp_path)) as bed:
        await append(bed.client)
        await asyncio.wait_for(began.wait(), 20)
        at = loop.time()
    assert loop.time() - at < 20, "it does not wait for them"
    assert cancelled
    service = enriching()
    async with (
        run_services(planes(), broker=broker),
        run_services(service, broker=broker, config=config(tmp_path)) as bed,
    ):
        await eventually(lambda: statistics(bed, service).records == 1000, 30)
        await enriched(bed.client, 1000)


async def test_service_that_is_away_has_the_partition_stand_still_and_go_on(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owned_partition, "PAUSES", (0.1,))
    service = enriching()
    async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
        await append(bed.client)
        await eventually(lambda: "UnknownService" in str(statistics(bed, service)), 20)
        async with run_services(planes(), broker=broker):
            await eventually(lambda: statistics(bed, service).records == 1000, 30)
            await enriched(bed.client, 1000)
