"""Every test here runs twice: against the memory broker, and against real RabbitMQ, which is the judge."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.links import opening_links

from mycelia.amqp import Link, Queue, connect
from mycelia.amqp.memory.link import MemoryLink
from mycelia.broker.management_api import ManagementApi
from mycelia.broker.node import find_rabbitmq
from mycelia.testing.eventually import eventually

LinkFactory = Callable[[], Awaitable[Link]]


_RABBIT = find_rabbitmq()


@pytest.fixture(
    params=[
        "memory",
        pytest.param(
            "rabbit",
            marks=pytest.mark.rabbit,
            id=f"rabbit-{_RABBIT.version if _RABBIT else 'absent'}",
        ),
    ]
)
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def make_link(broker_kind: str, request: pytest.FixtureRequest) -> Callable[..., Link]:
    """Makes links, not yet open, to one broker that is this test's own."""
    if broker_kind == "memory":
        uri = f"memory://{secrets.token_hex(6)}"
    else:
        uri = request.getfixturevalue("rabbit_uri")
    return lambda *options: connect(uri, *options)


@pytest.fixture
def broker_version(broker_kind: str, request: pytest.FixtureRequest) -> tuple[int, ...]:
    """The version by whose rules the broker goes; the memory broker keeps those of 3.10."""
    if broker_kind == "memory":
        return (3, 10)
    version: tuple[int, ...] = request.getfixturevalue("rabbit_version")
    return version


@pytest.fixture
def cut(request: pytest.FixtureRequest, link: Link) -> Callable[[], Awaitable[None]]:
    """Cuts every connection to this test's broker, from the broker's side, and returns when the link has noticed."""

    async def cut_connections() -> None:
        noticed = asyncio.Event()
        remove = link.on_state_change(lambda state: noticed.set())
        if isinstance(link, MemoryLink):
            link.broker.drop_connections()
        else:
            api: ManagementApi = request.getfixturevalue("rabbit_api")
            vhost: str = request.getfixturevalue("rabbit_vhost")

            def has_cut() -> bool:
                return api.close_connections(vhost) > 0

            # The broker lists a connection some time after it was opened.
            await eventually(lambda: asyncio.to_thread(has_cut), 30, interval=0.1)
        async with asyncio.timeout(10):
            await noticed.wait()
        remove()

    return cut_connections


@pytest.fixture
async def link_factory(make_link: Callable[[], Link]) -> AsyncIterator[LinkFactory]:
    """Opens links to this test's broker, and closes them at its end."""
    async with opening_links(make_link) as open_link:
        yield open_link


@pytest.fixture
async def link(link_factory: LinkFactory) -> Link:
    return await link_factory()


@pytest.fixture
def ready_count(link: Link) -> Callable[[str, int], Awaitable[None]]:
    """Waits until so many messages are ready in a queue."""

    async def wait(queue: str, count: int) -> None:
        async def matches() -> bool:
            return await link.message_count(queue) == count

        await eventually(matches, 30, what=f"{count} messages ready in {queue}")

    return wait


QUORUM = {"x-queue-type": "quorum"}
CLASSIC = {"x-queue-type": "classic"}
STREAM = {"x-queue-type": "stream"}


@pytest.fixture
async def queue(link: Link) -> str:
    """A durable quorum queue, as the platform declares them."""
    await link.declare(Queue("work", arguments=QUORUM))
    return "work"


@pytest.fixture(params=["classic", "quorum"])
async def any_queue(request: pytest.FixtureRequest, link: Link) -> str:
    """A durable queue, once of each type that settles messages."""
    name = f"work-{request.param}"
    await link.declare(Queue(name, arguments={"x-queue-type": request.param}))
    return name
