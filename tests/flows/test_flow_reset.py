"""A flow goes on from a savepoint, or begins anew: with no record lost, and none counted twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.flows.carriers import (
    BY_CARRIER,
    LEFT,
    Carriers,
    by_carrier,
    closing,
    flights,
    sql_counts,
)
from tests.flows.counting import (
    PARTITIONS,
    Counting,
    Tally,
    append,
    config,
    departures,
    expected,
    sentinels,
    statistics,
)

from mycelia import Client
from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.flow.reset import reset_flow
from mycelia.flow.savepoints import take_savepoint
from mycelia.flow.state_home import StateHome, state_home
from mycelia.testing import eventually, run_services

GROUP = "counting.by_origin"


def given(tally: Tally, since: int = 0) -> dict[tuple[str, int], set[int]]:
    """What was said of each window."""
    found: dict[tuple[str, int], set[int]] = {}
    for record in tally.records[since:]:
        place = record.value.origin, record.value.start_ms
        found.setdefault(place, set()).add(record.value.flights)
    return found


def home_of(path: Path) -> StateHome:
    return state_home(str(path))


async def run_until(
    client: Client, broker: str, path: Path, records: int, flights: list[Any]
) -> None:
    async with run_services(Counting, broker=broker, config=config(path)) as bed:
        await append(client, flights)
        await eventually(lambda: statistics(bed).records >= records, 30)


async def test_flow_goes_on_from_a_savepoint_taken_while_it_ran(
    broker: str, tmp_path: Path
) -> None:
    """Every window has what it should, those that were open at the savepoint too; what comes again has other ids."""
    flights = departures(6_000)
    wanted = {place: {count} for place, count in expected(flights).items()}
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        tally = Tally(client)
        async with run_services(Counting, broker=broker, config=config(tmp_path / "state")) as bed:
            await append(client, flights[:3_000])
            await eventually(lambda: statistics(bed).records >= 3_000, 30)
            await asyncio.to_thread(take_savepoint, home, GROUP, tmp_path / "saved")
            await append(client, flights[3_000:])
            await eventually(lambda: statistics(bed).records >= 6_000, 30)
        await tally.read()
        before = {record.headers["id"] for record in tally.records if record.headers}
        read = len(tally.records)
        done = await reset_flow(client.link, home, GROUP, tmp_path / "saved")
        async with run_services(Counting, broker=broker, config=config(tmp_path / "state")) as bed:
            await append(client, sentinels())
            await eventually(lambda: statistics(bed).records == 3_000 + PARTITIONS, 30)
            await eventually(lambda: tally.has(len(before) + 1), 20)
        await tally.read()
        await tally.aclose()

    assert given(tally) == wanted
    assert sum(sum(one.offsets.values()) for one in done) > 0
    after = {record.headers["id"] for record in tally.records[read:] if record.headers}
    assert not before & after


@pytest.mark.parametrize("to", ["first", 0, datetime(2001, 1, 1, tzinfo=UTC)])
async def test_flow_begins_anew_from_a_place_in_its_logs(
    broker: str, to: Any, tmp_path: Path
) -> None:
    flights = departures(3_000)
    wanted = {place: {count} for place, count in expected(flights).items()}
    home = home_of(tmp_path)
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path, 3_000, flights)
        tally = Tally(client)
        await tally.read()
        read = len(tally.records)
        await reset_flow(client.link, home, GROUP, to)
        await run_until(client, broker, tmp_path, 3_000 + PARTITIONS, sentinels())
        await tally.read()
        await tally.aclose()

    assert given(tally, since=read) == wanted, "all of it once more"


async def test_flow_begins_anew_with_what_comes_from_now_on(broker: str, tmp_path: Path) -> None:
    home = home_of(tmp_path)
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path, 1_000, departures(1_000))
        await reset_flow(client.link, home, GROUP, "next")
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await append(client, departures(500, seed=2))
            await eventually(lambda: statistics(bed).records == 500, 30)


async def test_flow_is_not_reset_to_an_offset_that_its_logs_have_not_come_to(
    broker: str, tmp_path: Path
) -> None:
    home = home_of(tmp_path)
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path, 100, departures(100))
        with pytest.raises(ConfigError, match="cannot be read from offset 77777: partition 0 has"):
            await reset_flow(client.link, home, GROUP, 77_777)
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await append(client, departures(50, seed=2))
            await eventually(lambda: statistics(bed).records == 50, 30)


async def test_flow_of_several_stages_begins_anew_without_what_lies_between(
    broker: str, tmp_path: Path
) -> None:
    left = flights(2_000)
    wanted = sql_counts(left)
    home = home_of(tmp_path)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        for begin in range(0, len(left), 500):
            await client.append_many(LEFT, left[begin : begin + 500])
        await client.append_many(LEFT, closing())
        async with run_services(Carriers, broker=broker, config=config(tmp_path)):
            await eventually(lambda: tally.has(len(wanted)), 30)
        with pytest.raises(ConfigError, match=r"of several stages .* with save_flow\(\)"):
            await asyncio.to_thread(take_savepoint, home, "carriers.counted", tmp_path / "saved")
        await reset_flow(client.link, home, "carriers.counted", "first")
        async with run_services(Carriers, broker=broker, config=config(tmp_path)):
            await eventually(lambda: tally.has(2 * len(wanted)), 30)
        await tally.aclose()

    found = [(one.value.carrier, one.value.start_ms) for one in tally.records]
    assert sorted(found) == sorted(2 * list(set(found))), "each window twice, and no more"
    tally.records = tally.records[len(wanted) :]
    assert by_carrier(tally) == wanted


async def test_flow_that_runs_is_not_reset(broker: str, tmp_path: Path) -> None:
    home = home_of(tmp_path)
    async with Client(broker) as client:
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await append(client, departures(500))
            await eventually(lambda: statistics(bed).records == 500, 30)
            with pytest.raises(RuntimeStateError, match=r"has an owner\. Stop its instances first"):
                await reset_flow(client.link, home, GROUP, "first")
            await append(client, departures(500, seed=2))
            await eventually(lambda: statistics(bed).records == 1_000, 30)


async def test_state_that_is_lost_may_be_begun_anew_when_its_logs_are_named(
    broker: str, tmp_path: Path
) -> None:
    home = home_of(tmp_path / "there")
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path / "here", 1_000, departures(1_000))
        with pytest.raises(RuntimeStateError, match="has no state in"):
            await reset_flow(client.link, home, GROUP, "first")
        await reset_flow(client.link, home, GROUP, "first", sources={"departed": PARTITIONS})
        await run_until(client, broker, tmp_path / "there", 1_000, [])


async def test_misspelt_flow_is_not_reset_and_the_nearest_is_named(
    broker: str, tmp_path: Path
) -> None:
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path, 100, departures(100))
        with pytest.raises(RuntimeStateError, match=rf'Did you mean "{GROUP}"\?'):
            await reset_flow(client.link, home_of(tmp_path), GROUP[:-1], "first")


async def test_partition_whose_file_was_lost_is_reset_with_the_others(
    broker: str, tmp_path: Path
) -> None:
    home = home_of(tmp_path)
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path, 1_000, departures(1_000))
        (tmp_path / f"departed--{GROUP}" / "2.sqlite3").unlink()
        done = await reset_flow(client.link, home, GROUP, "first")
        await run_until(client, broker, tmp_path, 1_000, [])

    assert [one.partition for one in done] == list(range(PARTITIONS))


async def test_savepoint_of_another_flow_is_refused(broker: str, tmp_path: Path) -> None:
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        await run_until(client, broker, tmp_path / "state", 100, departures(100))
        await asyncio.to_thread(take_savepoint, home, GROUP, tmp_path / "saved")
        with pytest.raises(ConfigError, match=r'is of flow "counting\.by_origin", not of "other"'):
            await reset_flow(client.link, home, "other", tmp_path / "saved")
