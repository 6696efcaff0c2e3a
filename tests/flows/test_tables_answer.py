"""Tables of a flow answer RPC, whichever instance is asked and whoever has the key, while partitions move."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, NAMEKO
from tests.flows.counting import config
from tests.flows.ranking import LANDED, PARTITIONS, SERVICE, Landed, Ranking
from tests.processes import Process, run

from mycelia import Client, rpc
from mycelia.errors import ConfigError, IncorrectSignature, RemoteError, RpcTimeout
from mycelia.flow import FlowHandler, FlowOutput, Stream, flow
from mycelia.logs import partition_of
from mycelia.testing import ServiceBed, eventually, run_services

HOUR_MS = 3_600_000
AIRPORTS = [f"A{number}" for number in range(12)]


def flights(at_ms: int) -> list[Landed]:
    return [Landed(airport, "UA", at_ms) for airport in AIRPORTS]


async def row(client: Client, key: Any, table: str = "latest", timeout: float = 20) -> Any:
    return await client.call("ranking", f"get_{table}", key, timeout=timeout)


async def until_told(client: Client, key: Any, at_ms: int, table: str = "latest") -> Any:
    """The row of a key, once it is of that time."""

    async def told() -> Any:
        try:
            found = await row(client, key, table)
        except RemoteError as exc:
            assert exc.exc_type == "UnknownTableKey"  # noqa: PT017  nothing has been committed yet
            return None
        return found if found["time_ms"] == at_ms else None

    return await eventually(told, 30)


async def test_a_table_says_what_came_last_of_a_key(broker: str, tmp_path: Path) -> None:
    begun_ms = time.time() * 1000
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS))
        await bed.client.append_many(LANDED, flights(2 * HOUR_MS))
        found = await until_told(bed.client, "A3", 2 * HOUR_MS)

    assert found["key"] == "A3"
    assert found["value"] == {"airport": "A3", "carrier": "UA", "at_ms": 2 * HOUR_MS}
    assert found["partition"] == partition_of("A3", PARTITIONS)
    assert found["watermark_ms"] == 2 * HOUR_MS
    assert begun_ms <= found["committed_ms"] <= time.time() * 1000


async def test_a_key_of_several_parts_is_asked_for_as_a_list(broker: str, tmp_path: Path) -> None:
    """Such keys are where the log's own key is, so all partitions are asked."""
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS) + flights(HOUR_MS + 1))
        await until_told(bed.client, "A3", HOUR_MS + 1)
        found = [
            await until_told(bed.client, [one, "UA"], 2 * HOUR_MS - 1, "hours") for one in AIRPORTS
        ]

    assert [one["value"]["value"] for one in found] == [2] * len(AIRPORTS)
    assert [one["partition"] for one in found] == [
        partition_of(one, PARTITIONS) for one in AIRPORTS
    ]


async def test_open_windows_of_a_key_are_told_with_what_they_have_come_to(
    broker: str, tmp_path: Path
) -> None:
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS) + flights(HOUR_MS + 5))
        await until_told(bed.client, "A3", HOUR_MS + 5)
        found = await row(bed.client, ["A3", "UA"], "open_hours")
        await bed.client.append_many(LANDED, flights(2 * HOUR_MS))
        await until_told(bed.client, "A3", 2 * HOUR_MS)
        later = await row(bed.client, ["A3", "UA"], "open_hours")

        with pytest.raises(RemoteError, match="has no open window of key") as unknown:
            await row(bed.client, ["A3", "XX"], "open_hours")

    window = {"end_ms": 2 * HOUR_MS, "is_closed": False, "start_ms": HOUR_MS, "value": 2}
    assert found["windows"] == [window]
    assert (found["key"], found["left_out"]) == (["A3", "UA"], 0)
    assert found["watermark_ms"] == HOUR_MS + 5
    assert found["partition"] == partition_of("A3", PARTITIONS)
    assert [(one["start_ms"], one["value"]) for one in later["windows"]] == [(2 * HOUR_MS, 1)]
    assert unknown.value.exc_type == "UnknownTableKey"


async def test_state_of_a_function_is_told(broker: str, tmp_path: Path) -> None:
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS) + flights(HOUR_MS + 5))
        await until_told(bed.client, "A3", HOUR_MS + 5)
        found = await row(bed.client, "A3", "seen")

        with pytest.raises(RemoteError, match="has nothing of key 'XXX'"):
            await row(bed.client, "XXX", "seen")

    assert found["state"] == {"flights": 2, "last": {"('A3', 'UA')": HOUR_MS + 5}}
    assert found["key"] == "A3"
    assert found["partition"] == partition_of("A3", PARTITIONS)


def test_two_flows_of_a_service_cannot_be_asked_by_one_name() -> None:
    class Twice:
        name = "twice"

        @flow(LANDED)
        def landed(self, flights: Stream[Landed]) -> FlowOutput:
            return flights.key_by("airport").as_table("latest")

        @flow(LANDED)
        def again(self, flights: Stream[Landed]) -> FlowOutput:
            return flights.key_by("airport").as_table("latest")

    async def run() -> None:
        async with run_services(Twice):
            pass

    with pytest.raises(ConfigError, match='its table "latest" is asked by the method get_latest'):
        asyncio.run(run())


async def test_what_cannot_be_told_is_said(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS))
        await until_told(bed.client, "A3", HOUR_MS)

        with pytest.raises(RemoteError, match="has nothing of key 'XXX'") as unknown:
            await row(bed.client, "XXX")
        with pytest.raises(RemoteError, match="has nothing of key 3"):
            await row(bed.client, 3)
        with pytest.raises(IncorrectSignature):
            await bed.client.call("ranking", "get_latest")
        with pytest.raises(
            Exception, match="It has: get_hours, get_latest, get_open_hours, get_seen"
        ):
            await row(bed.client, "A3", "newest")

    assert unknown.value.exc_type == "UnknownTableKey"
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []  # nobody has to act


@pytest.mark.long_variants("memory")
async def test_a_key_whose_partition_nobody_has_is_waited_for_and_then_said_to_be_away(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_services(Ranking, broker=broker, config=config(tmp_path), timeout=20) as bed:
        await bed.client.append_many(LANDED, flights(HOUR_MS))
        await until_told(bed.client, "A3", HOUR_MS)
        (handler,) = [
            one for one in bed.container(Ranking).entrypoints if isinstance(one, FlowHandler)
        ]
        tables = handler._tables
        assert tables is not None
        gone = partition_of("A3", PARTITIONS)
        owned = tables._owned
        monkeypatch.setattr(
            tables, "_owned", lambda stage: [one for one in owned(stage) if one != gone]
        )
        begun = time.monotonic()

        with pytest.raises(RemoteError, match=f"partition {gone}: no owner answered") as away:
            await row(bed.client, "A3", timeout=8)  # of which it leaves a tenth for the way back
        waited = time.monotonic() - begun
        other = next(one for one in AIRPORTS if partition_of(one, PARTITIONS) != gone)
        found = await row(bed.client, other)

    assert away.value.exc_type == "PartitionAway"
    assert 6 < waited < 12
    assert found["time_ms"] == HOUR_MS


def test_a_table_whose_method_is_there_already_is_refused() -> None:
    class Taken:
        name = "taken"

        @flow(LANDED)
        def landed(self, flights: Stream[Landed]) -> FlowOutput:
            return flights.key_by("airport").as_table("latest")

        @rpc
        def get_latest(self) -> None: ...

    async def run() -> None:
        async with run_services(Taken):
            pass

    with pytest.raises(ConfigError, match='its table "latest" is asked by the method get_latest'):
        asyncio.run(run())


# --- several processes -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "ranking.py").write_text(SERVICE.read_text())
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\nrpc_timeout: 20\n")
    return tmp_path


async def start(folder: Path, processes: ExitStack) -> Process:
    command = (*MYCELIA, "run", "ranking", "--config", "config.yaml")
    process = processes.enter_context(Process(*command, cwd=folder))
    await asyncio.to_thread(process.wait_until_ready)
    return process


def test_stock_nameko_shell_asks_a_table(folder: Path) -> None:
    async def act() -> str:
        with ExitStack() as processes:
            await start(folder, processes)
            async with Client((folder / "config.yaml").read_text().split()[1]) as client:
                await client.append_many(LANDED, flights(HOUR_MS))
                await until_told(client, "A3", HOUR_MS)
            script = 'print(n.rpc.ranking.get_latest("A3")["value"]["at_ms"])\n'
            done = await asyncio.to_thread(
                run,
                (NAMEKO, "shell", "--config", "config.yaml", "--interface", "plain"),
                folder,
                stdin=script,
            )
            return done.stdout

    assert str(HOUR_MS) in asyncio.run(act())


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_keys_are_told_whoever_is_asked_while_partitions_move_and_owners_die(
    folder: Path, rabbit_uri: str
) -> None:
    """Answers never go back: an owner that follows another tells what that one had committed, or more."""
    newest = dict.fromkeys(AIRPORTS, 0)
    wrong: list[Any] = []
    asked = 0
    is_over = asyncio.Event()

    async def asking(client: Client) -> None:
        nonlocal asked
        while not is_over.is_set():
            for airport in AIRPORTS:
                try:
                    found = await row(client, airport)
                except RpcTimeout:
                    continue  # asked of a process that was killed with the request
                if found["time_ms"] < newest[airport] or found["value"]["airport"] != airport:
                    wrong.append((airport, found, newest[airport]))
                newest[airport] = found["time_ms"]
                asked += 1

    async def landing(client: Client) -> int:
        at_ms = HOUR_MS
        while not is_over.is_set():
            at_ms += 1000
            await client.append_many(LANDED, flights(at_ms))
            await asyncio.sleep(0.05)
        return at_ms

    def seen_since(begin: int) -> Any:
        return lambda: asked > begin + 3 * len(AIRPORTS)

    async with Client(rabbit_uri, timeout=20) as client:
        with ExitStack() as processes:
            first = await start(folder, processes)
            await client.append_many(LANDED, flights(HOUR_MS))
            for airport in AIRPORTS:
                await until_told(client, airport, HOUR_MS)
            tasks = asyncio.gather(asking(client), landing(client))
            try:
                await eventually(seen_since(asked), 30)
                await start(folder, processes)  # takes half of the partitions
                third = await start(folder, processes)
                await eventually(seen_since(asked), 60)
                os.kill(third.pid, signal.SIGKILL)
                await eventually(seen_since(asked), 60)
                os.kill(first.pid, signal.SIGTERM)
                await eventually(seen_since(asked), 60)
            finally:
                is_over.set()
            _, last_ms = await tasks
            for airport in AIRPORTS:
                await until_told(client, airport, last_ms)

    assert wrong == []


async def test_the_instance_that_has_not_the_key_asks_the_one_that_has(
    rabbit_uri: str, tmp_path: Path
) -> None:
    def handler(bed: ServiceBed, service: type) -> FlowHandler:
        (found,) = [
            one for one in bed.container(service).entrypoints if isinstance(one, FlowHandler)
        ]
        return found

    others = type("Ranking", (Ranking,), {})
    async with (
        run_services(Ranking, broker=rabbit_uri, config=config(tmp_path), timeout=20) as one,
        run_services(others, broker=rabbit_uri, config=config(tmp_path), timeout=20) as two,
    ):
        flows = handler(one, Ranking), handler(two, others)
        await eventually(lambda: [len(it.statistics().partitions) for it in flows] == [2, 2], 40)
        await one.client.append_many(LANDED, flights(HOUR_MS))
        for airport in AIRPORTS:
            await until_told(one.client, airport, HOUR_MS)

        for it in flows:
            for airport in AIRPORTS:
                found = await it.get_row("latest", airport, 10.0)
                assert found["value"]["airport"] == airport
                seen = await it.get_row("seen", airport, 10.0)
                assert seen["state"]["flights"] == 1
                hours = await it.get_row("open_hours", (airport, "UA"), 10.0)
                assert [one["value"] for one in hours["windows"]] == [1]
