"""`mycelia flow shadow`: new code over the records that the old has had. What differs is named; nothing leaves, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA, Done, MyceliaCommand
from tests.flows.carriers import LEFT, Carriers, closing, flights
from tests.flows.counting import (
    COUNTED,
    DEPARTED,
    PARTITIONS,
    Counting,
    Departed,
    append,
    config,
    departures,
    expected,
    sentinels,
    statistics,
)
from tests.processes import Process

from mycelia import Client
from mycelia.broker.management_api import ManagementApi
from mycelia.flow import FlowHandler
from mycelia.testing import eventually, run_services

OLD = "tests.flows.counting:Counting.by_origin"

CHANGED = """
from tests.flows.counting import COUNTED, DEPARTED, Counted, Departed

from mycelia.flow import FlowOutput, Stream, count, flow, tumbling


class Counting:
    name = "counting"

    @flow(DEPARTED, commit_every="50ms")
    def by_origin(self, flights: Stream[Departed]) -> FlowOutput:
        return (
            flights.event_time(lambda one: one.at_ms, unit="ms", disorder="5s")
            .key_by(lambda one: one.origin)
            .window(tumbling("2s"))
            .aggregate(count())
            .map(self.counted)
            .to(COUNTED)
        )

    def counted(self, window):
        return Counted(window.key, window.start_ms, window.value + (window.key == "A7"))
"""

WITH_OTHERS = """
import asyncio

from tests.flows.counting import COUNTED, DEPARTED, Counting, Departed

from mycelia.flow import FlowOutput, Stream, flow


class Files:
    async def write(self, records):
        raise AssertionError("a shadow writes nothing")


class Leaving(Counting):
    name = "leaving"

    @flow(DEPARTED, commit_every="50ms")
    def counted(self, flights: Stream[Departed]):
        return (
            Counting.by_origin(self, flights),
            flights.to(Files(), name="files"),
            flights.emit("departed"),
            flights.key_by("origin").as_table("last"),
        )


class Asking:
    name = "asking"

    @flow(DEPARTED)
    def asked(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.map_async(self.ask).to(COUNTED)

    async def ask(self, flight):
        return flight


class Raising:
    name = "raising"

    @flow(DEPARTED, commit_every="50ms")
    def raised(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.map(self.fail).to(COUNTED)

    def fail(self, flight):
        raise ValueError("no such airport")


class Slow:
    name = "slow"

    @flow(DEPARTED, commit_every="50ms", commit_records=10)
    def slowly(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.map(self.wait).to(COUNTED)

    def wait(self, flight):
        import time
        time.sleep(0.02)
        return flight
"""


class Shadow:
    """The command, in a folder with the changed code; and what it is to be compared with."""

    def __init__(
        self, mycelia: MyceliaCommand, uri: str, api: ManagementApi, vhost: str, folder: Path
    ) -> None:
        self._mycelia = mycelia
        self._api = api
        self._vhost = vhost
        self._folder = folder
        self.uri = uri
        self.config = config(folder / "state")
        (folder / "changed.py").write_text(CHANGED)
        (folder / "others.py").write_text(WITH_OTHERS)

    async def __call__(self, *argv: str) -> Done:
        return await asyncio.to_thread(self._mycelia, "flow", "shadow", *argv, **self._where)

    def begin(self, *argv: str, **options: Any) -> Process:
        return Process(*MYCELIA, "flow", "shadow", *argv, **self._where, **options)

    @property
    def _where(self) -> dict[str, Any]:
        return {"cwd": self._folder, "AMQP_URI": self.uri, "TMPDIR": str(self._folder)}

    async def run_old(self, given: list[Departed]) -> None:
        """The old code takes these, and stops."""
        async with (
            Client(self.uri) as client,
            run_services(Counting, broker=self.uri, config=self.config) as bed,
        ):
            await append(client, given)
            await eventually(lambda: statistics(bed).records >= len(given), 30)

    def left_behind(self) -> list[str]:
        """What of a shadow is still there."""
        api, vhost = self._api, self._vhost
        names = [str(one["name"]) for one in (*api.queues(vhost), *api.exchanges(vhost))]
        return [
            *(one for one in names if "shadow" in one),
            *(one.name for one in self._folder.glob("mycelia-shadow-*")),
        ]

    async def nothing_is_left(self) -> None:
        async def is_clear() -> bool:
            return not await asyncio.to_thread(self.left_behind)

        await eventually(is_clear, 30)


@pytest.fixture
def shadow(
    mycelia: MyceliaCommand,
    rabbit_uri: str,
    rabbit_api: ManagementApi,
    rabbit_vhost: str,
    tmp_path: Path,
) -> Shadow:
    return Shadow(mycelia, rabbit_uri, rabbit_api, rabbit_vhost, tmp_path)


async def test_same_code_gives_the_same_and_leaves_nothing_behind(shadow: Shadow) -> None:
    given = departures(2_000)
    await shadow.run_old(given + sentinels())
    windows = len(expected(given))

    done = await shadow(OLD, "--from", "first")

    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{windows} the same, 0 different, 0 only in counted, 0 only in the shadow's; by key, time, of {windows} and {windows} records"
        ],
    ), done.stderr
    assert "shadow of counting.by_origin: counted.shadow-" in done.stderr
    await shadow.nothing_is_left()


async def test_changed_aggregate_is_named_and_so_are_missing_and_extra_results(
    shadow: Shadow,
) -> None:
    given = departures(2_000)
    await shadow.run_old(given + sentinels())
    changed = sum(origin == "A7" for origin, _ in expected(given))

    done, told, only = await asyncio.gather(
        shadow("changed:Counting.by_origin", "--from", "first", "--show", "2"),
        shadow("changed:Counting", "--from", "first", "--json"),
        shadow("changed:Counting", "--from", "first", "--against", DEPARTED.name, "--json"),
    )

    assert done.returncode == 1
    shown = done.stdout.splitlines()
    assert len(shown) == 5, "two differences, with both sides, and how many there are"
    assert all('"A7"' in line for line in shown[:4])
    assert [line[0] for line in shown[:4]] == ["-", "+", "-", "+"]
    report = json.loads(told.stdout)["logs"][0]["report"]
    assert (told.returncode, report["different"], report["only_left"]) == (1, changed, 0)
    assert {one["identity"][0] for one in report["differences"]} == {"A7"}
    assert all(
        one["right"]["flights"] == one["left"]["flights"] + 1 for one in report["differences"]
    )
    against = json.loads(only.stdout)["logs"][0]["report"]
    assert against["only_right"] == len(expected(given))
    assert against["only_left"] > 0


@pytest.mark.long
async def test_stages_and_the_logs_between_them_have_shadows_too(shadow: Shadow) -> None:
    async with (
        Client(shadow.uri) as client,
        run_services(Carriers, broker=shadow.uri, config=shadow.config) as bed,
    ):
        await client.append_many(LEFT, flights(1_000) + closing())
        (handler,) = [
            one for one in bed.container(Carriers).entrypoints if isinstance(one, FlowHandler)
        ]
        await eventually(lambda: handler.statistics().records >= 1_000, 30)
        await eventually(lambda: handler.stages[-1].counts.published > 0, 30)
        done = await shadow("tests.flows.carriers:Carriers", "--from", "first", "--json")

    report = json.loads(done.stdout)["logs"][0]["report"]
    assert (done.returncode, report["same"] > 0) == (0, True), done.stderr
    await shadow.nothing_is_left()


@pytest.mark.long
async def test_beside_code_that_runs_only_what_both_have_read_is_compared(shadow: Shadow) -> None:
    """Records come all the while; and the windows that were open where the shadow begins have their warm-up."""
    given = departures(40_000)
    stop = asyncio.Event()
    async with (
        Client(shadow.uri) as client,
        run_services(Counting, broker=shadow.uri, config=shadow.config) as bed,
    ):
        await append(client, given[:4_000], batch=200)
        await eventually(lambda: statistics(bed).records >= 4_000, 30)

        async def go_on() -> None:
            for begin in range(4_000, 40_000, 100):
                await append(client, given[begin : begin + 100], batch=100)
                if stop.is_set():
                    return
                await asyncio.sleep(0.1)
            raise AssertionError("the shadow takes too long")

        going_on = asyncio.create_task(go_on())
        part = ("--from", "5", "--json")
        warm = await shadow(OLD, *part, "--warm-up", "5s")
        stop.set()
        await going_on

    told = json.loads(warm.stdout)["logs"][0]
    assert (warm.returncode, told["report"]["same"] > 0) == (0, True), warm.stdout
    assert told["from_ms"] is not None
    assert told["until_ms"] is not None


async def test_what_is_no_log_is_caught_and_said(shadow: Shadow) -> None:
    await shadow.run_old(departures(500) + sentinels())

    done = await shadow("others:Leaving.counted", "--from", "first", "--against", COUNTED.name)

    assert done.returncode == 0, done.stderr
    assert 'output "files" goes nowhere' in done.stderr
    assert f'output "files": {500 + PARTITIONS} records, not given to' in done.stderr
    assert (
        f"output \"departed\": {500 + PARTITIONS} records, not given to event 'departed'"
        in done.stderr
    )


async def test_what_cannot_be_without_harm_or_without_end_is_refused(shadow: Shadow) -> None:
    await shadow.run_old(departures(100))

    asking, raising, several, nothing = await asyncio.gather(
        shadow("others:Asking", "--from", "first"),
        shadow("others:Raising", "--from", "first"),
        shadow("others", "--from", "first"),
        shadow(OLD, "--from", "100000"),
    )

    assert (asking.returncode, raising.returncode, several.returncode, nothing.returncode) == (
        *(2, 1, 2),
        1,
    )
    assert "steps that await" in asking.stderr
    assert "stands still" in raising.stderr
    assert "no such airport" in raising.stderr
    assert "Name one" in several.stderr
    assert "nothing to read" in nothing.stderr
    await shadow.nothing_is_left()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_it_clears_all_away(
    shadow: Shadow,
    number: signal.Signals,
) -> None:
    await shadow.run_old(departures(3_000))
    with shadow.begin("others:Slow", "--from", "first") as process:
        assert await asyncio.to_thread(
            process.wait_until, lambda lines: any("to go" in one for one in lines), 40
        ), process.output
        assert await asyncio.to_thread(shadow.left_behind)
        process.send(number)
        code = await asyncio.to_thread(process.finish, 30)

    assert code == 130
    assert "interrupted: nothing was compared" in process.output
    await shadow.nothing_is_left()


@pytest.mark.long
async def test_followed_it_compares_what_comes_until_ctrl_c(shadow: Shadow) -> None:
    given = departures(2_000)
    async with (
        Client(shadow.uri) as client,
        run_services(Counting, broker=shadow.uri, config=shadow.config) as bed,
    ):
        await append(client, given[:1_000])
        await eventually(lambda: statistics(bed).records >= 1_000, 30)
        argv = ("changed:Counting", "--from", "first", "--follow")
        with shadow.begin(*argv, errors_apart=True) as process:

            async def says(text: str) -> None:
                await eventually(lambda: text in process.errors, 60, what=f"{text} in stderr")

            await says("only in the shadow's, up to")
            await append(client, given[1_000:] + sentinels())
            changed = sum(origin == "A7" for origin, _ in expected(given))
            await says(f"{changed} different, 0 only there, 0 only in the shadow's, up to the end")
            process.send(signal.SIGINT)
            code = await asyncio.to_thread(process.finish, 30)

    assert code == 1
    assert f"the same, {changed} different, 0 only in counted" in process.output
