"""Services and clients on a memory broker that is each test's own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from mycelia import Client, Middleware, Runner
from mycelia.amqp import Link, connect


class Serve(Protocol):
    """Starts services; they are stopped when the test ends."""

    def __call__(
        self,
        *services: type,
        config: dict[str, Any] | None = None,
        inbound: tuple[Middleware, ...] = (),
        outbound: tuple[Middleware, ...] = (),
    ) -> Awaitable[Runner]: ...


class Invoke(Protocol):
    """Calls a method of a service as a program that is no service."""

    def __call__(
        self, service: str, method: str, /, *args: Any, **options: Any
    ) -> Awaitable[Any]: ...


@pytest.fixture
def uri() -> str:
    return f"memory://{secrets.token_hex(6)}"


@pytest.fixture
async def serve(uri: str) -> AsyncIterator[Serve]:
    runners: list[Runner] = []

    async def start(
        *services: type,
        config: dict[str, Any] | None = None,
        inbound: tuple[Middleware, ...] = (),
        outbound: tuple[Middleware, ...] = (),
    ) -> Runner:
        settings = {"AMQP_URI": uri, **(config or {})}
        runner = Runner(settings, services, inbound=inbound, outbound=outbound)
        await runner.start(timeout=5)
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        await runner.stop(grace=0.2)


@pytest.fixture
async def client(uri: str) -> AsyncIterator[Client]:
    async with Client(uri, timeout=5, name="tester") as client:
        yield client


@pytest.fixture
def invoke(client: Client) -> Invoke:
    call: Callable[..., Awaitable[Any]] = client.call
    return call


@pytest.fixture
async def link(uri: str) -> AsyncIterator[Link]:
    """A bare link to the same broker, for messages that no client of ours would make."""
    link = connect(uri)
    await link.open(5)
    yield link
    await link.aclose()


@pytest.fixture
async def bare(broker: str) -> AsyncIterator[Link]:
    """A bare link to `broker`, in memory and RabbitMQ's."""
    link = connect(broker)
    await link.open(15)
    yield link
    await link.aclose()
