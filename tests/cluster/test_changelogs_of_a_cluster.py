"""A node of a cluster dies that leads the changelog of a flow's partition: the flow goes on, and another machine has all of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import Scene
from tests.flows.counting import Counting, Tally, append, departures, expected, sentinels
from tests.flows.machines import changelog_config

from mycelia import Client
from mycelia.flow.changelog_stream import changelog_name
from mycelia.flow.partition_state import StatePlace
from mycelia.testing import eventually

PLACE = StatePlace("departed", "counting.by_origin", "departed", 0)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_flow_goes_on_when_the_node_dies_that_leads_its_changelog(
    scene: Scene, tmp_path: Path
) -> None:
    flights = departures(6_000)
    wanted = expected(flights)
    stream = changelog_name(PLACE)

    async def serve(name: str) -> Any:
        flows = changelog_config(tmp_path / name)["mycelia"]["flows"]
        return await scene.serve(type("Counting", (Counting,), {}), scene.uri(), flows=flows)

    async with Client(scene.uri()) as client:
        tally = Tally(client)

        async def appending() -> None:
            for begin in range(0, len(flights), 100):
                await append(client, flights[begin : begin + 100])
                await asyncio.sleep(0.1)

        one = await serve("one")
        appended = asyncio.ensure_future(appending())
        await eventually(lambda: tally.has(100), 60)
        await scene.await_replicas(stream)
        leader = await scene.home_of(stream)
        await scene.kill(leader)
        had = len(tally.by_id())
        await eventually(lambda: tally.has(had + 200), 90)
        await one.stop()
        await serve("other")
        await appended
        await append(client, sentinels())
        await scene.bring_back(leader)
        await eventually(lambda: tally.has(len(wanted)), 90)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)
