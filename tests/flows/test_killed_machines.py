"""Machines that run a flow with a changelog are killed or stopped, and their directories are gone: every record counts once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from tests.cli.commands import MYCELIA
from tests.flows.counting import (
    PARTITIONS,
    SERVICE,
    Tally,
    append,
    departures,
    expected,
    sentinels,
)
from tests.flows.killing import all_counted, append_between_kills
from tests.processes import Process
from tests.tools import write_out_declarations

from mycelia import Client
from mycelia.amqp import Link
from mycelia.flow.changelog_stream import ChangelogStream, LoggedEntry
from mycelia.flow.partition_state import StatePlace
from mycelia.testing import eventually

if TYPE_CHECKING:
    from mycelia.broker import PrivateNode

SMALL = """

import asyncio, os, signal
from pathlib import Path

from mycelia.flow import changelog_format, logged_file, logged_state
from mycelia.flow.changelog_stream import ChangelogStream

logged_state.LoggedState._is_due = lambda self: self._mark.since_bytes > 15_000
logged_state.PIECE_BYTES = changelog_format.PIECE_BYTES = logged_file.PIECE_BYTES = 2_000

appended = ChangelogStream.append
"""
"""Snapshots are under way most of the time."""

SLOWLY = """

async def slowly(self, head, body=b""):
    written = await appended(self, head, body)
    if head.kind in ("state", "commit"):
        await asyncio.sleep(0.01)
    return written


ChangelogStream.append = slowly
"""
"""Makes it likely that a process is killed between two entries, or before one is read back."""

SLEEPING = """

async def sleeping(self, head, body=b""):
    sleeps = head.kind == "commit" and head.number > 5 and Path("sleep").exists()
    if sleeps:
        when = Path("sleep").read_text()
        Path("sleep").unlink()
    if sleeps and when == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    written = await appended(self, head, body)
    if sleeps and when == "behind":
        os.kill(os.getpid(), signal.SIGSTOP)
    return written


ChangelogStream.append = sleeping
"""
"""Stops in the middle of a commit: before it is in the log, or before it is read back."""


class Fleet:
    """Each machine has a directory of its own, in which nothing is but the service."""

    def __init__(self, uri: str, path: Path, service: str) -> None:
        self.uri = uri
        self.path = path
        self.processes = ExitStack()
        self._service = service

    async def start(self, name: str, **files: str) -> Process:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        (folder / "counting.py").write_text(SERVICE.read_text() + self._service)
        (folder / "config.yaml").write_text(
            f"AMQP_URI: {self.uri}\nmycelia: {{flows: {{changelog: true}}}}\n"
        )
        for file, text in files.items():
            (folder / file).write_text(text)
        command = (*MYCELIA, "run", "counting", "--config", "config.yaml")
        process = self.processes.enter_context(Process(*command, cwd=folder))
        await asyncio.to_thread(process.wait_until_ready)
        return process


async def logged(link: Link, partition: int) -> list[LoggedEntry]:
    """The changelog of a partition."""
    place = StatePlace("departed", "counting.by_origin", "departed", partition)
    stream = ChangelogStream(link, place, 4 * 1024**3)
    end = (await stream.look()).offset
    found: list[LoggedEntry] = []
    async with stream.reading("first") as reader:
        while not found or found[-1].offset < end:
            found += await reader.take()
    return found


def claims_of(log: list[LoggedEntry]) -> list[str]:
    return [one.head.claim for one in log if one.head and one.head.kind == "claim"]


def is_stopped(process: Process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("instances", [1, 2])
async def test_every_record_is_counted_once_though_machines_are_killed_and_their_directories_gone(
    instances: int, rabbit_uri: str, tmp_path: Path
) -> None:
    """Also in the middle of a snapshot: one is under way most of the time. Some come back with what they had."""
    count, kills = 16_000, 6
    flights = departures(count)
    wanted = expected(flights)
    chance = Random(11)
    fleet = Fleet(rabbit_uri, tmp_path, SMALL + SLOWLY)
    killed = asyncio.Semaphore(0)

    async with Client(rabbit_uri) as client:
        with fleet.processes:
            tally = Tally(client)
            names = [f"machine-{number}" for number in range(instances)]
            running = [await fleet.start(name) for name in names]
            appended = asyncio.ensure_future(
                append_between_kills(client, flights, kills, killed, 0.04)
            )
            for turn in range(kills):
                had = len(tally.by_id())
                await eventually(lambda had=had: tally.has(had + 50), 60)  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.5)
                os.kill(running.pop(0).pid, signal.SIGKILL)
                name = names.pop(0)
                if turn % 3:
                    shutil.rmtree(tmp_path / name)
                names.append(name if turn % 3 != 1 else f"machine-{turn}-new")
                killed.release()
                running.append(await fleet.start(names[-1]))
            killed.release()
            await appended
            await all_counted(tally, len(wanted), *running)
            every = [await logged(client.link, partition) for partition in range(PARTITIONS)]
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "the reader drops what was published twice"
    for log in every:
        begun = {one.head.snapshot for one in log if one.head and one.head.kind == "state"}
        whole = {one.head.snapshot for one in log if one.head and one.head.kind == "end"}
        assert whole, f"{len(begun)} were begun"


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("when", ["before", "behind"])
async def test_owner_that_slept_over_its_commit_is_followed_by_nobody(
    when: str, rabbit_uri: str, tmp_path: Path
) -> None:
    """It is stopped with a commit in its hands; another machine goes on; it wakes up, and writes it."""
    flights = departures(12_000)
    wanted = expected(flights)
    fleet = Fleet(rabbit_uri, tmp_path, SMALL + SLEEPING)

    async with Client(rabbit_uri) as client:
        with fleet.processes:
            tally = Tally(client)
            sleeper = await fleet.start("sleeper", sleep=when)

            async def appending() -> None:
                for begin in range(0, len(flights), 100):
                    await append(client, flights[begin : begin + 100])
                    await asyncio.sleep(0.05)

            appended = asyncio.ensure_future(appending())
            await eventually(lambda: is_stopped(sleeper), 60)
            other = await fleet.start("other")

            async def has_claimed_all() -> bool:
                logs = [await logged(client.link, partition) for partition in range(PARTITIONS)]
                return all(len(claims_of(log)) > 1 for log in logs)

            await eventually(has_claimed_all, 60)
            had = len(tally.by_id())
            await eventually(lambda: tally.has(had + 100), 60)
            sleeper.send(signal.SIGCONT)
            await appended
            third = await fleet.start("third")
            await append(client, sentinels())
            await all_counted(tally, len(wanted), sleeper, other, third)
            every = [await logged(client.link, partition) for partition in range(PARTITIONS)]
            for process in (sleeper, other, third):
                await asyncio.to_thread(process.stop)
            await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)
    late = 0
    for log in every:
        claims: list[str] = []
        for _, head, _ in log:
            if head is not None and head.kind == "claim":
                claims.append(head.claim)
            if head is not None and head.kind == "commit":
                late += head.claim != claims[-1]
    if when == "before":
        assert late, f"its commit is in the log, behind another's claim\n{sleeper.output[-6000:]}"


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_broker_that_is_killed_costs_no_record(
    own_rabbit_node: PrivateNode, tmp_path: Path
) -> None:
    flights = departures(8_000)
    wanted = expected(flights)
    uri = own_rabbit_node.uri("/")
    fleet = Fleet(uri, tmp_path, SMALL + SLOWLY)
    async with Client(uri) as client:
        with fleet.processes:
            tally = Tally(client)
            first = await fleet.start("first")
            half = len(flights) // 2
            await append(client, flights[:half])
            await eventually(lambda: tally.has(100), 60)
            await asyncio.to_thread(write_out_declarations, own_rabbit_node)
            await asyncio.to_thread(own_rabbit_node.kill)
            await asyncio.to_thread(own_rabbit_node.start, leash=True)
            await append(client, flights[half:])
            await eventually(lambda: tally.has(len(wanted) // 2), 90)
            first.kill()
            shutil.rmtree(tmp_path / "first")
            second = await fleet.start("second")
            await append(client, sentinels())
            await all_counted(tally, len(wanted), second)
            await tally.aclose()

    assert tally.counts() == wanted
