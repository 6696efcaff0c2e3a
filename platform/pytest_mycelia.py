"""The pytest plugin: fixtures for a broker, a link, a client, running services, dead letters, faults and a driven clock.

It stands outside of the package `mycelia`, because pytest imports every installed plugin in every run: what does not use it
pays for these few lines and nothing else. The package is imported by the first fixture that is asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

import pytest

BROKERS = "memory (the default), rabbitmq (a private node, for the length of the run), or the URI of a broker"
NO_ASYNCIO = (
    'the fixture "{name}" needs pytest-asyncio, which is not installed or switched off: '
    "pip install 'mycelia[testing]', and no `-p no:asyncio`"
)
DRIVEN_IN_MEMORY = "mycelia_clock moves this process's time; RabbitMQ has its own. This test runs on memory:// only"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mycelia")
    group.addoption(
        "--mycelia-broker", metavar="BROKER", help=f"what mycelia_broker gives: {BROKERS}"
    )
    parser.addini("mycelia_broker", f"what mycelia_broker gives: {BROKERS}", default="memory")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("asyncio"):
        from pytest_asyncio import fixture  # imported by itself already

        fixtures = _async_fixtures(fixture)
    else:
        fixtures = _fixtures_that_say_what_is_missing()
    config.pluginmanager.register(fixtures, "mycelia-async-fixtures")


def _broker_of(config: pytest.Config) -> str:
    chosen: str = config.getoption("--mycelia-broker") or config.getini("mycelia_broker")
    if chosen in ("memory", "rabbitmq") or "://" in chosen:
        return chosen
    raise pytest.UsageError(f"mycelia_broker: {chosen!r}: expected {BROKERS}.")


@pytest.fixture(scope="session")
def mycelia_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A private RabbitMQ node (`mycelia.testing.PrivateNode`) that runs for the length of the run; started when first asked for."""
    from mycelia.broker.node import find_rabbitmq
    from mycelia.testing import PrivateNode

    if find_rabbitmq() is None:
        pytest.fail(
            "no rabbitmq-server on this machine: `mycelia broker install`, or --mycelia-broker=amqp://… for a running one",
            pytrace=False,
        )
    node = PrivateNode(tmp_path_factory.mktemp("mycelia-rabbitmq"))
    node.start(leash=True)
    yield node
    node.remove()


@pytest.fixture
def mycelia_broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URI of a broker for this test alone: `memory://`, or a virtual host of a private RabbitMQ (`--mycelia-broker`).

    A broker that is given by its URI is used as it is, by all tests.
    """
    chosen = _broker_of(request.config)
    if chosen == "memory":
        yield f"memory://test-{secrets.token_hex(6)}"
    elif chosen == "rabbitmq":
        node = request.getfixturevalue("mycelia_rabbitmq")
        vhost = f"test-{secrets.token_hex(6)}"
        node.create_vhost(vhost)
        yield node.uri(vhost)
        node.delete_vhost(vhost)
    else:
        yield chosen


@pytest.fixture
def mycelia_clock(mycelia_broker: str) -> Iterator[Any]:
    """A `mycelia.testing.DrivenClock` that is open: `await mycelia_clock.advance("5m")`. On `memory://` only; else skipped."""
    if not mycelia_broker.startswith("memory:"):
        pytest.skip(DRIVEN_IN_MEMORY)
    from mycelia.testing import DrivenClock

    with DrivenClock() as clock:
        yield clock


@pytest.fixture
def mycelia_faults() -> Iterator[Any]:
    """`mycelia.testing.faults`, around all that `run_service` and `mycelia_client` do; what is left open ends with the test."""
    from mycelia.testing import faults

    yield faults
    faults.clear()


def _clock_first(request: pytest.FixtureRequest) -> None:
    """A driven clock is open before anything runs by it, and until that has stopped."""
    if "mycelia_clock" in request.fixturenames:
        request.getfixturevalue("mycelia_clock")


def _async_fixtures(fixture: Callable[..., Any]) -> Any:
    """The fixtures that await something, made by pytest-asyncio's own decorator: it knows them in each of its modes."""

    @fixture
    async def mycelia_link(
        request: pytest.FixtureRequest, mycelia_broker: str
    ) -> AsyncIterator[Any]:
        """An open link to `mycelia_broker`."""
        from mycelia.amqp import connect

        _clock_first(request)
        link = connect(mycelia_broker)
        await link.open(10)
        yield link
        await link.aclose()

    @fixture
    async def mycelia_client(
        request: pytest.FixtureRequest, mycelia_broker: str
    ) -> AsyncIterator[Any]:
        """An open `mycelia.Client` on `mycelia_broker`; calls have 10 seconds."""
        from mycelia import Client
        from mycelia.testing import faults

        _clock_first(request)
        async with Client(mycelia_broker, timeout=10, middleware=[faults]) as client:
            yield client

    @fixture
    async def run_service(
        request: pytest.FixtureRequest, mycelia_broker: str
    ) -> AsyncIterator[Any]:
        """Runs services until the test ends: `bed = await run_service(Orders, Stock, config={…}, prepare=…)`.

        As `mycelia.testing.run_services`, on `mycelia_broker` and with `faults` around; `replace={"stock": fake}` and
        `entrypoints=["order"]` prepare the first of the services.
        """
        from mycelia.testing import (
            faults,
            replace_dependencies,
            restrict_entrypoints,
            run_services,
        )

        _clock_first(request)
        async with AsyncExitStack() as stack:

            async def run(
                *services: type,
                replace: dict[str, Any] | None = None,
                entrypoints: list[str] | None = None,
                prepare: Callable[[Any], object] | None = None,
                middleware: Any = (),
                **options: Any,
            ) -> Any:
                def prepared(bed: Any) -> None:
                    container = bed.container(services[0])
                    if entrypoints is not None:
                        restrict_entrypoints(container, *entrypoints)
                    if replace:
                        replace_dependencies(container, **replace)
                    if prepare is not None:
                        prepare(bed)

                options.setdefault("broker", mycelia_broker)
                running = run_services(
                    *services, prepare=prepared, middleware=[faults, *middleware], **options
                )
                return await stack.enter_async_context(running)

            yield run
        faults.clear()

    @fixture
    async def dead_letters(mycelia_link: Any) -> Any:
        """Takes dead letters out: `(letter,) = await dead_letters("invoices.taken")`.

        As `mycelia.testing.take_dead_letters`: by `service.method` or queue, `count=1`, `timeout=5.0`.
        """
        from functools import partial

        from mycelia.testing import take_dead_letters

        return partial(take_dead_letters, mycelia_link)

    return _plugin_of(
        mycelia_link=mycelia_link,
        mycelia_client=mycelia_client,
        run_service=run_service,
        dead_letters=dead_letters,
    )


def _fixtures_that_say_what_is_missing() -> Any:
    def missing(name: str) -> Any:
        @pytest.fixture(name=name)
        def fixture() -> None:
            pytest.fail(NO_ASYNCIO.format(name=name), pytrace=False)

        return fixture

    names = ("mycelia_link", "mycelia_client", "run_service", "dead_letters")
    return _plugin_of(**{name: missing(name) for name in names})


def _plugin_of(**fixtures: Any) -> ModuleType:
    """A module that has these, as pytest looks for fixtures in modules."""
    module = ModuleType("mycelia_async_fixtures")
    vars(module).update(fixtures)
    return module
