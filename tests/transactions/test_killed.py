"""What a process that is killed has committed leaves all the same, and is handled once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest
from tests.progress import until
from tests.transactions.fleet import Fleet

from mycelia import Client, Log
from mycelia.errors import CallError
from mycelia.logs import partition_of

BOOKED: Log[int] = Log("booked", of=int, partitions=2)
"""As `killed_services` has it."""


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


@pytest.mark.parametrize(
    ("url", "place", "again"),
    [
        ("sqlite", "confirmed", 1),
        pytest.param("sqlite", "claimed", 0, marks=pytest.mark.long),
        pytest.param("postgresql", "confirmed", 1, marks=pytest.mark.long),
        pytest.param("postgresql", "claimed", 0, marks=pytest.mark.long),
    ],
    indirect=["url"],
)
async def test_record_of_a_process_killed_between_commit_and_its_end_is_read_once(
    place: str, again: int, rabbit_uri: str, url: str, tmp_path: Path
) -> None:
    """Killed between the confirm and the row's end it is in the log twice, with one number."""
    with ExitStack() as processes:
        fleet = Fleet(tmp_path, rabbit_uri, url, processes)
        doomed = await fleet.start("Journal", KILL_AT=place)
        async with Client(rabbit_uri, timeout=20) as client:
            calling = asyncio.ensure_future(client.call("journal", "book", 7))
            assert await asyncio.to_thread(doomed.finish) == -signal.SIGKILL
            assert fleet.counts("payments") == {7: 1}
            assert fleet.left() == 1
            await fleet.start("Journal", KILL_AT=place)
            await asyncio.wait([calling])
            calling.exception()  # its answer may have died with the process
            await until(lambda: fleet.left() == 0, fleet.left, what="it is appended")
            async with BOOKED.reader(client.link, partition_of("account-2", 2)) as reader:
                entry = await reader.take(20)
                assert entry is not None
                assert entry.values == [7]
                assert await reader.take(1) is None
                assert reader.statistics().repeated == again


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_records_are_in_the_log_once_and_in_order_though_who_appends_is_killed(
    rabbit_uri: str, tmp_path: Path
) -> None:
    """Numbers are booked one after the other, so that their order is that of the commits; two processes append them."""
    chance, count, kills = Random(4), 200, 4
    share, killed = count // (kills + 1), asyncio.Semaphore(0)
    with ExitStack() as processes:
        fleet = Fleet(tmp_path, rabbit_uri, f"sqlite:///{tmp_path / 'bank.db'}", processes)
        running = [await fleet.start("Journal", SLOWLY="1") for _ in range(2)]
        async with Client(rabbit_uri, timeout=5) as client:

            async def book(number: int) -> None:
                while number not in fleet.counts("payments"):
                    with suppress(CallError):  # who had it was killed
                        await client.call("journal", "book", number)

            async def killing() -> None:
                for kill in range(kills):
                    wanted = (kill + 1) * share - share // 2
                    await until(
                        lambda wanted=wanted: fleet.counts("payments").total() >= wanted,  # type: ignore[misc]
                        fleet.reached,
                        what=f"{wanted} are booked",
                    )
                    await asyncio.sleep(chance.random() * 0.3)
                    os.kill(running[kill % 2].pid, signal.SIGKILL)
                    killed.release()
                    running[kill % 2] = await fleet.start("Journal", SLOWLY="1")

            ends = asyncio.ensure_future(killing())
            for number in range(count):
                if number and number % share == 0:  # some are left for each of the kills
                    await killed.acquire()
                await book(number)
            await ends
            await until(lambda: fleet.left() == 0, fleet.left, what="all are appended")
            found: list[int] = []
            for partition in range(BOOKED.partitions):
                async with BOOKED.reader(client.link, partition) as reader:
                    while (entry := await reader.take(2)) is not None:
                        found += entry.values

    assert fleet.counts("payments") == Counter(range(count))
    assert sorted(found) == list(range(count))
    for account in range(5):
        of_account = [one for one in found if one % 5 == account]
        assert of_account == sorted(of_account)
