"""The second promise, kept by real processes: a ledger that must hold every event and every call.

Services are killed with SIGKILL, replaced in rolling restarts, and the broker is restarted under them, while events are
published and calls made all the time. What the broker confirmed must be in the ledger at least once; what was answered
must be in it; and nothing may be left between the chairs: in a queue, unacknowledged, or as a dead letter.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.commands import NAMEKO
from tests.processes import Process
from tests.progress import until

from mycelia import Client
from mycelia.broker.node import PrivateNode
from mycelia.errors import CallError, LinkError

LEDGER = """
import sqlite3
from contextlib import closing

from mycelia import event_handler, rpc


def write(kind, number):
    with closing(sqlite3.connect("ledger.sqlite", timeout=20)) as book, book:
        book.execute("INSERT INTO entries VALUES (?, ?)", (kind, number))


class Ledger:
    name = "ledger"

    @event_handler("source", "happened", concurrency=8)
    def happened(self, number):
        write("event", number)

    @rpc(concurrency=8)
    def record(self, number):
        write("call", number)
        return number
"""

CALL_S = 1.5
"""What a caller waits before it tries again."""

EVENT_QUEUE = "evt-source-happened--ledger.happened"


class Load:
    """Publishes events and makes calls, both without a pause, until told to stop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stopping = False
        self._next = 0
        self.confirmed: list[int] = []
        self.answered: list[int] = []
        self.unclear: list[int] = []
        """Events whose confirm did not come in time: they may have arrived."""
        self.retries = 0
        self.longest_failure_s = 0.0

    def stop(self) -> None:
        self._stopping = True

    def _number(self) -> int:
        self._next += 1
        return self._next

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._publish())
                group.create_task(self._call())

    def reached(self) -> tuple[int, int]:
        """What changes while anything comes through."""
        return len(self.confirmed), len(self.answered)

    async def _publish(self) -> None:
        while not self._stopping:
            number = self._number()
            try:
                await self._client.publish("source", "happened", number, mandatory=True)
            except LinkError:
                self.unclear.append(number)
            else:
                self.confirmed.append(number)

    async def _call(self) -> None:
        while not self._stopping:
            number = self._number()
            while True:  # until it is answered: the retry that a caller makes
                started = time.monotonic()
                try:
                    answer = await self._client.call("ledger", "record", number, timeout=CALL_S)
                except (CallError, LinkError):
                    self.retries += 1
                    self.longest_failure_s = max(self.longest_failure_s, time.monotonic() - started)
                else:
                    assert answer == number
                    self.answered.append(number)
                    break


def entries(book: Path) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {"event": Counter(), "call": Counter()}
    with closing(sqlite3.connect(book, timeout=20)) as connection:
        for kind, number in connection.execute("SELECT kind, number FROM entries"):
            found[kind][number] += 1
    return found


@pytest.fixture
def folder(tmp_path: Path, own_rabbit_node: PrivateNode) -> Path:
    (tmp_path / "ledger.py").write_text(LEDGER)
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: {own_rabbit_node.uri()}\nHEARTBEAT: 5\nmycelia:\n  grace: 10\n"
    )
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as book, book:
        book.execute("PRAGMA journal_mode=WAL")
        book.execute("CREATE TABLE entries (kind TEXT, number INTEGER)")
    return tmp_path


@pytest.mark.timeout(600)  # it ends for lack of progress, long before
async def test_every_event_and_call_is_in_the_ledger_after_crashes_and_restarts(
    folder: Path, own_rabbit_node: PrivateNode
) -> None:
    node = own_rabbit_node
    fleet: list[Process] = []

    def start() -> Process:
        process = Process(NAMEKO, "run", "ledger", "--config", "config.yaml", cwd=folder)
        fleet.append(process)
        return process

    async def ready(process: Process) -> None:
        await asyncio.to_thread(process.wait_until_ready)

    try:
        first, second = start(), start()
        await asyncio.gather(ready(first), ready(second))
        async with Client(node.uri(), timeout=30, config={"HEARTBEAT": 5}) as client:
            load = Load(client)
            running = asyncio.ensure_future(load.run())

            async def progress(count: int = 100) -> None:
                """Wait until so many more events and calls have come through: the load is alive."""
                events, calls = len(load.confirmed) + count, len(load.answered) + count
                await until(
                    lambda: len(load.confirmed) >= events and len(load.answered) >= calls,
                    load.reached,
                    what=f"{count} more events and calls",
                )

            await progress()
            first.kill()  # one crashes in the midst of its work
            third = start()
            await progress()
            second.kill()
            await asyncio.to_thread(node.kill)  # and now nobody is there, nor a broker
            fourth = start()
            await asyncio.to_thread(node.start, leash=True)
            await asyncio.gather(ready(third), ready(fourth))
            await progress()
            third.send(signal.SIGTERM)  # a rolling restart: the old one goes in order
            assert await asyncio.to_thread(third.finish) == 0
            await progress()
            load.stop()
            await until(running.done, load.reached, what="the last call is answered")
            await running

        def all_there() -> bool:
            found = entries(folder / "ledger.sqlite")
            assert set(load.confirmed) <= set(found["event"])
            return set(load.answered) <= set(found["call"])

        await until(
            all_there,
            lambda: {
                kind: found.total() for kind, found in entries(folder / "ledger.sqlite").items()
            },
            what="all that was confirmed or answered is in the ledger",
        )

        def nothing_in_limbo() -> bool:
            queues = {queue["name"]: queue for queue in node.api.queues("/")}
            assert EVENT_QUEUE in queues
            for name in (EVENT_QUEUE, "rpc-ledger"):
                assert queues[name]["messages"] == 0, name
            assert f"{EVENT_QUEUE}.dead" not in queues
            return True

        await until(
            nothing_in_limbo,
            lambda: {queue["name"]: queue["messages"] for queue in node.api.queues("/")},
            what="nothing is left in a queue",
        )
        assert await asyncio.to_thread(fourth.stop) == 0
    finally:
        for process in fleet:
            process.__exit__(None, None, None)

    found = entries(folder / "ledger.sqlite")
    sent = set(load.confirmed) | set(load.unclear)
    assert set(found["event"]) <= sent
    twice = sum(count > 1 for count in found["event"].values())
    assert load.retries > 0  # the crashes were felt
    assert load.longest_failure_s < CALL_S + 2  # and no caller waited beyond its deadline
    # Only what was under way in a crash may come twice: two crashes and a restart, 32 prefetched each.
    assert twice <= 3 * 2 * 16
