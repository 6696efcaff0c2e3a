"""Test whole services on a broker inside the test's own process.

    async def test_greeting():
        async with run_services(Hello) as bed:
            assert await bed.client.call("hello", "greet", "Ada") == "Hello, Ada!"

Nothing is patched and nothing is simulated but the broker itself, and `memory://` passes the same suite as RabbitMQ
does; give `broker=` to run the same test on a real one.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mycelia.call import MiddlewareSource
from mycelia.clients import Client
from mycelia.runtime import Container, Runner

__all__ = ["ServiceBed", "run_services", "running"]

_beds = itertools.count(1)

running: weakref.WeakSet[Runner] = weakref.WeakSet()
"""Of the beds that are open: whose threads a driven clock waits for."""


class ServiceBed:
    """Running services, and a client to talk to them.

    Attributes:
        client: an open `Client` on the same broker.
        runner: what runs the services.
        broker: the broker's URI, for more clients.
    """

    def __init__(self, runner: Runner, client: Client, broker: str) -> None:
        self.runner = runner
        self.client = client
        self.broker = broker

    def container(self, service_cls: type) -> Container:
        """The container of a service: its extensions, its statistics."""
        return self.runner.container_of(service_cls)


@asynccontextmanager
async def run_services(
    *services: type,
    config: Mapping[str, Any] | None = None,
    broker: str | None = None,
    timeout: float = 5.0,
    middleware: Iterable[MiddlewareSource] = (),
    prepare: Callable[[ServiceBed], object] | None = None,
) -> AsyncIterator[ServiceBed]:
    """Run services for the length of a test.

    Args:
        services: the service classes.
        config: further configuration.
        broker: a broker's URI; by default an empty `memory://` broker that no other test sees.
        timeout: seconds for the start, and for each call of the bed's client.
        middleware: sources of middleware around the services' calls, as `Runner` takes them; `faults` is one.
        prepare: called with the bed before anything starts: `replace_dependencies()` and `restrict_entrypoints()` belong
            here. The client is not open yet.
    """
    uri = broker or f"memory://bed-{next(_beds)}"
    runner = Runner({**(config or {}), "AMQP_URI": uri}, services, middleware=middleware)
    client = Client(uri, timeout=timeout, config=config)
    bed = ServiceBed(runner, client, uri)
    if prepare is not None:
        prepare(bed)
    await runner.start(timeout)
    running.add(runner)
    try:
        async with client:
            yield bed
    finally:
        running.discard(runner)
        await runner.stop()
