"""Stopping services on a real broker: nothing is lost, nothing runs twice, and it always ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from mycelia import Client, RpcProxy, Runner, event_handler, rpc
from mycelia.amqp import Link, connect
from mycelia.testing import Fault, TcpProxy, eventually


class Slow:
    name = "slow"
    begun: list[Any]
    ended: list[Any]
    gate: asyncio.Event

    async def work(self, value: Any) -> Any:
        self.begun.append(value)
        await self.gate.wait()
        self.ended.append(value)
        return value

    @rpc(concurrency=2)
    async def call(self, value: Any) -> Any:
        return await self.work(value)

    @event_handler("source", "happened", concurrency=2)
    async def happened(self, payload: Any) -> None:
        await self.work(payload)


class Caller:
    name = "caller"
    slow = RpcProxy("slow", timeout=20)

    @rpc
    async def relay(self, value: Any) -> Any:
        return await self.slow.call(value)


EVENTS = "evt-source-happened--slow.happened"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Slow.begun, Slow.ended = [], []


@pytest.fixture
async def gate() -> asyncio.Event:
    Slow.gate = asyncio.Event()
    return Slow.gate


@pytest.fixture
async def client(rabbit_uri: str) -> AsyncIterator[Client]:
    async with Client(rabbit_uri, timeout=20) as client:
        yield client


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(20)
    yield link
    await link.aclose()


def runner_at(uri: str, *services: type) -> Runner:
    return Runner({"AMQP_URI": uri, "mycelia": {"grace": 10}}, services or (Slow,))


async def ready(link: Link, queue: str, count: int) -> None:
    async def matches() -> bool:
        return await link.message_count(queue) == count

    await eventually(matches, 30, what=f"{count} messages ready in {queue}")


async def test_drain_loses_nothing_and_runs_nothing_twice(
    rabbit_uri: str, client: Client, link: Link, gate: asyncio.Event
) -> None:
    first, second = runner_at(rabbit_uri), runner_at(rabbit_uri)
    await first.start(20)
    calls = [asyncio.ensure_future(client.call("slow", "call", n)) for n in range(8)]
    for n in range(8):
        await client.publish("source", "happened", f"event {n}")
    await eventually(lambda: len(Slow.begun) == 4, 30)

    stopping = asyncio.ensure_future(first.stop())
    await ready(link, EVENTS, 6)  # what was prefetched is back
    await ready(link, "rpc-slow", 6)
    assert not stopping.done()
    gate.set()
    await stopping

    assert len(Slow.begun) == 4
    await second.start(20)
    assert await asyncio.gather(*calls) == list(range(8))
    await ready(link, EVENTS, 0)
    await eventually(lambda: len(Slow.ended) == 16, 30)
    await second.stop()
    assert sorted(map(str, Slow.begun)) == sorted(
        [*map(str, range(8)), *(f"event {n}" for n in range(8))]
    )
    await ready(link, EVENTS, 0)
    await ready(link, "rpc-slow", 0)


async def test_drain_outlasts_what_makes_stock_nameko_run_work_twice(
    rabbit_uri: str, client: Client, link: Link, gate: asyncio.Event
) -> None:
    """Nameko closes the connection of a service without proxies some 2 s into a stop, workers or not."""
    runner, other = runner_at(rabbit_uri), runner_at(rabbit_uri)
    await runner.start(20)
    call = asyncio.ensure_future(client.call("slow", "call", "once"))
    await eventually(lambda: Slow.begun == ["once"], 30)
    await other.start(20)

    stopping = asyncio.ensure_future(runner.stop())
    await asyncio.wait([stopping], timeout=2.5)  # the time in which Nameko gives the message away
    gate.set()
    await stopping

    assert await call == "once"
    await other.stop()
    assert Slow.begun == ["once"]


async def test_worker_may_still_call_while_its_service_stops(
    rabbit_uri: str, client: Client, gate: asyncio.Event
) -> None:
    caller, slow = runner_at(rabbit_uri, Caller), runner_at(rabbit_uri)
    await slow.start(20)
    await caller.start(20)
    call = asyncio.ensure_future(client.call("caller", "relay", 7))
    await eventually(lambda: Slow.begun == [7], 30)

    stopping = asyncio.ensure_future(caller.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping

    assert await call == 7
    await slow.stop()


async def test_grace_over_gives_the_work_to_another_instance(
    rabbit_uri: str, client: Client, link: Link, gate: asyncio.Event
) -> None:
    first, second = runner_at(rabbit_uri), runner_at(rabbit_uri)
    await first.start(20)
    call = asyncio.ensure_future(client.call("slow", "call", "call"))
    await client.publish("source", "happened", "event")
    await eventually(lambda: len(Slow.begun) == 2, 30)

    await first.stop(grace=0.1)
    assert Slow.ended == []
    await ready(link, EVENTS, 1)
    gate.set()
    await second.start(20)

    assert await call == "call"
    await eventually(lambda: sorted(Slow.ended) == ["call", "event"], 30)
    await second.stop()


@pytest.mark.long_variants("upstream blackhole")
@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.UPSTREAM_BLACKHOLE], ids=lambda f: f.value)
async def test_stop_ends_within_its_bounds_when_the_broker_is_away(
    rabbit_uri: str, client: Client, link: Link, gate: asyncio.Event, fault: Fault
) -> None:
    parts = urlsplit(rabbit_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0)) as proxy:
        runner = runner_at(proxy.uri(rabbit_uri))
        await runner.start(20)
        await client.publish("source", "happened", "event")
        await eventually(lambda: Slow.begun == ["event"], 30)
        await proxy.fail(fault)

        started = time.monotonic()
        stopping = asyncio.ensure_future(runner.stop(grace=0.5))
        gate.set()
        await stopping

    assert time.monotonic() - started < 10
    await ready(link, EVENTS, 1)  # its acknowledgement could not leave: at least once


async def test_start_waits_for_a_broker_that_is_not_there_yet(
    rabbit_uri: str, client: Client, gate: asyncio.Event
) -> None:
    gate.set()
    parts = urlsplit(rabbit_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0)) as proxy:
        await proxy.fail(Fault.REFUSED)
        runner = runner_at(proxy.uri(rabbit_uri))
        starting = asyncio.ensure_future(runner.start())
        _, pending = await asyncio.wait([starting], timeout=0.5)
        assert pending
        await proxy.heal()

        await asyncio.wait_for(starting, 15)
        assert await client.call("slow", "call", 1) == 1
        await runner.stop()
