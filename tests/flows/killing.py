"""What is appended and awaited while the processes that count are killed."""

from __future__ import annotations

import asyncio

from tests.flows.counting import Departed, Tally, append, sentinels
from tests.processes import Process

from mycelia import Client
from mycelia.testing import eventually

__all__ = ["all_counted", "append_between_kills"]


async def append_between_kills(
    client: Client, flights: list[Departed], kills: int, killed: asyncio.Semaphore, pause: float
) -> None:
    """A share before each of the kills, slowly, so that they come in the middle; the rest after the last.

    Args:
        killed: is released by each kill.
        pause: seconds between two batches of 100.
    """
    share = len(flights) // (kills + 1) // 100 * 100
    for begin in range(0, len(flights), 100):
        if begin and begin % share == 0:
            await killed.acquire()
        await append(client, flights[begin : begin + 100])
        await asyncio.sleep(pause)
    await append(client, sentinels())


async def all_counted(tally: Tally, wanted: int, *processes: Process) -> None:
    """Wait for so many results; what the processes have said last is part of the error."""
    try:
        await eventually(lambda: tally.has(wanted), 120)
    except AssertionError as exc:
        output = "\n".join(process.output[-4000:] for process in processes)
        raise AssertionError(f"{exc}\n{output}") from None
