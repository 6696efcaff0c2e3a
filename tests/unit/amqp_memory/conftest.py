"""A memory broker whose time stands still until the test moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.links import opening_links

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
    async with opening_links(lambda: MemoryLink(broker=broker)) as open_link:
        yield open_link


@pytest.fixture
async def link(link_factory: LinkFactory) -> MemoryLink:
    return await link_factory()
