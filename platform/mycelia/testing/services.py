"""Test services: one worker by itself, or whole services on a broker inside the test's own process.

    async def test_greeting():
        async with run_services(Hello) as bed:
            assert await bed.client.call("hello", "greet", "Ada") == "Hello, Ada!"

    def test_greeting_alone():
        assert make_worker(Hello, emit=lambda *_: None).greet("Ada") == "Hello, Ada!"

Nothing is patched and nothing is simulated but the broker itself, and `memory://` passes the same suite as RabbitMQ
does; give `broker=` to run the same test on a real one.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from mycelia.clients import Client
from mycelia.errors import ConfigError
from mycelia.runtime import Container, DependencyProvider, Runner

__all__ = ["ServiceBed", "make_worker", "run_services"]

Service = TypeVar("Service")

_beds = itertools.count(1)


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
) -> AsyncIterator[ServiceBed]:
    """Run services for the length of a test.

    Args:
        services: the service classes.
        config: further configuration.
        broker: a broker's URI; by default an empty `memory://` broker that no other test sees.
        timeout: seconds for the start, and for each call of the bed's client.
    """
    uri = broker or f"memory://bed-{next(_beds)}"
    runner = Runner({**(config or {}), "AMQP_URI": uri}, services)
    await runner.start(timeout)
    try:
        async with Client(uri, timeout=timeout, config=config) as client:
            yield ServiceBed(runner, client, uri)
    finally:
        await runner.stop()


class _NotGiven:
    """Stands where a dependency was not given; says so when it is used."""

    def __init__(self, service: str, name: str) -> None:
        self.__dict__["_where"] = (service, name)

    def _fail(self) -> NoReturn:
        service, name = self.__dict__["_where"]
        raise ConfigError(
            f"{service}.{name} was used, but make_worker() was not given one: make_worker({service}, {name}=…)"
        )

    def __getattr__(self, name: str) -> Any:
        self._fail()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._fail()


def make_worker(service_cls: type[Service], **dependencies: Any) -> Service:
    """An instance of a service as a worker sees it, with `dependencies` in place of what would be injected.

    Raises:
        ConfigError: the service has no such dependency.
    """
    worker = service_cls()
    declared = {
        name
        for name in dir(service_cls)
        if isinstance(getattr(service_cls, name), DependencyProvider)
    }
    unknown = dependencies.keys() - declared
    if unknown:
        raise ConfigError(
            f"{service_cls.__name__} has no dependency {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(declared)) or 'none'}."
        )
    for name in declared:
        value = dependencies.get(name, _NotGiven(service_cls.__name__, name))
        worker.__dict__[name] = value
    return worker
