"""`@flow` over the places where its state may be: every record counted once, also where PostgreSQL is away in the middle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.flows.counting import (
    PARTITIONS,
    Counting,
    Departed,
    Tally,
    append,
    departures,
    expected,
    sentinels,
    statistics,
)
from tests.flows.moving import count_while_partitions_move

from mycelia import Client, Log
from mycelia.errors import StateUnavailable, TopologyError
from mycelia.flow import FlowOutput, Stream, flow, owned_partition
from mycelia.testing import eventually, run_services

if TYPE_CHECKING:
    from tests.postgres import PrivatePostgres


def config(state: str | Path) -> dict[str, Any]:
    return {"mycelia": {"flows": {"state": str(state)}}}


async def slowly(client: Client, flights: list[Any]) -> AsyncIterator[int]:
    for begin in range(0, len(flights), 100):
        await append(client, flights[begin : begin + 100])
        await asyncio.sleep(0.02)
        yield begin


@pytest.mark.long
async def test_instances_share_a_database_and_partitions_move_without_loss(
    rabbit_uri: str, postgres_uri: str
) -> None:
    flights = departures(10_000)
    wanted = expected(flights)

    tally = await count_while_partitions_move(
        rabbit_uri, config(postgres_uri), flights, len(wanted)
    )

    assert tally.counts() == wanted
    assert len(tally.by_id()) == len(wanted)


@pytest.mark.timeout(120)
async def test_database_that_is_away_is_waited_for_and_nothing_is_lost_or_doubled(
    broker: str,
    own_postgres: PrivatePostgres,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.postgres import fresh_database

    monkeypatch.setattr(owned_partition, "STATE_PAUSES", (0.1,))
    flights = departures(8_000)
    wanted = expected(flights)
    with fresh_database(own_postgres) as uri:
        async with Client(broker) as client:
            tally = Tally(client)
            async with run_services(Counting, broker=broker, config=config(uri)) as bed:
                async for begin in slowly(client, flights):
                    if begin == 3_000:
                        await asyncio.to_thread(own_postgres.kill)
                        stands_still = asyncio.ensure_future(
                            eventually(lambda: bool(statistics(bed).standing_still), 30)
                        )
                    if begin == 6_000:
                        await stands_still
                        await asyncio.to_thread(own_postgres.start)
                await append(client, sentinels())
                await eventually(lambda: tally.has(len(wanted)), 40)
                assert not statistics(bed).standing_still
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "nothing was there twice"
    assert "See that PostgreSQL runs at 127.0.0.1" in caplog.text


class _Stops:
    """Stops the server at a moment of a commit, once for each that is asked for; calls come from the threads of a flow."""

    def __init__(self, server: PrivatePostgres, monkeypatch: pytest.MonkeyPatch) -> None:
        from mycelia.flow.state_database import DatabaseState

        commit, write = DatabaseState.commit, DatabaseState._write
        self.wanted: str | None = None
        self._server = server
        self._lock = threading.Lock()

        def committed(state: Any, *args: Any) -> Any:
            self._stop("before")
            numbered = commit(state, *args)
            if self._stop("its answer is lost"):
                raise StateUnavailable("a test", "here", "the connection was lost")
            return numbered

        def written(state: Any, *args: Any) -> None:
            write(state, *args)
            self._stop("in the middle")

        monkeypatch.setattr(DatabaseState, "commit", committed)
        monkeypatch.setattr(DatabaseState, "_write", written)

    def _stop(self, moment: str) -> bool:
        with self._lock:
            if self.wanted != moment:
                return False
            self._server.stop_at_once()
            self.wanted = None
        return True


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_database_that_is_stopped_in_the_middle_of_commits_loses_and_doubles_nothing(
    rabbit_uri: str, own_postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pg_ctl stop -m immediate` before a commit, inside its transaction, and when it is made and nobody has heard."""
    from tests.postgres import fresh_database

    monkeypatch.setattr(owned_partition, "STATE_PAUSES", (0.1,))
    moments = [
        "in the middle",
        "its answer is lost",
        "before",
        "its answer is lost",
        "in the middle",
    ]
    share = 1_000
    flights = departures(share * (len(moments) + 1))
    wanted = expected(flights)
    stops = _Stops(own_postgres, monkeypatch)
    with fresh_database(own_postgres) as uri:
        async with Client(rabbit_uri) as client:
            tally = Tally(client)
            async with run_services(Counting, broker=rabbit_uri, config=config(uri)) as bed:
                await append(client, flights[:share], batch=100)
                for number, moment in enumerate(moments, 1):
                    stops.wanted = moment
                    part = flights[number * share : (number + 1) * share]
                    await append(client, part, batch=100)
                    await eventually(lambda: stops.wanted is None, 30, what=moment)
                    await eventually(lambda: bool(statistics(bed).standing_still), 30)
                    await asyncio.to_thread(own_postgres.start)
                    await eventually(lambda: not statistics(bed).standing_still, 30)
                await append(client, sentinels())
                await eventually(lambda: tally.has(len(wanted)), 40)
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.by_id()) == len(wanted)


@pytest.mark.timeout(60)
async def test_service_starts_while_its_database_is_away(
    broker: str, own_postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.postgres import fresh_database

    monkeypatch.setattr(owned_partition, "STATE_PAUSES", (0.1,))
    with fresh_database(own_postgres) as uri:
        await asyncio.to_thread(own_postgres.kill)
        async with Client(broker) as client:
            await append(client, departures(500))
            async with run_services(Counting, broker=broker, config=config(uri)) as bed:
                await eventually(lambda: len(statistics(bed).standing_still) == PARTITIONS, 30)
                await asyncio.to_thread(own_postgres.start)
                await eventually(lambda: statistics(bed).records == 500, 30)


async def test_log_with_other_partitions_stops_the_start(broker: str, tmp_path: Path) -> None:
    """Keys would have moved to other partitions, and their state would not."""
    wider: Log[Departed] = Log("departed", of=Departed, key="origin", partitions=PARTITIONS * 2)

    class Wider:
        name = "counting"

        @flow(wider)
        def by_origin(self, flights: Stream[Departed]) -> FlowOutput:
            return flights.emit("seen")

    async with Client(broker) as client:
        await append(client, departures(100))
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: statistics(bed).records == 100, 20)
        with pytest.raises(TopologyError, match="departed"):
            async with run_services(Wider, broker=broker, config=config(tmp_path)):
                pass
