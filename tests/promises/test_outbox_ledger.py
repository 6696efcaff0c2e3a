"""A ledger over outbox and inbox, kept by real processes that are killed at random moments: none lost, none twice.

Orders come, some of them twice; each is a payment, whose event is an entry in the ledger. Who writes these is killed again and
again, in the long form the broker and PostgreSQL too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from tests.postgres import PrivatePostgres, fresh_database
from tests.progress import until
from tests.transactions.fleet import Fleet

from mycelia import Client
from mycelia.broker.node import PrivateNode

SERVICES = (("Bank",), ("Bank", "Ledger"), ("Ledger",))


async def order(client: Client, count: int, allowed: asyncio.Semaphore) -> None:
    """Publish the orders as they are allowed, so that there are some left at each kill; every fifth of them twice."""
    for number in range(count):
        await allowed.acquire()
        for _ in range(2 if number % 5 == 0 else 1):
            await client.publish(
                "shop", "ordered", number, message_id=f"order-{number}", mandatory=True, timeout=60
            )


async def run_ledger(
    fleet: Fleet, uri: str, orders: int, kills: int, disturb: Callable[[int], None] | None = None
) -> None:
    chance = Random(8)
    running = [await fleet.start(*services, SLOWLY="1") for services in SERVICES]
    share = orders // kills
    allowed = asyncio.Semaphore(2 * share)
    async with Client(uri, timeout=60) as client:
        ordering = asyncio.ensure_future(order(client, orders, allowed))
        for kill in range(kills):
            wanted = (kill + 1) * orders // (kills + 2)
            await until(
                lambda wanted=wanted: fleet.reached()[1] >= wanted,  # type: ignore[misc]
                fleet.reached,
                what=f"{wanted} are entered",
                interval=0.02,
            )
            await asyncio.sleep(chance.random() * 0.2)
            victim = kill % len(SERVICES)
            os.kill(running[victim].pid, signal.SIGKILL)
            if disturb is not None:
                await asyncio.to_thread(disturb, kill)
            for _ in range(share):
                allowed.release()
            running[victim] = await fleet.start(*SERVICES[victim], SLOWLY="1")
        await ordering
        await fleet.settled(orders)

    once = Counter(range(orders))
    assert fleet.counts("payments") == once
    assert fleet.counts("entries") == once
    assert set(fleet.arrivals()) == set(once)


@pytest.mark.timeout(300)  # it ends for lack of progress, long before
async def test_every_payment_is_entered_once_though_services_are_killed(
    rabbit_uri: str, tmp_path: Path
) -> None:
    with ExitStack() as processes:
        fleet = Fleet(tmp_path, rabbit_uri, f"sqlite:///{tmp_path / 'bank.db'}", processes)
        await run_ledger(fleet, rabbit_uri, orders=150, kills=2)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, PrivatePostgres | None]]:
    """The URL of a database, and its server where it has one that may be killed."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bank.db'}", None
        return
    server: PrivatePostgres = request.getfixturevalue("own_postgres")
    with fresh_database(server) as uri:
        yield uri.replace("://", "+psycopg://"), server


@pytest.mark.long
@pytest.mark.settling
@pytest.mark.timeout(900)  # it ends for lack of progress, long before
async def test_every_payment_is_entered_once_though_broker_and_database_are_killed_too(
    database: tuple[str, PrivatePostgres | None], own_rabbit_node: PrivateNode, tmp_path: Path
) -> None:
    url, server = database
    uri = own_rabbit_node.uri()

    def disturb(kill: int) -> None:
        if kill % 5 == 2:
            own_rabbit_node.kill()
            own_rabbit_node.start(leash=True)
        if kill % 5 == 4 and server is not None:
            server.kill()
            server.start()

    with ExitStack() as processes:
        fleet = Fleet(tmp_path, uri, url, processes)
        await run_ledger(fleet, uri, orders=2000, kills=10, disturb=disturb)
