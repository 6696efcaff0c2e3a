"""A count that is taken over by another instance while records come."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from tests.flows.counting import (
    PARTITIONS,
    Counting,
    Departed,
    Tally,
    append,
    sentinels,
    statistics,
)

from mycelia import Client
from mycelia.testing import ServiceBed, eventually, run_services

__all__ = ["count_while_partitions_move"]


async def count_while_partitions_move(
    uri: str, config: dict[str, Any], flights: list[Departed], wanted: int
) -> Tally:
    """One instance begins, another takes half of its partitions, then all. Returns when so many results are there."""
    beds: list[tuple[ServiceBed, type]] = []

    async def instance(stack: AsyncExitStack) -> None:
        service = type("Counting", (Counting,), {})
        bed = await stack.enter_async_context(run_services(service, broker=uri, config=config))
        beds.append((bed, service))

    def owned() -> list[int]:
        return sorted(len(statistics(*one).partitions) for one in beds)

    async def appending(client: Client) -> None:
        for begin in range(0, len(flights), 100):
            await append(client, flights[begin : begin + 100])
            await asyncio.sleep(0.02)
        await append(client, sentinels())

    async with Client(uri) as client, AsyncExitStack() as others, AsyncExitStack() as first:
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
        await eventually(lambda: tally.has(wanted), 40)
        await tally.aclose()
    return tally
