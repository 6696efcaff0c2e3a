"""`@timer(once_per_fleet=True)` on RabbitMQ: whoever ticks is killed, cut off or stopped, and another goes on; none ticks twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from tests.cli.commands import MYCELIA
from tests.processes import Process

from mycelia.broker.management_api import ManagementApi
from mycelia.broker.node import PrivateNode
from mycelia.entrypoints.tick_lease import HEARTBEAT
from mycelia.testing import eventually

SERVICE = """
import os
import time

from mycelia import timer


class Reports:
    name = "reports"

    @timer(0.25, once_per_fleet=True, missed={missed!r})
    {kind} report(self, tick):
        with open("book.txt", "a") as book:
            book.write(f"{{os.getpid()}} {{tick.key}} {{time.time()}}\\n")
"""

FAILING = """
import os

from mycelia import Retry, fixed, get_current_call, timer


class Reports:
    name = "reports"

    @timer(2, once_per_fleet=True, missed="all", retry=Retry(attempts=3, backoff=fixed("3s")))
    def report(self, tick):
        with open("book.txt", "a") as book:
            book.write(f"{os.getpid()} {tick.key} {get_current_call().attempt}\\n")
        raise ConnectionError("no printer")
"""

MOVED_WITHIN = 20.0
"""Seconds from the last tick of a holder that stands still to the first of another: three heartbeats, and a busy machine."""


class Fleet:
    def __init__(self, folder: Path, uri: str, missed: str = "skip", kind: str = "def") -> None:
        self.folder = folder
        (folder / "reports.py").write_text(SERVICE.format(missed=missed, kind=kind))
        (folder / "config.yaml").write_text(f"AMQP_URI: {uri}\n")
        (folder / "book.txt").touch()
        self.processes = ExitStack()
        self.by_pid: dict[int, Process] = {}

    async def start(self) -> Process:
        command = (*MYCELIA, "run", "reports", "--config", "config.yaml")
        process = self.processes.enter_context(Process(*command, cwd=self.folder))
        await asyncio.to_thread(process.wait_until_ready)
        self.by_pid[process.pid] = process
        return process

    def book(self) -> list[tuple[int, str, float]]:
        """Who has run which tick, and when."""
        lines = (self.folder / "book.txt").read_text().splitlines()
        return [(int(pid), key, float(at)) for pid, key, at in map(str.split, lines)]

    async def ticks_on(self, count: int = 4, *, without: int = 0, timeout: float = 60.0) -> int:
        """Wait for more ticks, by another than `without`; return who runs them."""
        begun = len(self.book())

        def more() -> list[int]:
            return [pid for pid, _, _ in self.book()[begun:] if pid != without]

        await eventually(lambda: len(more()) >= count, timeout, interval=0.1)
        return more()[-1]

    def assert_none_ran_twice(self) -> None:
        counts = Counter(key for _, key, _ in self.book())
        assert [key for key, count in counts.items() if count > 1] == []


@pytest.fixture
def fleet(tmp_path: Path, rabbit_uri: str) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, rabbit_uri)
    with fleet.processes:
        yield fleet


@pytest.mark.timeout(180)
async def test_holder_that_is_killed_is_followed_within_seconds(fleet: Fleet) -> None:
    for _ in range(3):
        await fleet.start()
    killed: set[int] = set()
    for _ in range(2):
        holder = await fleet.ticks_on()
        assert holder not in killed
        os.kill(holder, signal.SIGKILL)
        killed.add(holder)
        at = time.time()
        await fleet.ticks_on(1, without=holder)
        assert time.time() - at < 10

    assert len({pid for pid, _, _ in fleet.book()}) == 3
    fleet.assert_none_ran_twice()


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_holder_that_stands_still_is_followed_and_does_not_tick_when_it_wakes(
    fleet: Fleet,
) -> None:
    """SIGSTOP: its connection stays, until the broker has missed its heartbeats."""
    for _ in range(2):
        await fleet.start()
    first = await fleet.ticks_on()
    os.kill(first, signal.SIGSTOP)
    try:
        last = fleet.book()[-1][2]
        second = await fleet.ticks_on(without=first)
        took_over = next(at for pid, _, at in fleet.book() if pid == second)
    finally:
        os.kill(first, signal.SIGCONT)
    assert took_over - last < MOVED_WITHIN
    await asyncio.to_thread(fleet.by_pid[first].wait_for, "timer_lease_lost")
    woken = len(fleet.book())
    await fleet.ticks_on(8)

    assert {pid for pid, _, _ in fleet.book()[woken:]} == {second}
    fleet.assert_none_ran_twice()

    os.kill(second, signal.SIGKILL)  # and who was left behind is fit to follow
    assert await fleet.ticks_on(without=second) == first
    fleet.assert_none_ran_twice()


@pytest.mark.timeout(240)
@pytest.mark.long
async def test_holder_that_stands_still_in_a_pause_tries_nothing_again_when_it_wakes(
    fleet: Fleet,
) -> None:
    """By then another has run the ticks that followed."""
    (fleet.folder / "reports.py").write_text(FAILING)
    for _ in range(2):
        await fleet.start()
    await eventually(lambda: len(fleet.book()) >= 4, 60, interval=0.02)
    assert [attempt for _, _, attempt in fleet.book()[:4]] == [1, 2, 3, 1]
    first, key, _ = fleet.book()[3]
    os.kill(first, signal.SIGSTOP)  # its next attempt is three seconds away
    try:
        await fleet.ticks_on(without=first)
    finally:
        os.kill(first, signal.SIGCONT)
    await asyncio.to_thread(fleet.by_pid[first].wait_for, "the lease was lost")
    await fleet.ticks_on(without=first)

    assert [attempt for pid, tick, attempt in fleet.book() if (pid, tick) == (first, key)] == [1]
    assert len({pid for pid, _, _ in fleet.book()[-4:]}) == 1


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_cut_connections_move_the_timer_and_repeat_nothing(
    fleet: Fleet, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    for _ in range(2):
        await fleet.start()
    for _ in range(3):
        await fleet.ticks_on(2)
        await asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost)
    await fleet.ticks_on()

    fleet.assert_none_ran_twice()


@pytest.mark.timeout(240)
@pytest.mark.long
async def test_broker_that_is_killed_and_comes_back_repeats_nothing(
    tmp_path: Path, own_rabbit_node: PrivateNode
) -> None:
    fleet = Fleet(tmp_path, own_rabbit_node.uri(), kind="async def")
    with fleet.processes:
        for _ in range(2):
            await fleet.start()
        await fleet.ticks_on()
        await asyncio.to_thread(own_rabbit_node.kill)
        await asyncio.to_thread(own_rabbit_node.start, leash=True)
        await fleet.ticks_on(timeout=90)

        fleet.assert_none_ran_twice()


@pytest.mark.timeout(180)
async def test_fleet_that_was_away_makes_up_for_what_it_missed(
    tmp_path: Path, rabbit_uri: str
) -> None:
    """All of them are killed; what was the last tick is known at the broker."""
    fleet = Fleet(tmp_path, rabbit_uri, missed="all")
    with fleet.processes:
        first = await fleet.start()
        await fleet.ticks_on()
        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: not first.is_running, 20)
        away_since = fleet.book()[-1][1]
        await fleet.start()
        await fleet.ticks_on()

        keys = [key for _, key, _ in fleet.book()]
        after = keys[keys.index(away_since) :]
        fleet.assert_none_ran_twice()
        scheduled = [datetime.fromisoformat(key.partition("@")[2]) for key in keys]
        assert scheduled == sorted(scheduled)
        assert len(after) > 4
        steps = {(b - a).total_seconds() for a, b in pairwise(scheduled[-len(after) :])}
        assert steps <= {0.25, 0.5}  # a tick may have begun when it was killed


def test_heartbeat_of_leases_is_short_enough() -> None:
    """RabbitMQ gives a silent connection up after two to three heartbeats."""
    assert 3 * HEARTBEAT < MOVED_WITHIN
