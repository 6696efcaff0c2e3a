"""A ledger: each record counts once in what leaves a flow of two stages, through kills of workers and of the broker, and rebalances.

make test                                                       20,000 records, a worker and the broker killed, one more joins
MYCELIA_LEDGER_RECORDS=1000000 make test ARGS="tests/flows/test_ledger.py -m long"       with owners that stand still as well
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from tests.cli.commands import MYCELIA
from tests.flows.carriers import (
    BY_CARRIER,
    LEFT,
    SERVICE,
    Left,
    by_carrier,
    closing,
    flights,
    sql_counts,
)
from tests.flows.counting import Tally
from tests.processes import Process
from tests.progress import STALLED_S

from mycelia import Client
from mycelia.broker import PrivateNode
from mycelia.errors import LinkError

LONG = int(os.environ.get("MYCELIA_LEDGER_RECORDS", "100000"))


class Ledger:
    """Records on their way, the workers, and what is done to them."""

    def __init__(self, folder: Path, node: PrivateNode, left: list[Left], seed: int) -> None:
        (folder / "carriers.py").write_text(SERVICE.read_text())
        # The first stage is held up by the second again and again, whatever happens to either.
        (folder / "config.yaml").write_text(
            f"AMQP_URI: {node.uri()}\nHEARTBEAT: 5\nmycelia:\n  flows:\n    ahead_bytes: 60000\n"
        )
        self.node = node
        self.left = left
        self.processes = ExitStack()
        self.running: list[Process] = []
        self.appended = 0
        self.done: list[str] = []
        """Of what is done to them."""
        self.is_without_broker = False
        """Its start has a bound of its own; nothing goes on meanwhile."""
        self.chance = Random(seed)
        self._folder = folder
        self._is_done = asyncio.Semaphore(0)

    async def start(self) -> None:
        command = (*MYCELIA, "run", "carriers", "--config", "config.yaml")
        process = self.processes.enter_context(Process(*command, cwd=self._folder))
        self.running.append(process)
        await asyncio.to_thread(process.wait_until_ready)

    # --- what is done to them ----------------------------------------------------------------------

    async def kill_a_worker(self) -> None:
        """And start another."""
        victim = self.running.pop(self.chance.randrange(len(self.running)))
        os.kill(victim.pid, signal.SIGKILL)
        await self.start()

    async def kill_the_broker(self) -> None:
        self.is_without_broker = True
        await asyncio.to_thread(self.node.kill)
        await asyncio.to_thread(self.node.start, leash=True)
        self.is_without_broker = False

    async def let_one_join(self) -> None:
        await self.start()

    async def let_one_leave(self) -> None:
        leaving = self.running.pop(0)
        os.kill(leaving.pid, signal.SIGTERM)
        await asyncio.to_thread(leaving.wait_until, lambda _: False, 30.0)

    async def stop_a_worker_for_a_while(self) -> None:
        """Longer than its heartbeat is missed for: others have its partitions when it goes on where it was."""
        still = self.chance.choice(self.running)
        os.kill(still.pid, signal.SIGSTOP)
        await asyncio.sleep(15)
        os.kill(still.pid, signal.SIGCONT)

    # --- its run -----------------------------------------------------------------------------------

    async def append(self, client: Client, trouble: list[Callable[[], Awaitable[None]]]) -> None:
        """A share of the records before each trouble and another in its midst; the last that closes all windows when all is over."""
        shares = len(trouble) + 1
        share = 1
        for number, begin in enumerate(range(0, len(self.left), 100)):
            some = self.left[begin : begin + 100]
            if begin * shares // len(self.left) > share:
                share += 1
                await self._is_done.acquire()
            await client.append_many(LEFT, some)
            self.appended += len(some)
            if number % 10 == 0:
                await asyncio.sleep(0.02)  # so that they come while things happen, not all before
        await self._is_done.acquire()
        await client.append_many(LEFT, closing())
        self.appended += 1

    async def run(self, client: Client, tally: Tally, names: list[str]) -> None:
        trouble = [getattr(self, name) for name in names]
        appending = asyncio.ensure_future(self.append(client, trouble))
        watching = asyncio.ensure_future(self._watch(tally))
        try:
            for number, cause in enumerate(trouble):
                share = len(self.left) * (number + self.chance.random()) / (len(trouble) + 1)
                while self.appended < share:
                    await self._unless_over(watching, appending, asyncio.sleep(0.02))
                await self._unless_over(watching, appending, cause())
                self.done.append(names[number])
                self._is_done.release()
            await self._unless_over(watching, appending, appending)
            await watching
        finally:
            for task in (appending, watching):
                task.cancel()
            await asyncio.gather(appending, watching, return_exceptions=True)

    async def _unless_over(
        self,
        watching: asyncio.Future[None],
        appending: asyncio.Future[None],
        doing: Awaitable[None],
    ) -> None:
        """Do it, unless there is no progress any more, or nothing can be appended."""
        task = asyncio.ensure_future(doing)
        await asyncio.wait([task, watching], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        if watching.done():
            watching.result()
        if appending.done():
            appending.result()
        await task

    async def _watch(self, tally: Tally) -> None:
        """Until all results are there, or there is no progress."""
        loop = asyncio.get_running_loop()
        wanted = len(sql_counts(self.left))
        reached: object = None
        since = loop.time()
        while True:
            try:
                await tally.read()
            except LinkError:
                await asyncio.sleep(0.5)
            now = (len(tally.records), self.appended, len(self.done))
            if len(tally.records) >= wanted and self.appended > len(self.left):
                return
            if now != reached or self.is_without_broker:
                reached, since = now, loop.time()
            elif loop.time() - since > STALLED_S:
                output = "\n".join(process.output[-3000:] for process in self.running)
                raise AssertionError(
                    f"no progress for {STALLED_S:g} s: {len(tally.records)} of {wanted} results, {self.appended} of {len(self.left)} "
                    f"records appended, done: {self.done}\n{output}"
                )
            await asyncio.sleep(0.05)


async def check(
    folder: Path, node: PrivateNode, records: int, trouble: list[str], seed: int
) -> None:
    left = flights(records, seed)
    ledger = Ledger(folder, node, left, seed)
    with ledger.processes:
        await asyncio.gather(ledger.start(), ledger.start())
        async with Client(node.uri(), timeout=30, config={"HEARTBEAT": 5}) as client:
            tally = Tally(client, BY_CARRIER)
            await ledger.run(client, tally, trouble)
            await tally.aclose()

    assert ledger.done == trouble
    wanted = sql_counts(left)
    found = by_carrier(tally)
    assert {place: one for place, one in found.items() if wanted.get(place) != one} == {}
    assert found == wanted, "nothing is missing"
    assert len(tally.records) == len(wanted), "nothing is there twice for who reads the log"


@pytest.mark.timeout(300)  # it ends for lack of progress, long before
async def test_every_record_counts_once_through_kills_and_a_rebalance(
    tmp_path: Path, own_rabbit_node: PrivateNode
) -> None:
    trouble = ["kill_a_worker", "let_one_join", "kill_the_broker"]
    await check(tmp_path, own_rabbit_node, 20_000, trouble, seed=3)


@pytest.mark.long
@pytest.mark.timeout(7200)  # as above
async def test_every_record_counts_once_through_all_kinds_of_trouble(
    tmp_path: Path, own_rabbit_node: PrivateNode
) -> None:
    trouble = [
        "kill_a_worker",
        "stop_a_worker_for_a_while",
        "kill_the_broker",
        "let_one_join",
        "kill_a_worker",
        "kill_a_worker",
        "let_one_leave",
        "kill_the_broker",
        "stop_a_worker_for_a_while",
        "kill_a_worker",
    ]
    await check(tmp_path, own_rabbit_node, LONG, trouble, seed=5)
