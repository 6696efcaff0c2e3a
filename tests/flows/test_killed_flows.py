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
    departures,
    expected,
)
from tests.flows.killing import all_counted, append_between_kills
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
    killed = asyncio.Semaphore(0)

    async with Client(rabbit_uri) as client:
        with ExitStack() as processes:
            tally = Tally(client)
            running = [await start(tmp_path, processes) for _ in range(instances)]
            appended = asyncio.ensure_future(
                append_between_kills(client, flights, KILLS, killed, 0.05)
            )
            for _ in range(KILLS):
                had = len(tally.by_id())
                await eventually(lambda had=had: tally.has(had + 50), 60)  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.5)
                os.kill(running.pop(0).pid, signal.SIGKILL)
                killed.release()
                running.append(await start(tmp_path, processes))
            killed.release()
            await appended
            await all_counted(tally, len(wanted), *running)
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "the reader drops what was published twice"
