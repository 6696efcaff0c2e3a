"""A flow whose process is killed, again and again, at any moment: every record counts once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from tests.cli.commands import MYCELIA
from tests.flows.counting import (
    SERVICE,
    Tally,
    append,
    departures,
    expected,
    sentinels,
)
from tests.processes import Process

from mycelia import Client
from mycelia.testing import eventually

FLIGHTS = 20_000
KILLS = 5

SLOWLY = """

import asyncio

from mycelia.flow import group_commit

publish = group_commit.publish_in_order


async def slowly(publishes, messages):
    if messages:
        await asyncio.sleep(0.05)
    await publish(publishes, messages)
    if messages:
        await asyncio.sleep(0.05)


group_commit.publish_in_order = slowly
"""
"""Makes it likely that a process is killed between a commit and what is published of it, or between that and the next commit."""


async def start(folder: Path, processes: ExitStack) -> Process:
    command = (*MYCELIA, "run", "counting", "--config", "config.yaml")
    process = processes.enter_context(Process(*command, cwd=folder))
    await asyncio.to_thread(process.wait_until_ready)
    return process


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("instances", "state"),
    [(1, "sqlite"), (2, "sqlite"), (2, "changelog"), (2, "postgresql")],
)
async def test_every_record_is_counted_once_through_kills(
    instances: int, state: str, rabbit_uri: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "counting.py").write_text(SERVICE.read_text() + SLOWLY)
    config = f"AMQP_URI: {rabbit_uri}\n"
    if state == "changelog":
        config += "mycelia: {flows: {changelog: true}}\n"
    if state == "postgresql":
        config += f"mycelia: {{flows: {{state: '{request.getfixturevalue('postgres_uri')}'}}}}\n"
    (tmp_path / "config.yaml").write_text(config)
    flights = departures(FLIGHTS)
    wanted = expected(flights)
    chance = Random(7)
    kills = asyncio.Semaphore(0)

    async def appending(client: Client) -> None:
        """A share before each of the kills, slowly, so that they come in the middle; the rest after the last."""
        for begin in range(0, FLIGHTS, 100):
            if begin and begin % (FLIGHTS // (KILLS + 1) // 100 * 100) == 0:
                await kills.acquire()
            await append(client, flights[begin : begin + 100])
            await asyncio.sleep(0.05)
        await append(client, sentinels())

    async with Client(rabbit_uri) as client:
        with ExitStack() as processes:
            tally = Tally(client)
            running = [await start(tmp_path, processes) for _ in range(instances)]
            appended = asyncio.ensure_future(appending(client))
            for _ in range(KILLS):
                had = len(tally.by_id())
                await eventually(lambda had=had: tally.has(had + 50), 60)  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.5)
                os.kill(running.pop(0).pid, signal.SIGKILL)
                kills.release()
                running.append(await start(tmp_path, processes))
            kills.release()
            await appended
            try:
                await eventually(lambda: tally.has(len(wanted)), 90)
            except AssertionError as exc:
                output = "\n".join(process.output for process in running)
                raise AssertionError(f"{exc}\n{output}") from None
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "the reader drops what was published twice"
