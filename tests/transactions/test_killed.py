"""What a process that is killed has committed leaves all the same, and is handled once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.transactions.fleet import Fleet

from mycelia import Client


@pytest.mark.parametrize(
    ("url", "place", "arrives"),
    [
        ("sqlite", "confirmed", 2),
        pytest.param("sqlite", "claimed", 1, marks=pytest.mark.long),
        pytest.param("postgresql", "confirmed", 2, marks=pytest.mark.long),
        pytest.param("postgresql", "claimed", 1, marks=pytest.mark.long),
    ],
    indirect=["url"],
)
async def test_event_of_a_process_killed_between_commit_and_its_end_is_handled_once(
    place: str, arrives: int, rabbit_uri: str, url: str, tmp_path: Path
) -> None:
    """Killed before it has published it comes once; killed between the confirm and the row's end it comes twice."""
    with ExitStack() as processes:
        fleet = Fleet(tmp_path, rabbit_uri, url, processes)
        await fleet.start("Ledger")
        doomed = await fleet.start("Bank", KILL_AT=place)
        async with Client(rabbit_uri, timeout=20) as client:
            await client.publish("shop", "ordered", 7, mandatory=True)
            assert await asyncio.to_thread(doomed.finish) == -signal.SIGKILL
        assert fleet.counts("payments") == {7: 1}
        assert fleet.left() == 1

        await fleet.start("Bank", KILL_AT=place)
        await fleet.settled(1)

        assert fleet.counts("entries") == {7: 1}
        assert fleet.arrivals() == [7] * arrives
