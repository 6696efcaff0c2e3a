"""`mycelia log lag` and `mycelia log replay` of flows' groups: by what their instances say, and by their state where none runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, Done, MyceliaCommand
from tests.flows.carriers import LEFT, Carriers, flights
from tests.flows.counting import (
    DEPARTED,
    PARTITIONS,
    Counting,
    Departed,
    append,
    config,
    departures,
    sentinels,
    statistics,
)
from tests.processes import Process

from mycelia import Client, Record, log_handler
from mycelia.broker.node import PrivateNode
from mycelia.flow import FlowHandler
from mycelia.testing import eventually, run_services

GROUP = "counting.by_origin"

LogCommand = Callable[..., Done]


@pytest.fixture
def command(mycelia: MyceliaCommand, tmp_path: Path, rabbit_uri: str) -> LogCommand:
    def run(*argv: str) -> Done:
        return mycelia("log", *argv, cwd=tmp_path, AMQP_URI=rabbit_uri)

    return run


class Listening:
    """A log handler of the same log."""

    name = "listening"

    @log_handler(DEPARTED, group="listening")
    async def departed(self, records: list[Record[Departed]]) -> None:
        pass


async def count(uri: str, state: Path, flights: list[Departed], total: int) -> None:
    """Let the flow take these, and stop it."""
    async with (
        Client(uri) as client,
        run_services(Counting, broker=uri, config=config(state)) as bed,
    ):
        await append(client, flights)
        await eventually(lambda: statistics(bed).records >= total, 30)


async def told(command: LogCommand, *argv: str) -> Any:
    done = await asyncio.to_thread(command, *argv, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


async def test_lag_of_a_flow_that_runs_is_what_it_has_not_committed(
    command: LogCommand, rabbit_uri: str, tmp_path: Path
) -> None:
    """Also right after a start, when its instances have committed nothing: then by the state."""
    state = tmp_path / "state"
    await count(rabbit_uri, state, departures(2_000), 2_000)
    async with run_services(Counting, broker=rabbit_uri, config=config(state)):

        async def owned() -> bool:
            rows = await told(command, "lag", DEPARTED.name, GROUP, "--state", str(state))
            return all(one["owner"] for one in rows)

        await eventually(owned, 30)
        rows = await told(command, "lag", DEPARTED.name, GROUP, "--state", str(state))

    assert sorted(one["partition"] for one in rows) == list(range(PARTITIONS))
    assert {(one["kind"], one["lag"]) for one in rows} == {("flow", 0)}
    assert all(one["at"] == one["end"] > 0 for one in rows)


async def test_lag_of_a_flow_that_is_stopped_is_by_its_state(
    command: LogCommand, rabbit_uri: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    await count(rabbit_uri, state, departures(1_000), 1_000)
    async with Client(rabbit_uri) as client:
        await append(client, departures(500, seed=2))
    asked = ("lag", DEPARTED.name, GROUP)

    (tmp_path / "config.yaml").write_text(json.dumps({"AMQP_URI": rabbit_uri, **config(state)}))
    rows, by_config, elsewhere = await asyncio.gather(
        told(command, *asked, "--state", str(state)),
        asyncio.to_thread(command, *asked, "--config", "config.yaml"),
        asyncio.to_thread(command, *asked),
    )

    assert {one["owner"] for one in rows} == {None}
    assert {one["lag"] for one in rows} == {1}, "a batch of 500 is one entry in each partition"
    assert by_config.stdout.splitlines()[0].split()[:4] == ["PARTITION", "END", "AT", "LAG"]
    assert elsewhere.returncode == 1
    assert "has no state in" in elsewhere.stderr
    assert "--state" in elsewhere.stderr


async def test_flows_are_shown_beside_log_handlers(
    command: LogCommand, rabbit_uri: str, rabbit_node: PrivateNode, tmp_path: Path
) -> None:
    management = f"http://127.0.0.1:{rabbit_node.management_port}"
    state = config(tmp_path / "state")
    async with (
        Client(rabbit_uri) as client,
        run_services(Counting, Listening, broker=rabbit_uri, config=state) as bed,
    ):
        await append(client, departures(1_000))
        await eventually(lambda: statistics(bed).records >= 1_000, 30)

        async def both() -> bool:
            rows = await told(command, "lag", DEPARTED.name, "--management", management)
            return {(one["group"], one["kind"], one["lag"]) for one in rows} == {
                ("listening", "handler", 0),
                (GROUP, "flow", 0),
            }

        await eventually(both, 30)
        shown = await asyncio.to_thread(command, "lag", DEPARTED.name, "--management", management)

    assert shown.stdout.splitlines()[0].split()[:2] == ["GROUP", "PARTITION"]
    assert {line.split()[0] for line in shown.stdout.splitlines()[1:]} == {"listening", GROUP}


async def test_a_stage_s_place_in_the_log_between_is_told(
    command: LogCommand, rabbit_uri: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with (
        Client(rabbit_uri) as client,
        run_services(Carriers, broker=rabbit_uri, config=config(state)) as bed,
    ):
        await client.append_many(LEFT, flights(500))
        await eventually(lambda: statistics(bed, Carriers).records >= 500, 30)
        (handler,) = [
            one for one in bed.container(Carriers).entrypoints if isinstance(one, FlowHandler)
        ]
        between = next(iter(handler.stages[-1].description.relays.values())).log.name
        group = handler.group or ""
        await eventually(lambda: handler.stages[-1].counts.records > 0, 30)

    rows = await told(command, "lag", between, group, "--state", str(state))

    assert any(one["at"] for one in rows)


@pytest.mark.long
async def test_replay_of_a_flow_begins_anew_and_is_followed_to_the_end(
    command: LogCommand, rabbit_uri: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    await count(rabbit_uri, state, departures(1_000) + sentinels(), 1_000 + PARTITIONS)
    place = ("--state", str(state))

    replay_it = ("replay", DEPARTED.name, GROUP, "--from", "first", *place)
    unasked, one = await asyncio.gather(
        asyncio.to_thread(command, *replay_it),
        asyncio.to_thread(command, *replay_it, "--partition", "0"),
    )
    argv = ("log", "replay", DEPARTED.name, GROUP, "--from", "first", "--follow", "--yes", *place)

    with Process(*MYCELIA, *argv, cwd=tmp_path, AMQP_URI=rabbit_uri) as replay:

        async def says(text: str) -> bool:
            return await asyncio.to_thread(
                replay.wait_until, lambda lines: any(text in one for one in lines), 60
            )

        assert await says("it has not begun"), replay.output
        async with run_services(Counting, broker=rabbit_uri, config=config(state)) as bed:
            assert await says("caught up"), replay.output
            again = statistics(bed).records

    assert unasked.returncode == 2
    assert "its state in" in unasked.stderr
    assert "say --yes" in unasked.stderr
    assert one.returncode == 2
    assert "leave --partition out" in one.stderr
    assert "goes on from offset 0" in replay.output
    assert again == 1_000 + PARTITIONS


async def test_replay_of_a_flow_that_runs_or_is_kept_elsewhere_is_refused(
    command: LogCommand, rabbit_uri: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    argv = ("replay", DEPARTED.name, GROUP, "--from", "first", "--yes")
    async with (
        Client(rabbit_uri) as client,
        run_services(Counting, broker=rabbit_uri, config=config(state)) as bed,
    ):
        await append(client, departures(100))
        await eventually(lambda: statistics(bed).records >= 100, 30)
        runs = await asyncio.to_thread(command, *argv, "--state", str(state))
    elsewhere, after = await asyncio.gather(
        asyncio.to_thread(command, *argv),
        told(command, "lag", DEPARTED.name, GROUP, "--state", str(state)),
    )

    assert (runs.returncode, elsewhere.returncode) == (1, 1)
    assert "Stop its instances first" in runs.stderr
    assert "has no state in" in elsewhere.stderr
    assert {one["lag"] for one in after} == {0}
