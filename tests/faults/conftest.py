"""A link whose way to the broker can be broken, and another whose way cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from mycelia.amqp import LinkOptions, Queue
from mycelia.amqp.rabbit.link import RabbitLink
from mycelia.testing import Fault, TcpProxy

QUEUE = Queue("work", arguments={"x-queue-type": "quorum"})

HEARTBEAT_S = 2
"""Asked of both ends. RabbitMQ notices a silent peer after two of them, we after one and a half."""

NOTICED_S = 15.0
"""By then every fault has been noticed and, once healed, a new connection stands."""


@pytest.fixture
async def proxy(rabbit_uri: str) -> AsyncIterator[TcpProxy]:
    parts = urlsplit(rabbit_uri)
    assert parts.hostname is not None
    assert parts.port is not None
    async with TcpProxy(parts.hostname, parts.port, timeout_s=0.3) as proxy:
        yield proxy


@pytest.fixture
async def link(proxy: TcpProxy, rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    """Open, through the proxy."""
    link = RabbitLink(
        proxy.uri(rabbit_uri),
        LinkOptions(heartbeat=HEARTBEAT_S, connect_timeout=1.0, name="proxied"),
    )
    await link.open(timeout=15)
    await link.declare(QUEUE)
    yield link
    await link.aclose(timeout=1)


@pytest.fixture
async def direct(rabbit_uri: str) -> AsyncIterator[RabbitLink]:
    """Open, and not through the proxy: the witness."""
    link = RabbitLink(rabbit_uri, LinkOptions(name="direct"))
    await link.open(timeout=15)
    await link.declare(QUEUE)
    yield link
    await link.aclose()


FAULTS = [fault for fault in Fault if fault is not Fault.NONE]


def _id(fault: Fault) -> str:
    return fault.value.replace(" ", "-")


@pytest.fixture(params=FAULTS, ids=_id)
def fault(request: pytest.FixtureRequest) -> Fault:
    """Every way the network fails, in turn."""
    chosen: Fault = request.param
    return chosen


@pytest.fixture(params=[one for one in FAULTS if one is not Fault.UPSTREAM_STALL], ids=_id)
def cutting_fault(request: pytest.FixtureRequest) -> Fault:
    """Every way the network fails that costs each connection its life; a stall may end before anyone gives up."""
    chosen: Fault = request.param
    return chosen
