"""Savepoints of a flow in stages, while its processes are killed, and so is whoever takes them: each that is whole gives what a run without gives."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from tests.cli.commands import MYCELIA
from tests.flows.carriers import BY_CARRIER, LEFT, SERVICE, closing, flights, sql_counts
from tests.flows.counting import SERVICE as COUNTING
from tests.flows.counting import Tally
from tests.flows.test_killed_flows import SLOWLY
from tests.processes import Process, run

from mycelia import Client
from mycelia.errors import ConfigError
from mycelia.flow.reset import reset_flow
from mycelia.flow.savepoints import list_savepoints, read_savepoint
from mycelia.flow.state_home import state_home
from mycelia.testing import eventually

GROUP = "carriers.counted"
FLIGHTS = 20_000

DIES = """
import asyncio, os, signal, sys
from mycelia import Client
from mycelia.flow import savepoints, stage_savepoints
from mycelia.flow.state_home import state_home
from pathlib import Path

left = int(sys.argv[2])
home = state_home("state")

def counted(name, module):
    function = getattr(module, name)
    def called(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    setattr(module, name, called)

counted("_sync", savepoints)
counted("_as_written", stage_savepoints)

async def take():
    async with Client(sys.argv[3]) as client:
        await stage_savepoints.save_flow(client.link, home, "carriers.counted", Path(sys.argv[1]))

asyncio.run(take())
"""
"""Takes a savepoint, and is killed at its n-th step: a file that is synced, an entry that is taken up."""


async def start(folder: Path, processes: ExitStack) -> Process:
    command = (*MYCELIA, "run", "carriers", "--config", "config.yaml")
    process = processes.enter_context(Process(*command, cwd=folder))
    await asyncio.to_thread(process.wait_until_ready)
    return process


def given(tally: Tally) -> dict[tuple[str, int], set[tuple[int, int, int]]]:
    found: dict[tuple[str, int], set[tuple[int, int, int]]] = {}
    for record in tally.records:
        one = record.value
        sums = one.flights, one.delay, one.off
        found.setdefault((one.carrier, one.start_ms), set()).add(sums)
    return found


def taken(folder: Path, name: str, dies_at: int, uri: str) -> int:
    """The exit status of whoever takes a savepoint."""
    return run((sys.executable, "dies.py", name, str(dies_at), uri), folder, timeout=60).returncode


@pytest.fixture
def folder(tmp_path: Path, rabbit_uri: str) -> Path:
    (tmp_path / "tests" / "flows").mkdir(parents=True)
    (tmp_path / "tests" / "flows" / "counting.py").write_text(COUNTING.read_text())
    (tmp_path / "carriers.py").write_text(SERVICE.read_text() + SLOWLY)
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: {rabbit_uri}\nmycelia:\n  flows:\n    state: state\n"
    )
    return tmp_path


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_savepoints_amid_kills_give_the_figures_of_a_run_without(
    folder: Path, rabbit_uri: str
) -> None:
    chance = Random(8)
    left = flights(FLIGHTS)
    wanted = {place: {sums} for place, sums in sql_counts(left).items()}
    home = state_home(str(folder / "state"))

    ended = [asyncio.Event() for _ in range(6)]  # each attempt at a savepoint

    async def append(client: Client) -> None:
        """All of it, a part for each savepoint and one behind the last, so that each is taken amid it."""
        for begin in range(0, FLIGHTS, 40):
            part = begin * (len(ended) + 1) // FLIGHTS
            if part:
                await ended[part - 1].wait()
            await client.append_many(LEFT, left[begin : begin + 40])
            await asyncio.sleep(0.04)

    async with Client(rabbit_uri, timeout=20) as client:
        tally = Tally(client, BY_CARRIER)

        async def has(*places: tuple[str, int]) -> None:
            async def told() -> bool:
                await tally.read()
                return given(tally).keys() >= set(places)

            await eventually(told, 90)

        with ExitStack() as processes:
            running = [await start(folder, processes) for _ in range(2)]
            appending = asyncio.create_task(append(client))
            await eventually(lambda: tally.has(1), 60)  # the stage behind has begun
            for number in range(len(ended)):
                dies_at = 0 if number % 2 else chance.randrange(1, 12)
                taking = asyncio.create_task(
                    asyncio.to_thread(taken, folder, f"saved/{number}", dies_at, rabbit_uri)
                )
                if number == 3:
                    os.kill(running[0].pid, signal.SIGKILL)
                    running[0] = await start(folder, processes)
                assert await taking == (-signal.SIGKILL if dies_at else 0), (number, dies_at)
                ended[number].set()
            assert not appending.done()
            await appending
        for number in (0, 2, 4):
            with pytest.raises(ConfigError, match="is no savepoint"):
                read_savepoint(folder / "saved" / str(number))
        savepoints = list(list_savepoints(folder / "saved"))
        await client.append_many(LEFT, closing())
        for path, _ in savepoints:
            tally.records.clear()
            await reset_flow(client.link, home, GROUP, path)
            with ExitStack() as processes:
                await start(folder, processes)
                last = max(start for _, start in wanted)
                await has(*(place for place in wanted if place[1] == last))
            await tally.read()
            found = given(tally)
            assert found.items() <= wanted.items(), path
            begins = {carrier: min(s for c, s in found if c == carrier) for carrier, _ in found}
            assert begins.keys() == {carrier for carrier, _ in wanted}, path
            assert found.keys() == {one for one in wanted if one[1] >= begins[one[0]]}, path
        await tally.aclose()

    assert [path.name for path, _ in savepoints] == ["1", "3", "5"]
    assert sum(of.entries for _, one in savepoints for of in one.between) > 0
