"""A flow of several stages goes back to a savepoint that was taken while it ran, with what lay between its stages: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from tests.flows.carriers import (
    BY_CARRIER,
    LEFT,
    ByCarrier,
    Delayed,
    Left,
    closing,
    enriched,
    flights,
    sql_counts,
)
from tests.flows.counting import Tally, config, statistics

from mycelia import Client
from mycelia.errors import ConfigError, OffsetGone, RuntimeStateError
from mycelia.flow import (
    FlowOutput,
    Stream,
    count,
    flow,
    sum_of,
    tumbling,
)
from mycelia.flow.reset import reset_flow
from mycelia.flow.savepoints import (
    SavedPartition,
    Savepoint,
    read_savepoint,
    save_partition,
)
from mycelia.flow.stage_savepoints import save_flow
from mycelia.flow.state_home import StateHome, state_home
from mycelia.logs.layout import stream_name
from mycelia.testing import ServiceBed, eventually, run_services

GROUP = "gated.counted"
BETWEEN = f"{GROUP}.key_by-1"


class Gated:
    """The flights of each carrier; what is behind the cut waits for the gate."""

    name = "gated"
    gate: ClassVar[asyncio.Event]

    @flow(LEFT, commit_every="50ms")
    def counted(self, left: Stream[Left]) -> FlowOutput:
        return (
            left.event_time(lambda one: one.at_ms, unit="ms", disorder="5s")
            .filter(lambda one: one.delay >= 0)
            .map(enriched)
            .key_by(lambda one: one.carrier)
            .map_async(self.passed, timeout=None, concurrency=1000)
            .window(tumbling("2s"))
            .aggregate(count(), sum_of("delay"), sum_of("off"))
            .map(lambda window: ByCarrier(window.key, window.start_ms, *window.value))
            .to(BY_CARRIER)
        )

    async def passed(self, one: Delayed) -> Delayed:
        await self.gate.wait()
        return one


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Gated.gate = asyncio.Event()
    Gated.gate.set()
    return Gated.gate


def home_of(path: Path) -> StateHome:
    return state_home(str(path))


async def append(client: Client, left: list[Left]) -> None:
    for begin in range(0, len(left), 100):
        await client.append_many(LEFT, left[begin : begin + 100])


async def has_taken(bed: ServiceBed, records: int) -> None:
    await eventually(lambda: statistics(bed, Gated).records >= records, 30)


def valid(left: list[Left]) -> int:
    return sum(one.delay >= 0 for one in left)


async def has_counted(bed: ServiceBed, left: list[Left]) -> None:
    """The stage behind the cut has committed all of them, or all again since it began."""
    await eventually(lambda: statistics(bed, Gated).stages[BETWEEN].records >= valid(left), 30)


def given(tally: Tally) -> dict[tuple[str, int], set[tuple[int, int, int]]]:
    """All that was ever said of each window."""
    found: dict[tuple[str, int], set[tuple[int, int, int]]] = {}
    for record in tally.records:
        one: ByCarrier = record.value
        place = one.carrier, one.start_ms
        found.setdefault(place, set()).add((one.flights, one.delay, one.off))
    return found


def wanted(left: list[Left]) -> dict[tuple[str, int], set[tuple[int, int, int]]]:
    return {place: {sums} for place, sums in sql_counts(left).items()}


async def has_given(tally: Tally, left: list[Left]) -> None:
    """Each window at least once; how often is not said."""

    async def told() -> bool:
        await tally.read()
        return given(tally).keys() >= wanted(left).keys()

    await eventually(told, 30)


async def saved_with_something_between(
    client: Client, broker: str, path: Path, gate: asyncio.Event, left: list[Left]
) -> Savepoint:
    """Of three thirds, the first has been counted, the second lies between the stages when the savepoint is taken, the third comes later."""
    third = len(left) // 3
    async with run_services(Gated, broker=broker, config=config(path / "state")) as bed:
        await append(client, left[:third])
        await has_counted(bed, left[:third])
        gate.clear()
        await append(client, left[third : 2 * third])
        await has_taken(bed, 2 * third)
        saved = await save_flow(client.link, home_of(path / "state"), GROUP, path / "saved")
        gate.set()
        await append(client, left[2 * third :])
        await has_counted(bed, left)
    return saved


async def test_what_lies_between_stages_is_in_a_savepoint_once(
    broker: str, tmp_path: Path, gate: asyncio.Event
) -> None:
    left = flights(3_000)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        saved = await saved_with_something_between(client, broker, tmp_path, gate, left)
        home = home_of(tmp_path / "state")
        await reset_flow(client.link, home, GROUP, tmp_path / "saved")
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            await append(client, closing())
            await has_given(tally, left)
            again = statistics(bed, Gated).records
        await tally.read()
        await tally.aclose()

    (between,) = saved.between
    assert (between.source, between.log) == ("key_by-1", BETWEEN)
    assert between.entries > 0
    assert again == 1_000 + len(closing()), (
        "what had been taken at the savepoint is not taken again"
    )
    assert given(tally) == wanted(left)
    assert read_savepoint(tmp_path / "saved") == saved


async def test_what_goes_through_both_stages_between_their_copies_counts_once(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = flights(1_500)
    copied: list[str] = []
    loop = asyncio.get_running_loop()
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:

            async def go_on() -> None:
                await append(client, left[500:])
                await has_counted(bed, left)

            def save(home: StateHome, group: str, source: str, *rest: Any) -> SavedPartition:
                if copied and copied[-1] != source:
                    asyncio.run_coroutine_threadsafe(go_on(), loop).result(40)
                copied.append(source)
                return save_partition(home, group, source, *rest)

            monkeypatch.setattr("mycelia.flow.stage_savepoints.save_partition", save)
            await append(client, left[:500])
            await has_counted(bed, left[:500])
            saved = await save_flow(client.link, home, GROUP, tmp_path / "saved")
        await reset_flow(client.link, home, GROUP, tmp_path / "saved")
        await append(client, closing())
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")):
            await has_given(tally, left)
        await tally.aclose()

    assert copied == [BETWEEN] * 4 + ["left"] * 4
    assert saved.between[0].entries > 0
    assert given(tally) == wanted(left)


@pytest.mark.long
async def test_savepoint_of_stages_goes_into_another_place_and_back_to_it_twice(
    broker: str, tmp_path: Path, gate: asyncio.Event
) -> None:
    left = flights(1_500)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        await saved_with_something_between(client, broker, tmp_path, gate, left)
        for number in range(2):
            home = home_of(tmp_path / f"other{number}")
            await reset_flow(client.link, home, GROUP, tmp_path / "saved")
            taken = await save_flow(client.link, home, GROUP, tmp_path / f"again{number}")
            async with run_services(
                Gated, broker=broker, config=config(tmp_path / f"other{number}")
            ) as bed:
                await has_taken(bed, 500)
        await append(client, closing())
        async with run_services(Gated, broker=broker, config=config(tmp_path / "other1")):
            await has_given(tally, left)
        await tally.read()
        await tally.aclose()

    assert [one.entries for one in taken.between] == [0], "all of it waits in the outboxes"
    assert given(tally) == wanted(left)


@pytest.mark.long
async def test_savepoint_of_stages_goes_from_a_database_into_files_and_back(
    rabbit_uri: str, tmp_path: Path, gate: asyncio.Event, postgres_uri: str
) -> None:
    left = flights(1_500)
    database, files = state_home(postgres_uri), home_of(tmp_path / "files")
    async with Client(rabbit_uri) as client:
        tally = Tally(client, BY_CARRIER)
        where = {"mycelia": {"flows": {"state": postgres_uri}}}
        async with run_services(Gated, broker=rabbit_uri, config=where) as bed:
            await append(client, left[:500])
            await has_counted(bed, left[:500])
            gate.clear()
            await append(client, left[500:])
            await has_taken(bed, len(left))
            saved = await save_flow(client.link, database, GROUP, tmp_path / "saved")
            gate.set()
            await has_counted(bed, left)
        await reset_flow(client.link, files, GROUP, tmp_path / "saved")
        await save_flow(client.link, files, GROUP, tmp_path / "again")
        await reset_flow(client.link, database, GROUP, tmp_path / "again")
        await append(client, closing())
        async with run_services(Gated, broker=rabbit_uri, config=where):
            await has_given(tally, left)
        await tally.aclose()
    database.close()

    assert saved.between[0].entries > 0
    assert given(tally) == wanted(left)


@pytest.mark.long_variants("rabbit")
async def test_log_between_that_does_not_reach_back_is_no_savepoint(
    broker: str, tmp_path: Path, gate: asyncio.Event
) -> None:
    left = flights(600)
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            for begin in range(0, len(left), 100):  # several entries in each partition
                await append(client, left[begin : begin + 100])
                await has_counted(bed, left[: begin + 100])
        for partition in range(4):
            await client.link.delete_queue(stream_name(BETWEEN, partition), timeout=10)
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            still = await eventually(
                lambda: statistics(bed, Gated).stages[BETWEEN].standing_still, 30
            )
            with pytest.raises(OffsetGone, match="deleted and made anew"):
                await save_flow(client.link, home, GROUP, tmp_path / "saved")

    assert not (tmp_path / "saved").exists()
    assert all("Two ways out: go on from a savepoint" in why for why in still.values())


@pytest.mark.long
async def test_savepoint_of_stages_of_a_former_version_is_refused(
    broker: str, tmp_path: Path
) -> None:
    left = flights(600)
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            await append(client, left)
            await has_counted(bed, left)
        saved = await save_flow(client.link, home, GROUP, tmp_path / "saved")
        former = msgspec.structs.replace(saved, format=1, between=[])
        (tmp_path / "saved" / "savepoint.json").write_bytes(msgspec.json.encode(former))
        with pytest.raises(ConfigError, match="taken by a version of Mycelia that did not hold"):
            await reset_flow(client.link, home, GROUP, tmp_path / "saved")


@pytest.mark.long_variants("rabbit")
@pytest.mark.long_variants("memory")
async def test_flow_that_runs_goes_on_from_a_savepoint_by_force(
    broker: str, tmp_path: Path, gate: asyncio.Event
) -> None:
    """The instance leaves its partitions, commits nothing that it has taken since, and takes them again with what is put in place."""
    left = flights(1_500)
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        await saved_with_something_between(client, broker, tmp_path, gate, left)
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            await eventually(lambda: len(statistics(bed, Gated).partitions) == 4, 30)
            with pytest.raises(RuntimeStateError, match="reset --force"):
                await reset_flow(client.link, home, GROUP, tmp_path / "saved")
            await reset_flow(client.link, home, GROUP, tmp_path / "saved", force=True)
            await has_taken(bed, 500)
            await append(client, closing())
            await has_given(tally, left)
        await tally.read()
        await tally.aclose()

    assert given(tally) == wanted(left)


@pytest.mark.long
async def test_owner_that_does_not_leave_is_told_and_nothing_is_reset(
    broker: str, tmp_path: Path, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.flow.reset.TAKE_OVER_S", 2.0)
    left = flights(300)
    home = home_of(tmp_path / "state")
    async with Client(broker) as client:
        async with run_services(Gated, broker=broker, config=config(tmp_path / "state")) as bed:
            await append(client, left)
            await has_counted(bed, left)
            gate.clear()
            await append(client, left)
            await has_taken(bed, 600)
            before = home.kept(GROUP), [home.checkpoint(place) for place in places(home)]
            deaf = "mycelia.logs.partition_lease.PartitionLease._tell_loss"
            monkeypatch.setattr(deaf, lambda *_: None)
            with pytest.raises(RuntimeStateError, match="has not left it within 2 s"):
                await reset_flow(client.link, home, GROUP, "first", force=True)
            gate.set()
            after = home.kept(GROUP), [home.checkpoint(place) for place in places(home)]

    assert after == before


def places(home: StateHome) -> list[Any]:
    from mycelia.flow.partition_state import StatePlace

    return [StatePlace(source, GROUP, source, one) for source, one in home.kept(GROUP)]
