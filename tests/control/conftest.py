"""A link to each kind of broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mycelia.amqp import Link, connect


@pytest.fixture
async def link(broker: str) -> AsyncIterator[Link]:
    link = connect(broker)
    await link.open(30)
    yield link
    await link.aclose()
