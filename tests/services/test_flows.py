"""The flights' flows as services, on a broker: `memory://` and RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from services.flights.delays import Delays
from services.flights.feed import Feed
from services.flights.flows import Flows
from services.flights.records import HAPPENED
from services.flights.registry import Registry
from services.flights.verify import Batch, compare
from tests.services.test_pipeline import BLIZZARD, EIGHTH, broker_uri, counted, until

from mycelia import Client, Log, Runner

__all__ = ["broker_uri"]

pytestmark = pytest.mark.timeout(120)


class Pipeline:
    """The services on a broker, with the flows' state in a directory."""

    def __init__(self, uri: str, state: Path) -> None:
        self.config = {"AMQP_URI": uri, "mycelia": {"flows": {"state": str(state)}}}

    @asynccontextmanager
    async def running(self, *services: type) -> AsyncIterator[Client]:
        async with Runner(self.config, services):
            async with Client(self.config["AMQP_URI"], timeout=20) as client:
                yield client


@pytest.fixture
def pipeline(broker_uri: str, tmp_path: Path) -> Pipeline:
    return Pipeline(broker_uri, tmp_path)


async def differences(client: Client, run: str) -> list[str]:
    page = await client.call("delays", "snapshot", limit=100_000, run=run)
    changes = await client.call("delays", "changes", run=run)
    batch = Batch(EIGHTH)
    try:
        result = compare(
            batch,
            changes,
            page["hourly"],
            page["legs"],
            await client.call("delays", "worst", 100, run=run),
        )
        result.row("alerts", batch.alerts(), changes["alerts"])
        return result.differences
    finally:
        batch.close()


async def settled(client: Client, run: str) -> list[str]:
    """The differences when all is counted: the last results may be on their way."""
    found: list[str] = await until(lambda: differences(client, run), lambda found: not found, 30)
    return found


DAY: dict[str, Any] = {"first_day": BLIZZARD, "last_day": BLIZZARD}


async def test_every_figure_of_a_day_is_the_batch_query_s(pipeline: Pipeline) -> None:
    async with pipeline.running(Registry, Delays, Flows, Feed) as client:
        status = await client.call("feed", "start", speed=0, **DAY)
        summary = await counted(client, status["run"], status["total"])
        wrong = await settled(client, status["run"])

    assert wrong == []
    assert summary["total"]["scheduled"] == 930
    assert summary["carriers"]["UA"]["name"] == "United Air Lines Inc."


@pytest.mark.long_variants("memory")
async def test_what_others_append_stops_no_partition_and_changes_no_figure(
    pipeline: Pipeline,
) -> None:
    """Records over which functions raise, and texts that are no records, among the feed's own."""
    noon = 1_360_324_800_000
    bad: dict[str, Any] = {
        "run": "0",
        "kind": "departed",
        "at_ms": noon,
        "scheduled_ms": noon,
        "shift_ms": 10**18,  # no calendar has that year
        "emitted_at": 0.0,
        "dep_delay": 500,
    }
    plain = Log(HAPPENED.name, partitions=HAPPENED.partitions, retain="1d")
    async with pipeline.running(Registry, Delays, Flows, Feed) as client:
        for origin in ("JFK", "LGA", "EWR"):
            await client.append(plain, {**bad, "origin": origin}, key=origin)
            await client.append(plain, ["no", "record"], key=origin)
        status = await client.call("feed", "start", speed=0, **DAY)
        await counted(client, status["run"], status["total"])
        wrong = await settled(client, status["run"])
        dead = await client.link.message_count("log-flights.happened--flows.delays.dead")

    assert wrong == []
    assert dead == 6


@pytest.mark.long_variants("memory")
async def test_a_second_replay_is_behind_the_first_and_an_aborted_one(pipeline: Pipeline) -> None:
    async with pipeline.running(Registry, Delays, Flows, Feed) as client:
        aborted = await client.call("feed", "start", speed=100_000, **DAY)
        await counted(client, aborted["run"], 100)
        for _ in range(2):
            status = await client.call("feed", "start", speed=0, **DAY)
            await counted(client, status["run"], status["total"])
            wrong = await settled(client, status["run"])
            assert wrong == []


@pytest.mark.long_variants("memory")
async def test_figures_survive_a_restart_of_everything_in_the_middle(pipeline: Pipeline) -> None:
    async with pipeline.running(Registry, Feed) as feeding:
        async with pipeline.running(Delays, Flows):
            status = await feeding.call("feed", "start", speed=30_000, **DAY)
            await counted(feeding, status["run"], 500)
        async with pipeline.running(Delays, Flows) as client:
            await counted(client, status["run"], status["total"])
            wrong = await settled(client, status["run"])
        async with pipeline.running(Delays) as client:
            again = await settled(client, status["run"])

    assert (wrong, again) == ([], [])
