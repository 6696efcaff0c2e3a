"""Nameko's faults 21 to 27 (reference, section 6): leaks and smaller ones. Each is shown to be gone."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.nameko.fault_tools import Gate, proxied, queue_becomes

from mycelia import BlockingClient, Client, EventDispatcher, RpcProxy, event_handler, rpc
from mycelia.amqp import Binding, Exchange, connect
from mycelia.amqp import Queue as LinkQueue
from mycelia.entrypoints import http
from mycelia.entrypoints.subscription import requeue_delay
from mycelia.errors import RpcTimeout, UnknownService
from mycelia.runtime import Runner
from mycelia.testing import Fault, eventually, run_services


class Echo:
    name = "echo"

    @rpc
    async def echo(self, value: Any) -> Any:
        return value


class Down:
    name = "down"

    @rpc
    def work(self) -> None: ...


@pytest.fixture
async def down(rabbit_uri: str) -> None:
    """A service that has run, and runs no more: its queue takes requests."""
    async with run_services(Down, broker=rabbit_uri):
        pass


@pytest.mark.usefixtures("down")
async def test_fault_21_failed_calls_leave_nothing_behind(rabbit_uri: str) -> None:
    """Nameko: each failed publishing and each lost reply leaks an entry; a standalone client also channels."""

    class Caller:
        name = "caller"
        down = RpcProxy("down", timeout=0.2)
        nobody = RpcProxy("nobody")
        emit = EventDispatcher()

        @rpc
        async def fail(self) -> list[str]:
            errors = []
            for method in (self.down.work, self.nobody.nothing):
                try:
                    await method()
                except (RpcTimeout, UnknownService) as exc:
                    errors.append(type(exc).__name__)
            return errors

    async with run_services(Caller, broker=rabbit_uri) as bed:
        for _ in range(3):
            assert await bed.client.call("caller", "fail") == ["RpcTimeout", "UnknownService"]
        container = bed.container(Caller)
        listener = next(e for e in container.extensions if type(e).__name__ == "ReplyListener")

        assert listener.statistics().pending == 0


@pytest.mark.usefixtures("down")
async def test_fault_22_timeout_is_that_of_the_call(rabbit_uri: str) -> None:
    """Nameko: the standalone timeout is one of the socket, and any frame that comes in starts it anew."""
    async with run_services(Echo, broker=rabbit_uri) as bed:
        client = bed.client
        started = time.monotonic()
        waiting = asyncio.create_task(client.call("down", "work", timeout=0.5))
        while not waiting.done():
            assert await client.call("echo", "echo", 1) == 1  # frames come in all the time
        elapsed = time.monotonic() - started

        with pytest.raises(RpcTimeout):
            await waiting
        assert 0.5 <= elapsed < 10


async def test_fault_22_client_is_usable_after_a_failed_reconnect(rabbit_uri: str) -> None:
    """Nameko: after one the proxy is unusable for ever."""
    async with run_services(Echo, broker=rabbit_uri), proxied(rabbit_uri) as (proxy, uri):
        async with Client(uri, timeout=20) as client:
            assert await client.call("echo", "echo", 1) == 1
            await proxy.fail(Fault.CLOSED)
            refused = proxy.accepted_count
            await eventually(lambda: proxy.accepted_count >= refused + 2)
            await proxy.heal()

            assert await client.call("echo", "echo", 2) == 2


async def test_fault_22_client_may_be_shared_by_threads(rabbit_uri: str) -> None:
    def work(client: BlockingClient, number: int) -> bool:
        return all(
            client.call("echo", "echo", [number, n], timeout=10) == [number, n] for n in range(20)
        )

    def use() -> list[bool]:
        with BlockingClient(rabbit_uri) as client, ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda number: work(client, number), range(8)))

    async with run_services(Echo, broker=rabbit_uri):
        assert await asyncio.to_thread(use) == [True] * 8


async def test_fault_23_unknown_service_costs_no_connection(rabbit_uri: str) -> None:
    """Nameko: each `UnknownService` closes the pooled connection."""
    async with run_services(Echo, broker=rabbit_uri), proxied(rabbit_uri) as (proxy, uri):
        async with Client(uri) as client:
            await client.call("echo", "echo", 1)
            accepted = proxy.accepted_count
            for _ in range(5):
                with pytest.raises(UnknownService):
                    await client.call("nobody", "nothing")
            await client.call("echo", "echo", 1)

            assert proxy.accepted_count == accepted


async def test_fault_24_instance_takes_no_more_than_it_can_work_on(rabbit_uri: str) -> None:
    """Nameko: `max_workers` messages for each queue, and as many greenthreads that wait."""
    gate = Gate()

    class Modest:
        name = "modest"

        @event_handler("tests", "one", concurrency=1, prefetch=1)
        def on_one(self, payload: Any) -> None:
            gate.pass_through()

    queue = "evt-tests-one--modest.on_one"
    async with run_services(Modest, broker=rabbit_uri) as bed:
        for number in range(6):
            await bed.client.publish("tests", "one", number)
        await gate.wait_for()

        try:
            await queue_becomes(rabbit_uri, queue, (5, 1))  # the sixth is the worker's
        finally:
            gate.open()
        await queue_becomes(rabbit_uri, queue, (0, 1))
    assert gate.entered == 6


async def test_fault_25_service_starts_on_a_queue_with_other_arguments(rabbit_uri: str) -> None:
    """Nameko: 406 once a second, for ever; the service never becomes ready."""
    link = connect(rabbit_uri)
    await link.open(10)
    await link.declare(
        Exchange("nameko-rpc"),
        LinkQueue("rpc-echo", arguments={"x-max-priority": 5}),
        Binding("rpc-echo", "nameko-rpc", "echo.*"),
    )
    await link.aclose()

    async with run_services(Echo, broker=rabbit_uri) as bed:
        assert await bed.client.call("echo", "echo", 1) == 1


async def test_fault_26_http_response_under_way_is_sent_to_its_end(rabbit_uri: str) -> None:
    """Nameko: greenthreads that write responses are killed as soon as the workers have ended."""
    gate = Gate()

    class Site:
        name = "site"

        @http("GET", "/slow")
        def slow(self, request: Any) -> str:
            gate.pass_through()
            return "x" * 1_000_000

    runner = Runner({"WEB_SERVER_ADDRESS": "127.0.0.1:0"}, [Site])
    await runner.start()
    address = runner.containers[0].entrypoints[0].address
    async with httpx.AsyncClient() as client:
        response = asyncio.create_task(client.get(f"http://{address}/slow", timeout=20))
        await gate.wait_for()
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: not runner.containers[0].started)
        gate.open()

        assert len((await response).content) == 1_000_000
    await stopping


async def test_fault_27_back_off_of_one_message_does_not_slow_another(rabbit_uri: str) -> None:
    """Nameko: `nameko.utils.retry` keeps its delay between calls. Here it is a function of the attempt alone."""
    first_pauses: dict[int, list[float]] = {}

    class Retrying:
        name = "retrying"

        @event_handler("tests", "retried", requeue_on_error=True)
        def on_retried(self, number: int) -> None:
            times = first_pauses.setdefault(number, [])
            times.append(time.monotonic())
            if len(times) < 3:
                raise ValueError("not yet")

    async with run_services(Retrying, broker=rabbit_uri) as bed:
        for number in range(3):
            await bed.client.publish("tests", "retried", number)
            await eventually(lambda: len(first_pauses.get(number, [])) == 3)  # noqa: B023  it ends in this turn

    for times in first_pauses.values():
        assert 0.09 <= times[1] - times[0] < 1.2  # Nameko's third message would wait for 1.6 s
    assert [requeue_delay(attempt) for attempt in (1, 2, 3, 1)] == [0.1, 0.2, 0.4, 0.1]
