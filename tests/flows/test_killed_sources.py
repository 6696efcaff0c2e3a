"""Flows over queues, iterators, tables and the clock whose process is killed, again and again: each record counts once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from tests.cli.commands import MYCELIA
from tests.flows.reading_on import SERVICE, SOURCES, Heard
from tests.processes import Process

from mycelia import Client
from mycelia.testing import eventually

KILLS = 5


def given(folder: Path, source: str) -> list[int]:
    path = folder / f"{source}.db"
    if not path.exists():
        return []
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})
    try:
        with engine.connect() as connection:
            query = sa.text("SELECT number FROM given ORDER BY rowid")
            return [number for (number,) in connection.execute(query)]
    except sa.exc.OperationalError:  # the table is not made yet
        return []
    finally:
        engine.dispose()


async def start(folder: Path, processes: ExitStack) -> Process:
    command = (*MYCELIA, "run", "reading_on", "--config", "config.yaml")
    process = processes.enter_context(Process(*command, cwd=folder))
    await asyncio.to_thread(process.wait_until_ready)
    return process


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_each_record_of_every_source_counts_once_through_kills(
    rabbit_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "reading_on.py").write_text(SERVICE.read_text())
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\n")
    meters = sa.create_engine(f"sqlite:///{tmp_path}/meters.db", connect_args={"timeout": 10})
    with meters.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE readings (id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER)")
        )
    written = 0
    is_done = asyncio.Event()

    def insert(number: int) -> None:
        with meters.begin() as connection:
            connection.execute(sa.text("INSERT INTO readings (number) VALUES (:n)"), {"n": number})

    async def writing(client: Client) -> None:
        nonlocal written
        while not is_done.is_set():
            await client.publish("meters", "read", Heard(written))
            await asyncio.to_thread(insert, written)
            written += 1

    chance = Random(11)
    async with Client(rabbit_uri) as client:
        with ExitStack() as processes:
            process = await start(tmp_path, processes)
            writer = asyncio.ensure_future(writing(client))
            for _ in range(KILLS):
                had = {source: len(given(tmp_path, source)) for source in SOURCES}
                await eventually(
                    lambda had=had: all(  # type: ignore[misc]
                        len(given(tmp_path, source)) > count + 20 for source, count in had.items()
                    ),
                    60,
                    interval=0.1,
                )
                await asyncio.sleep(chance.random() * 0.3)
                os.kill(process.pid, signal.SIGKILL)
                process = await start(tmp_path, processes)
            is_done.set()
            await writer
            try:
                for source in ("events", "rows"):
                    await eventually(
                        lambda source=source: len(given(tmp_path, source)) >= written,  # type: ignore[misc]
                        60,
                        interval=0.1,
                    )
            except AssertionError as exc:
                raise AssertionError(f"{exc}\n{process.output}") from None
    meters.dispose()

    assert sorted(given(tmp_path, "events")) == list(range(written))
    assert given(tmp_path, "rows") == list(range(written))
    iterated, moments = given(tmp_path, "iterated"), given(tmp_path, "ticks")
    assert iterated == list(range(len(iterated)))
    assert moments == list(range(moments[0], moments[0] + 5 * len(moments), 5))
