"""Links to a broker of the test's own: in memory, and RabbitMQ's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.links import opening_links

from mycelia.amqp import Link, connect

LinkFactory = Callable[[], Awaitable[Link]]


@pytest.fixture
async def link_factory(broker: str) -> AsyncIterator[LinkFactory]:
    """Opens links to this test's broker, and closes them at its end."""
    async with opening_links(lambda: connect(broker)) as open_link:
        yield open_link


@pytest.fixture
async def link(link_factory: LinkFactory) -> Link:
    return await link_factory()
