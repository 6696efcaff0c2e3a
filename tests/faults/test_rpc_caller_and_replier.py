"""A caller and a service, each behind a network that breaks in every way: nothing waits beyond its deadline, and when
the network is whole again, so are they."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.faults.conftest import FAULTS

from mycelia import Client, Runner, event_handler, rpc
from mycelia.errors import BrokerUnavailable, CallError, LinkError, RpcTimeout
from mycelia.testing import Fault, TcpProxy, eventually

HEARTBEAT_S = 1
"""A blackhole is noticed after about two heartbeats."""

CALL_S = 0.6
MARGIN_S = 1.5
"""By how much a call may overrun its deadline on a busy machine."""

RECOVERED_S = 15.0


class Service:
    name = "service"
    gate: asyncio.Event
    begun: int
    got: list[Any]

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @rpc
    async def wait(self, value: Any) -> Any:
        type(self).begun += 1
        await self.gate.wait()
        return value

    @event_handler("source", "happened")
    async def happened(self, payload: Any) -> None:
        self.got.append(payload)


IMPATIENT = {"connect_timeout": 1.0}
"""A connection made while the network was broken may never be answered."""


@pytest.fixture(autouse=True)
async def _fresh() -> None:
    Service.gate, Service.begun, Service.got = asyncio.Event(), 0, []


@pytest.fixture
async def wire(rabbit_uri: str) -> AsyncIterator[TcpProxy]:
    """The network of the side under test; the other side has one that works."""
    parts = urlsplit(rabbit_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0), timeout_s=0.3) as wire:
        yield wire


async def start_service(uri: str) -> Runner:
    runner = Runner(
        {"AMQP_URI": uri, "HEARTBEAT": HEARTBEAT_S, "mycelia": {"grace": 0.5, **IMPATIENT}},
        [Service],
    )
    await runner.start(20)
    return runner


def client_at(uri: str) -> Client:
    return Client(uri, timeout=20, config={"HEARTBEAT": HEARTBEAT_S, "mycelia": IMPATIENT})


async def call_until(client: Client, timeout: float) -> float:
    """Call until an answer comes, each call within its own deadline. Return the longest that a call took."""
    longest = 0.0
    deadline = time.monotonic() + timeout
    while True:
        started = time.monotonic()
        try:
            assert await client.call("service", "echo", 1, timeout=CALL_S) == 1
        except (RpcTimeout, LinkError, CallError):
            assert time.monotonic() < deadline, "never recovered"
            longest = max(longest, time.monotonic() - started)
        else:
            return longest


async def test_caller_s_calls_end_at_their_deadline_and_work_again_when_healed(
    rabbit_uri: str, wire: TcpProxy, fault: Fault
) -> None:
    runner = await start_service(rabbit_uri)
    async with client_at(wire.uri(rabbit_uri)) as client:
        await client.call("service", "echo", 0)
        await wire.fail(fault)

        started = time.monotonic()
        results = await asyncio.gather(
            *(client.call("service", "echo", n, timeout=CALL_S) for n in range(5)),
            return_exceptions=True,
        )
        took = time.monotonic() - started
        assert all(isinstance(result, RpcTimeout | BrokerUnavailable) for result in results)
        assert took < CALL_S + MARGIN_S
        await wire.heal()
        longest = await call_until(client, RECOVERED_S)

        assert longest < CALL_S + MARGIN_S
        await client.publish("source", "happened", "after", mandatory=True)
        await eventually(lambda: "after" in Service.got, 30)
    await runner.stop()


async def test_service_behind_a_fault_answers_again_when_healed(
    rabbit_uri: str, wire: TcpProxy, fault: Fault
) -> None:
    runner = await start_service(wire.uri(rabbit_uri))
    async with client_at(rabbit_uri) as client:
        await client.call("service", "echo", 0)
        await wire.fail(fault)

        started = time.monotonic()
        with pytest.raises((RpcTimeout, LinkError)):
            await client.call("service", "echo", 1, timeout=CALL_S)
        assert time.monotonic() - started < CALL_S + MARGIN_S
        await client.publish("source", "happened", "meanwhile")  # waits in the queue
        await wire.heal()
        longest = await call_until(client, RECOVERED_S)

        assert longest < CALL_S + MARGIN_S
        await eventually(lambda: "meanwhile" in Service.got, RECOVERED_S)
    await runner.stop()


async def test_reply_sent_while_the_caller_is_away_reaches_it_after_the_reconnect(
    rabbit_uri: str, wire: TcpProxy
) -> None:
    runner = await start_service(rabbit_uri)
    async with client_at(wire.uri(rabbit_uri)) as client:
        call = asyncio.ensure_future(client.call("service", "wait", "kept", timeout=20))
        await eventually(lambda: Service.begun == 1, 30)
        await wire.fail(Fault.REFUSED)
        Service.gate.set()
        async with client_at(rabbit_uri) as witness:  # when this is answered, so was the other
            await witness.call("service", "echo", 0)
        assert not call.done()
        await wire.heal()

        assert await call == "kept"
    assert Service.begun == 1
    await runner.stop()


async def test_reply_made_while_the_service_is_away_is_sent_after_its_reconnect(
    rabbit_uri: str, wire: TcpProxy
) -> None:
    runner = await start_service(wire.uri(rabbit_uri))
    async with client_at(rabbit_uri) as client:
        call = asyncio.ensure_future(client.call("service", "wait", "kept", timeout=20))
        await eventually(lambda: Service.begun == 1, 30)
        await wire.fail(Fault.REFUSED)
        await eventually(lambda: not runner.host.link.writable, 30)
        Service.gate.set()
        await wire.heal()

        assert await call == "kept"
    await runner.stop()


async def test_request_whose_caller_gave_up_is_not_run_when_the_service_comes_back(
    rabbit_uri: str, wire: TcpProxy
) -> None:
    runner = await start_service(wire.uri(rabbit_uri))
    async with client_at(rabbit_uri) as client:
        await client.call("service", "echo", 0)
        await wire.fail(Fault.REFUSED)
        await eventually(lambda: not runner.host.link.writable, 30)
        with pytest.raises(RpcTimeout):
            await client.call("service", "wait", 1, timeout=0.3)
        await wire.heal()
        await call_until(client, RECOVERED_S)

        assert Service.begun == 0
    await runner.stop()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.value.replace(" ", "-"))
async def test_closing_a_client_behind_a_fault_is_bounded(
    rabbit_uri: str, wire: TcpProxy, fault: Fault
) -> None:
    runner = await start_service(rabbit_uri)
    client = client_at(wire.uri(rabbit_uri))
    await client.open()
    await client.call("service", "echo", 0)
    pending = asyncio.ensure_future(client.call("service", "wait", 0, timeout=20))
    await eventually(lambda: Service.begun == 1, 30)
    await wire.fail(fault)

    started = time.monotonic()
    await client.aclose()

    assert time.monotonic() - started < 9
    with pytest.raises(BrokerUnavailable, match="the caller was closed"):
        await pending
    await runner.stop(grace=0)
