"""`@log_handler` in processes that are killed, or stand still and wake up late: partitions move, and no two owners are followed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.cli.commands import MYCELIA
from tests.processes import Process
from tests.progress import until

from mycelia import Client, Log
from mycelia.amqp import connect
from mycelia.logs.partition_lease import PartitionLease, lease_queue
from mycelia.logs.stream_ends import last_offset
from mycelia.testing import eventually

SERVICE = """
import os
import time

from mycelia import Log, log_handler

LANDED = Log("landed", key=lambda value: value["plane"], partitions=4)


class Counting:
    name = "counting"

    @log_handler(LANDED, group="count")
    def landed(self, records):
        with open("book.txt", "a") as book:
            now = time.time()
            book.write("".join(f"{os.getpid()} {one.value['number']} {now}\\n" for one in records))
"""
LANDED = Log("landed", key=lambda value: value["plane"], partitions=4)


class Handled(NamedTuple):
    """A landing, who handled it, and when (seconds since 1970)."""

    pid: int
    number: int
    at: float


class Group:
    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        (folder / "counting.py").write_text(SERVICE)
        (folder / "config.yaml").write_text(f"AMQP_URI: {uri}\n")
        (folder / "book.txt").touch()
        self.processes = ExitStack()
        self.landed = 0
        self._stop = False

    async def start(self) -> Process:
        command = (*MYCELIA, "run", "counting", "--config", "config.yaml")
        process = self.processes.enter_context(Process(*command, cwd=self.folder))
        await asyncio.to_thread(process.wait_until_ready)
        return process

    def book(self) -> list[Handled]:
        """What has been handled. A line that is being written does not count."""
        lines = (self.folder / "book.txt").read_text().split("\n")[:-1]
        return [
            Handled(int(pid), int(number), float(at)) for pid, number, at in map(str.split, lines)
        ]

    def distinct(self) -> int:
        return len({one.number for one in self.book()})

    def handlers(self, since: int) -> set[int]:
        return {one.pid for one in self.book()[since:]}

    async def land(self) -> None:
        """Let planes land until told otherwise."""
        async with Client(self.uri) as client:
            while not self._stop:
                values = [
                    {"plane": f"P{n % 19}", "number": n}
                    for n in range(self.landed, self.landed + 20)
                ]
                await client.append_many(LANDED, values)
                self.landed += 20
                await asyncio.sleep(0.01)

    async def settle(self, landing: asyncio.Future[None]) -> None:
        """No more landings; wait until all have been handled."""
        self._stop = True
        await landing
        await until(
            lambda: self.distinct() >= self.landed, self.distinct, what="every landing is handled"
        )
        assert {one.number for one in self.book()} == set(range(self.landed))

    async def offsets(self) -> list[int]:
        """How far the group has come, in the queues of its partitions, once nobody has them."""
        link = connect(self.uri)
        await link.open(15)
        found = []
        for partition in range(LANDED.partitions):
            lease = PartitionLease(link, lease_queue("landed", "count", partition))

            async def is_ours(lease: PartitionLease = lease) -> bool:
                return await lease.acquire()

            await eventually(is_ours, 30)
            found.append(0 if lease.position is None else lease.position.offset)
            await lease.aclose()
        await link.aclose()
        return found


@pytest.fixture
async def group(tmp_path: Path, rabbit_uri: str) -> AsyncIterator[Group]:
    group = Group(tmp_path, rabbit_uri)
    with group.processes:
        yield group
        group._stop = True


@pytest.mark.timeout(240)
async def test_partitions_of_a_killed_owner_move_within_seconds_and_nothing_is_lost(
    group: Group,
) -> None:
    processes = [await group.start() for _ in range(2)]
    landing = asyncio.ensure_future(group.land())
    pids = {process.pid for process in processes}
    await until(lambda: group.handlers(0) == pids, lambda: len(group.book()), what="both handle")

    os.kill(processes[0].pid, signal.SIGKILL)
    killed_at, distinct = time.time(), group.landed
    await until(
        lambda: group.distinct() >= distinct,
        group.distinct,
        what="its partitions go on",
        interval=0.05,
    )
    moved_s = time.time() - killed_at
    await group.settle(landing)

    assert moved_s < 20
    # What was handled in the last second of its life is handled again (the place is written down once a second), and nothing else.
    first: dict[int, Handled] = {}
    repeated = [
        first[one.number] for one in group.book() if first.setdefault(one.number, one) is not one
    ]
    assert {one.pid for one in repeated} <= {processes[0].pid}
    assert all(one.at > killed_at - 5 for one in repeated)


@pytest.mark.timeout(240)
async def test_owner_that_stood_still_and_wakes_up_is_fenced(group: Group) -> None:
    """It has its partitions' work in its hands; others have gone on meanwhile. What it writes then is not followed."""
    still = await group.start()
    landing = asyncio.ensure_future(group.land())
    await until(lambda: len(group.book()) > 200, lambda: len(group.book()), what="it handles")
    other = await group.start()
    await until(
        lambda: group.handlers(0) == {still.pid, other.pid},
        lambda: len(group.book()),
        what="both handle",
    )

    os.kill(still.pid, signal.SIGSTOP)
    try:
        landed = group.landed
        await until(
            lambda: group.distinct() >= landed, group.distinct, what="the other has taken over"
        )
        began = len(group.book())
        await until(
            lambda: len(group.book()) > began + 400, lambda: len(group.book()), what="it goes on"
        )
    finally:
        os.kill(still.pid, signal.SIGCONT)
    woke = len(group.book())
    await until(
        lambda: still.pid in group.handlers(woke),
        lambda: len(group.book()),
        what="who woke up takes part again",
    )
    await group.settle(landing)
    for process in (still, other):
        await asyncio.to_thread(process.stop)

    # Every partition's place is behind its last entry: no late word of the sleeper has brought it back.
    link = connect(group.uri)
    await link.open(15)
    lasts = [await last_offset(link, f"landed-{number}") for number in range(LANDED.partitions)]
    await link.aclose()
    assert await group.offsets() == [0 if last is None else last + 1 for last in lasts]
    # Of each plane's landings those handled for the first time are in order, whoever handled them.
    first: dict[int, int] = {}
    for place, one in enumerate(group.book()):
        first.setdefault(one.number, place)
    by_plane: dict[int, list[int]] = {}
    for number in range(group.landed):
        by_plane.setdefault(number % 19, []).append(first[number])
    assert all(places == sorted(places) for places in by_plane.values())
