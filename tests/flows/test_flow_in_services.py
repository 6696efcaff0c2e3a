"""`@flow` in services: every record counted once, whoever has its partition; what cannot be used or computed is said."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.flows.counting import (
    PARTITIONS,
    Counting,
    Tally,
    append,
    config,
    departures,
    expected,
    sentinels,
)

from mycelia import Client
from mycelia.flow import FlowHandler, FlowStatistics
from mycelia.testing import ServiceBed, eventually, run_services


def statistics(bed: ServiceBed, service: type = Counting) -> FlowStatistics:
    (handler,) = [e for e in bed.container(service).entrypoints if isinstance(e, FlowHandler)]
    return handler.statistics()


async def test_every_record_of_a_log_is_counted_once(broker: str, tmp_path: Path) -> None:
    flights = departures(20_000)
    wanted = expected(flights)
    async with Client(broker) as client:
        await append(client, flights[:12_000])
        tally = Tally(client)
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await append(client, flights[12_000:] + sentinels())
            await eventually(lambda: tally.has(len(wanted)), 40)
            told = statistics(bed)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "nothing was there twice"
    assert tally.repeated == 0
    assert told.partitions == list(range(PARTITIONS))
    assert told.records == 20_000 + PARTITIONS
    assert {record.key for record in tally.records} == {one.origin for one in flights}


async def test_restarts_go_on_from_what_was_committed(broker: str, tmp_path: Path) -> None:
    """Windows that were open at a stop are counted on by the next."""
    flights = departures(6_000)
    wanted = expected(flights)
    async with Client(broker) as client:
        tally = Tally(client)
        for begin in range(0, 6_000, 2_000):
            async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
                await append(client, flights[begin : begin + 2_000])
                if begin == 4_000:
                    await append(client, sentinels())
                await eventually(lambda bed=bed: statistics(bed).records >= 2_000, 30)  # type: ignore[misc]
        await eventually(lambda: tally.has(len(wanted)), 20)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)


async def test_instances_share_partitions_which_move_without_loss(
    rabbit_uri: str, tmp_path: Path
) -> None:
    flights = departures(20_000)
    wanted = expected(flights)

    async def instance(stack: AsyncExitStack) -> ServiceBed:
        service = type("Counting", (Counting,), {})
        bed = await stack.enter_async_context(
            run_services(service, broker=rabbit_uri, config=config(tmp_path))
        )
        beds.append((bed, service))
        return bed

    def owned() -> list[int]:
        return sorted(len(statistics(*one).partitions) for one in beds)

    async def appending(client: Client) -> None:
        for begin in range(0, len(flights), 100):
            await append(client, flights[begin : begin + 100])
            await asyncio.sleep(0.02)
        await append(client, sentinels())

    beds: list[tuple[ServiceBed, Any]] = []
    async with Client(rabbit_uri) as client, AsyncExitStack() as others, AsyncExitStack() as first:
        await instance(first)
        running = asyncio.ensure_future(appending(client))
        tally = Tally(client)
        await eventually(lambda: owned() == [PARTITIONS], 20)
        await instance(others)
        await eventually(lambda: owned() == [2, 2], 30)
        await first.aclose()
        beds.pop(0)
        await eventually(lambda: owned() == [PARTITIONS], 30)
        await running
        await eventually(lambda: tally.has(len(wanted)), 40)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.by_id()) == len(wanted)
