"""A service with a capacity that is known: ten workers of 40 ms make 250 calls a second."""

from __future__ import annotations

import asyncio

from mycelia import rpc

WORKERS = 10
TAKES_S = 0.04
CAPACITY_PER_S = WORKERS / TAKES_S


class BenchOverload:
    name = "bench_overload"

    @rpc(concurrency=WORKERS)
    async def work(self) -> None:
        """As long as a database takes."""
        await asyncio.sleep(TAKES_S)
