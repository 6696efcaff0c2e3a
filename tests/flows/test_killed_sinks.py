"""A flow whose process is killed, again and again, in the middle of files and rows: each record is there once, and no half line is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from tests.cli.commands import MYCELIA
from tests.flows.passing_on import MOVED, SERVICE, Moved
from tests.processes import Process

from mycelia import Client
from mycelia.testing import eventually

COUNT = 10_000
KILLS = 5

SLOWLY = """

import os as _os
import time as _time

pwrite = _os.pwrite


def slowly_written(file, data, at):
    if len(data) < 500:
        return pwrite(file, data, at)
    written = pwrite(file, data[: len(data) // 2], at)
    _time.sleep(0.01)
    return written


_os.pwrite = slowly_written
"""
"""Makes it likely that a process is killed in the middle of a line."""


async def start(folder: Path, processes: ExitStack) -> Process:
    command = (*MYCELIA, "run", "passing_on", "--config", "config.yaml")
    process = processes.enter_context(Process(*command, cwd=folder))
    await asyncio.to_thread(process.wait_until_ready)
    return process


def lines(folder: Path) -> list[Moved]:
    return [
        Moved(**json.loads(line))
        for file in sorted((folder / "out").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def rows(folder: Path) -> list[Moved]:
    engine = sa.create_engine(f"sqlite:///{folder}/results.db", connect_args={"timeout": 10})
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT plane, number FROM moved ORDER BY rowid")).all()
    engine.dispose()
    return [Moved(*row) for row in found]


def each_once_in_order(found: list[Moved]) -> None:
    assert sorted(one.number for one in found) == list(range(COUNT))
    by_plane: dict[str, list[int]] = defaultdict(list)
    for one in found:
        by_plane[one.plane].append(one.number)
    assert all(numbers == sorted(numbers) for numbers in by_plane.values())


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_each_record_is_in_files_and_table_once_through_kills(
    rabbit_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "passing_on.py").write_text(
        SERVICE.read_text().replace("from __future__ import annotations\n", "") + SLOWLY
    )
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\n")
    moved = [Moved(f"N{n % 11}", n) for n in range(COUNT)]
    chance = Random(3)
    kills = asyncio.Semaphore(0)

    async def appending(client: Client) -> None:
        """A share before each of the kills, the rest after the last."""
        for begin in range(0, COUNT, 100):
            if begin and begin % (COUNT // (KILLS + 1) // 100 * 100) == 0:
                await kills.acquire()
            await client.append_many(MOVED, moved[begin : begin + 100])
            await asyncio.sleep(0.05)

    async with Client(rabbit_uri) as client:
        with ExitStack() as processes:
            process = await start(tmp_path, processes)
            appended = asyncio.ensure_future(appending(client))
            for _ in range(KILLS):
                had = len(rows(tmp_path))
                await eventually(lambda had=had: len(rows(tmp_path)) > had + 300, 60, interval=0.1)  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.5)
                os.kill(process.pid, signal.SIGKILL)
                kills.release()
                process = await start(tmp_path, processes)
            kills.release()
            await appended
            try:
                await eventually(lambda: len(rows(tmp_path)) >= COUNT, 90, interval=0.1)
                await eventually(lambda: len(lines(tmp_path)) >= COUNT, 30, interval=0.1)
            except AssertionError as exc:
                raise AssertionError(f"{exc}\n{process.output}") from None

    each_once_in_order(rows(tmp_path))
    each_once_in_order(lines(tmp_path))
