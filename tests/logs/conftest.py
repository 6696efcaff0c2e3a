"""Links to a broker of the test's own: in memory, and RabbitMQ's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mycelia.amqp import Link, connect

LinkFactory = Callable[[], Awaitable[Link]]


@pytest.fixture
async def link_factory(broker: str) -> AsyncIterator[LinkFactory]:
    """Opens links to this test's broker, and closes them at its end."""
    links: list[Link] = []

    async def open_link() -> Link:
        link = connect(broker)
        links.append(link)
        await link.open(timeout=15)
        return link

    yield open_link
    for link in links:
        await link.aclose()


@pytest.fixture
async def link(link_factory: LinkFactory) -> Link:
    return await link_factory()
