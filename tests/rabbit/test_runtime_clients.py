"""`BlockingClient` against services on a real broker: shared by threads, over reconnects, closed under its users."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mycelia import BlockingClient, Client, Runner, event_handler, rpc
from mycelia.broker.management_api import ManagementApi
from mycelia.errors import (
    BrokerUnavailable,
    MyceliaError,
    RpcTimeout,
    RuntimeStateError,
    UnknownService,
)


class Service:
    name = "service"
    begun = threading.Semaphore(0)
    heard = threading.Semaphore(0)

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @rpc
    async def never(self) -> None:
        self.begun.release()
        await asyncio.Event().wait()

    @event_handler("tower", "closed")
    def closed(self, payload: Any) -> None:
        self.heard.release()


@pytest.fixture
def service(rabbit_uri: str) -> Iterator[None]:
    """The service, on an event loop in a thread."""
    ready = threading.Event()
    stops: list[Any] = []

    async def serve() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(done.set))
        async with Runner({"AMQP_URI": rabbit_uri, "mycelia": {"grace": 0.1}}, [Service]):
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    yield
    stops[0]()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def client(rabbit_uri: str, service: None) -> Iterator[BlockingClient]:
    with BlockingClient(rabbit_uri, timeout=20) as client:
        yield client


def test_client_is_shared_among_threads(client: BlockingClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: client.call("service", "echo", n), range(200)))

    assert results == list(range(200))


def test_client_calls_publishes_and_raises(client: BlockingClient) -> None:
    client.publish("tower", "closed", 1, mandatory=True)
    assert Service.heard.acquire(timeout=20)
    with pytest.raises(UnknownService):
        client.call("nobody", "echo", 1)
    with pytest.raises(RpcTimeout):
        client.call("service", "never", timeout=0.2)
    assert Service.begun.acquire(timeout=20)


def test_client_goes_on_after_its_connections_were_closed(
    client: BlockingClient, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    client.call("service", "echo", 1)
    deadline = time.monotonic() + 20
    while not rabbit_api.close_connections(rabbit_vhost):  # until its statistics know of them
        assert time.monotonic() < deadline

    while True:
        try:
            assert client.call("service", "echo", 2, timeout=1) == 2
            break
        except (RpcTimeout, BrokerUnavailable):  # a request that went down with the connection
            assert time.monotonic() < deadline


def test_closing_fails_the_calls_of_other_threads(client: BlockingClient) -> None:
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.call, "service", "never") for _ in range(3)]
        for _ in calls:
            assert Service.begun.acquire(timeout=20)

        client.close()

        for call in calls:
            assert isinstance(call.exception(10), BrokerUnavailable)
    with pytest.raises(RuntimeStateError, match="the client is not open"):
        client.call("service", "echo", 1)


def test_threads_that_call_while_another_closes_get_a_clear_error_at_once(
    rabbit_uri: str, service: None
) -> None:
    client = BlockingClient(rabbit_uri, timeout=20)
    failures: list[BaseException] = []
    started = threading.Barrier(5)

    def call_for_ever() -> None:
        started.wait(20)
        try:
            while True:
                client.call("service", "echo", 1)
        except BaseException as exc:  # noqa: BLE001  whatever ends it is what the test looks at
            failures.append(exc)

    client.open()
    threads = [threading.Thread(target=call_for_ever) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(20)
    client.call("service", "echo", 1)

    client.close()

    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert [error for error in failures if not isinstance(error, MyceliaError)] == []
    assert len(failures) == 4


async def test_thousands_of_first_events_at_once_are_all_published(rabbit_uri: str) -> None:
    """Each finds the exchange undeclared; a connection has 2047 channels."""
    async with Client(rabbit_uri, timeout=60) as client:
        await asyncio.gather(*(client.publish("new", "x", number) for number in range(2500)))

        assert client.link.statistics().confirmed == 2500
        assert client.link.statistics().reconnects == 0
