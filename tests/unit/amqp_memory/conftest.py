"""A memory broker whose time stands still until the test moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mycelia.amqp.memory.broker import MemoryBroker
from mycelia.amqp.memory.clock import ManualClock
from mycelia.amqp.memory.link import MemoryLink

LinkFactory = Callable[[], Awaitable[MemoryLink]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker(clock: ManualClock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest.fixture
async def link_factory(broker: MemoryBroker) -> AsyncIterator[LinkFactory]:
    links: list[MemoryLink] = []

    async def open_link() -> MemoryLink:
        link = MemoryLink(broker=broker)
        links.append(link)
        await link.open(timeout=1)
        return link

    yield open_link
    for link in links:
        await link.aclose()


@pytest.fixture
async def link(link_factory: LinkFactory) -> MemoryLink:
    return await link_factory()
