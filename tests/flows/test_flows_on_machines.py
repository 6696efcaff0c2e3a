"""A flow on machines that have nothing but the broker in common: partitions move with their state, and every record counts once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.flows.counting import (
    COUNTED,
    DEPARTED,
    PARTITIONS,
    Counted,
    Counting,
    Departed,
    Tally,
    append,
    departures,
    expected,
    sentinels,
    statistics,
)
from tests.flows.machines import changelog_config as config

from mycelia import Client
from mycelia.flow import FlowOutput, Stream, flow
from mycelia.flow.changelog_format import ChangeHead
from mycelia.flow.changelog_stream import ChangelogStream
from mycelia.flow.reset import reset_flow
from mycelia.flow.savepoints import take_savepoint
from mycelia.flow.state_home import StateHome, logged_state_home
from mycelia.runtime.settings import FlowsSection
from mycelia.testing import eventually, run_services

GROUP = "counting.by_origin"


def home_of(path: Path, client: Client) -> StateHome:
    return logged_state_home(FlowsSection(state=str(path), changelog=True), client.link)


async def test_flow_goes_on_elsewhere_and_comes_back(broker: str, tmp_path: Path) -> None:
    flights = departures(4_000)
    wanted = expected(flights)
    share = len(flights) // 4
    async with Client(broker) as client:
        tally = Tally(client)
        for turn, name in enumerate(["one", "other", "one", "new"]):
            state = config(tmp_path / name)
            async with run_services(Counting, broker=broker, config=state) as bed:
                await append(client, flights[turn * share : (turn + 1) * share])
                await eventually(lambda bed=bed: statistics(bed).records >= share, 30)  # type: ignore[misc]
                if turn == 3:
                    await append(client, sentinels())
                    await eventually(lambda: tally.has(len(wanted)), 30)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)


@pytest.mark.long_variants("memory-*")
@pytest.mark.parametrize("unanswered", ["a commit", "a claim"])
async def test_flow_is_stopped_in_time_while_its_changelog_has_no_leader(
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unanswered: str,
) -> None:
    """What is written there is never confirmed. What was not committed is the next owner's."""
    flights = departures(2_000)
    wanted = expected(flights)
    asked = asyncio.Event()

    async def never(stream: ChangelogStream, head: ChangeHead, body: bytes = b"") -> int:
        asked.set()
        return await asyncio.Future()

    async with Client(broker) as client:
        tally = Tally(client)
        async with run_services(Counting, broker=broker, config=config(tmp_path / "one")) as bed:
            if unanswered == "a claim":
                monkeypatch.setattr(ChangelogStream, "append", never)
            else:
                await append(client, flights[:1_000])
                await eventually(lambda: statistics(bed).records == 1_000, 30)
                monkeypatch.setattr(ChangelogStream, "append", never)
                await append(client, flights[1_000:1_500])
            async with asyncio.timeout(30):
                await asked.wait()
            await bed.container(Counting).stop()
        monkeypatch.undo()
        assert "extension_hook_failed" not in caplog.text

        async with run_services(Counting, broker=broker, config=config(tmp_path / "other")):
            await append(client, flights[1_500 if unanswered == "a commit" else 0 :])
            await append(client, sentinels())
            await eventually(lambda: tally.has(len(wanted)), 30)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)


@pytest.mark.long
async def test_instances_of_two_machines_share_the_partitions(broker: str, tmp_path: Path) -> None:
    flights = departures(8_000)
    wanted = expected(flights)
    services = [type("Counting", (Counting,), {}) for _ in range(3)]
    async with Client(broker) as client:
        tally = Tally(client)

        async def appending() -> None:
            for begin in range(0, len(flights), 100):
                await append(client, flights[begin : begin + 100])
                await asyncio.sleep(0.04)
            await append(client, sentinels())

        async with run_services(services[0], broker=broker, config=config(tmp_path / "a")) as one:
            appended = asyncio.ensure_future(appending())
            await eventually(lambda: len(statistics(one, services[0]).partitions) == PARTITIONS, 20)
            async with run_services(
                services[1], broker=broker, config=config(tmp_path / "b")
            ) as other:
                await eventually(lambda: len(statistics(other, services[1]).partitions) == 2, 30)
                async with run_services(services[2], broker=broker, config=config(tmp_path / "c")):
                    await one.container(services[0]).stop()
                    await eventually(
                        lambda: len(statistics(other, services[1]).partitions) == 2, 30
                    )
                await eventually(
                    lambda: len(statistics(other, services[1]).partitions) == PARTITIONS, 30
                )
                await appended
                await eventually(lambda: tally.has(len(wanted)), 40)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)


async def test_reset_on_one_machine_holds_on_all(broker: str, tmp_path: Path) -> None:
    flights = departures(1_000)
    wanted = expected(flights)
    async with Client(broker) as client:
        tally = Tally(client)
        async with run_services(Counting, broker=broker, config=config(tmp_path / "one")) as bed:
            await append(client, flights)
            await append(client, sentinels())
            await eventually(lambda: tally.has(len(wanted)), 30)
            await eventually(lambda: statistics(bed).records == len(flights) + PARTITIONS, 30)
        home = home_of(tmp_path / "console", client)
        await asyncio.to_thread(home.prepare, "test", GROUP, ["departed"])
        done = await reset_flow(client.link, home, GROUP, "first")
        assert [one.partition for one in done] == list(range(PARTITIONS))
        # "one" has files of before, whose results had other ids
        async with run_services(Counting, broker=broker, config=config(tmp_path / "one")) as bed:
            await eventually(lambda: tally.has(2 * len(wanted)), 30)
        await tally.aclose()
    assert {record.value.flights for record in tally.records} == set(wanted.values())


async def test_savepoint_has_what_other_machines_have_come_to(broker: str, tmp_path: Path) -> None:
    """It is taken where the flow has never run, and goes back on a third machine."""
    every = departures(2_500)
    flights, later = every[:2_000], every[2_000:]
    wanted = expected(every)
    async with Client(broker) as client:
        tally = Tally(client)

        async def given() -> bool:
            await tally.read()
            return len({(one.value.origin, one.value.start_ms) for one in tally.records}) == len(
                wanted
            )

        console = home_of(tmp_path / "console", client)
        await asyncio.to_thread(console.prepare, "test", GROUP, ["departed"])
        async with run_services(Counting, broker=broker, config=config(tmp_path / "one")) as bed:
            await append(client, flights)
            await eventually(lambda: statistics(bed).records == len(flights), 30)
            saved = await asyncio.to_thread(take_savepoint, console, GROUP, tmp_path / "saved")
            await append(client, later)
            await eventually(lambda: statistics(bed).records == len(flights + later), 30)
        await reset_flow(client.link, console, GROUP, tmp_path / "saved")
        async with run_services(Counting, broker=broker, config=config(tmp_path / "new")) as bed:
            await append(client, sentinels())
            await eventually(lambda: statistics(bed).records == len(later) + PARTITIONS, 30)
            await eventually(given, 30)
        await tally.aclose()

    assert len(saved.partitions) == PARTITIONS
    told = {(one.value.origin, one.value.start_ms, one.value.flights) for one in tally.records}
    assert told == {(*place, count) for place, count in wanted.items()}


def seen_before(context: Any, flight: Departed) -> list[Counted]:
    """As the first version has it: the state is a list."""
    context.state.append(flight.at_ms)
    return [Counted(flight.origin, 0, len(context.state))]


def seen_now(context: Any, flight: Departed) -> list[Counted]:
    context.state["seen"] = context.state.get("seen", 0) + 1
    return [Counted(flight.origin, 1, context.state["seen"])]


def totals(on_record: Any, state: Any, **named: Any) -> type:
    class Totals:
        name = "totals"

        @flow(DEPARTED, commit_every="50ms")
        def by_origin(self, flights: Stream[Departed]) -> FlowOutput:
            return (
                flights.event_time(lambda one: one.at_ms, unit="ms")
                .key_by(lambda one: one.origin)
                .process(on_record, state=state)
                .named("totals", **named)
                .to(COUNTED)
            )

    return Totals


async def test_states_of_a_later_version_are_made_on_a_new_machine(
    broker: str, tmp_path: Path
) -> None:
    flights = [Departed("A", 1_000_000 + n) for n in range(30)]
    first = totals(seen_before, list)
    second = totals(seen_now, dict, version=2, migrate={1: lambda state: {"seen": len(state)}})
    async with Client(broker) as client:
        tally = Tally(client)
        for number, (name, service) in enumerate(
            [("one", first), ("other", second), ("third", second)], 1
        ):
            path = tmp_path / name
            async with run_services(service, broker=broker, config=config(path)) as bed:
                await append(client, flights[(number - 1) * 10 : number * 10])
                await eventually(lambda n=number: tally.has(n * 10), 20)  # type: ignore[misc]
                assert not statistics(bed, service).standing_still
        await tally.aclose()
    told = [(one.value.start_ms, one.value.flights) for one in tally.records]
    assert told == [(0 if n <= 10 else 1, n) for n in range(1, 31)]


def test_changelog_beside_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="changelog is for state in files"):
        FlowsSection(state="postgresql://host/database", changelog=True)
