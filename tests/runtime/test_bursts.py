"""Many calls at once, some of which wait and most of which do not: none is lost, and every slot comes back.

With eager tasks (Python 3.12 and later) a worker that never waits ends inside the call that starts it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Client, Runner, event_handler, rpc
from mycelia.amqp import Link
from mycelia.testing import eventually

CALLS = 1100
EVENTS = 1500


class Cached:
    """A cache in front of something slow: the first calls wait, the others have their answer at once."""

    name = "cached"
    filled: asyncio.Event
    handled: list[int]

    async def _get(self, n: int) -> int:
        if n < 100:
            await self.filled.wait()
        return n

    @rpc
    async def first(self, n: int) -> int:
        return await self._get(n)

    @rpc
    async def second(self, n: int) -> int:
        return await self._get(n)

    @rpc
    async def third(self, n: int) -> int:
        return await self._get(n)

    @event_handler("source", "happened", prefetch=2000)
    async def happened(self, n: int) -> None:
        self.handled.append(await self._get(n))

    @event_handler("source", "failed", prefetch=2000)
    async def failed(self, n: int) -> None:
        await self._get(n)
        raise ValueError(n)


@pytest.fixture(params=[None, 10], ids=["no limit", "max_workers"])
async def runner(request: pytest.FixtureRequest, serve: Serve) -> Runner:
    Cached.filled = asyncio.Event()
    Cached.handled = []
    config: dict[str, Any] = {} if request.param is None else {"max_workers": request.param}
    return await serve(Cached, config=config)


def is_idle(runner: Runner) -> bool:
    return all(lane.active == lane.waiting == 0 for lane in runner.containers[0].lanes)


@pytest.mark.timeout(120)
async def test_every_call_of_a_burst_is_answered(runner: Runner, invoke: Invoke) -> None:
    methods = ["first", "second", "third"]
    for _ in range(3):
        Cached.filled.clear()
        calls = [
            asyncio.ensure_future(invoke("cached", methods[n % 3], n, timeout=60))
            for n in range(CALLS)
        ]
        await eventually(lambda: any(lane.active for lane in runner.containers[0].lanes))
        Cached.filled.set()

        assert await asyncio.gather(*calls) == list(range(CALLS))
        assert is_idle(runner)


@pytest.mark.timeout(120)
async def test_every_event_of_a_burst_is_settled(
    runner: Runner, client: Client, link: Link
) -> None:
    for n in range(EVENTS):
        await client.publish("source", "happened", n)
        await client.publish("source", "failed", n)
    Cached.filled.set()
    dead = "evt-source-failed--cached.failed.dead"

    async def all_are_dead() -> bool:
        return is_idle(runner) and await link.message_count(dead) == EVENTS

    await eventually(lambda: len(Cached.handled) == EVENTS, 60)
    await eventually(all_are_dead, 60)
    assert sorted(Cached.handled) == list(range(EVENTS))
    await runner.stop()
    for queue in ("evt-source-happened--cached.happened", "evt-source-failed--cached.failed"):
        assert await link.message_count(queue) == 0
