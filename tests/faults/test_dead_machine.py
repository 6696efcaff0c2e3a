"""A broker whose machine dies without closing its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from tests.faults.dead_machine import CannotBuild, DeadMachine, machine
from tests.tools import not_run

from mycelia.amqp import LinkOptions, LinkState, Message, Properties, Queue
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.testing import eventually


@pytest.fixture
async def dying(rabbit_uri: str) -> AsyncIterator[DeadMachine]:
    try:
        async with machine(urlsplit(rabbit_uri).port or 5672) as found:
            yield found
    except CannotBuild as exc:
        not_run(f"a machine that dies needs root and network namespaces ({exc})")


@pytest.fixture
async def link(dying: DeadMachine, rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    """To the dying machine first, then to one that lives; with Nameko's heartbeat."""
    port = urlsplit(rabbit_uri).port
    first = rabbit_uri.replace(f"127.0.0.1:{port}", f"{dying.address}:{dying.port}")
    link = RabbitLink(f"{first};{rabbit_uri}", LinkOptions(heartbeat=60))
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    yield link
    await link.aclose(timeout=1)


async def test_machine_that_dies_while_nothing_is_sent_is_noticed_within_five_seconds(
    link: RabbitLink, dying: DeadMachine
) -> None:
    loop = asyncio.get_running_loop()

    await dying.die()
    died_at = loop.time()
    await eventually(lambda: link.state is LinkState.RECONNECTING, 30, interval=0.02)

    assert loop.time() - died_at < 5.0


async def test_publishing_goes_on_elsewhere_within_six_seconds(
    link: RabbitLink, dying: DeadMachine
) -> None:
    """Confirmed publishings on their way are not lost, and the next broker is asked first."""
    loop = asyncio.get_running_loop()
    slowest = 0.0
    stop = asyncio.Event()
    confirmed = 0

    async def publish_on() -> None:
        nonlocal slowest, confirmed
        while not stop.is_set():
            started = loop.time()
            await link.publish(Message("", "q", b"", Properties()), timeout=20)
            slowest = max(slowest, loop.time() - started)
            confirmed += 1
            await asyncio.sleep(0.01)

    publishers = [asyncio.ensure_future(publish_on()) for _ in range(10)]
    await eventually(lambda: confirmed > 100, 30)
    await dying.die()
    await eventually(lambda: link.statistics().reconnects == 1, 30)
    before = confirmed
    await eventually(lambda: confirmed > before + 100, 30)
    stop.set()
    await asyncio.gather(*publishers)

    assert slowest < 6.0
