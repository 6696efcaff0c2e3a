"""Nameko's faults 11 to 14 (reference, section 6): work done twice. Each is shown to be gone, or to be seen."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.nameko.fault_tools import Gate, proxied, queue_becomes
from tests.nameko.processes import queue_state
from tests.nameko.raw_rpc import publish_raw, take

from mycelia import Client, event_handler, get_current_call, rpc
from mycelia.errors import LinkError, RpcTimeout
from mycelia.runtime import Runner
from mycelia.testing import Fault, eventually, run_services


async def test_fault_11_graceful_stop_lets_running_work_end(rabbit_uri: str) -> None:
    """Nameko: a service without RpcProxy closes its connection under its workers: each deploy repeats their work."""
    gate = Gate()

    class Slow:
        name = "slow"

        @rpc
        def work(self) -> str:
            gate.pass_through()
            return "worked"

    async with Client(rabbit_uri, timeout=20) as client:
        runner = Runner({"AMQP_URI": rabbit_uri}, [Slow])
        await runner.start(10)
        call = asyncio.create_task(client.call("slow", "work"))
        await gate.wait_for()
        stopping = asyncio.create_task(runner.stop())
        # Consumers are gone, the message is still the worker's: not ready for anybody else.
        await queue_becomes(rabbit_uri, "rpc-slow", (0, 0))
        assert not stopping.done()
        gate.open()

        assert await call == "worked"
        await stopping
        assert await asyncio.to_thread(queue_state, rabbit_uri, "rpc-slow") == (0, 0)
        assert gate.entered == 1


async def test_fault_11_requests_not_yet_begun_go_back_at_once(rabbit_uri: str) -> None:
    """What a stopping instance has prefetched is another instance's to do."""
    gate = Gate()

    class Slow:
        name = "slow"

        @rpc(concurrency=1, prefetch=10)
        def work(self) -> None:
            gate.pass_through()

    async with Client(rabbit_uri, timeout=20) as client:
        runner = Runner({"AMQP_URI": rabbit_uri}, [Slow])
        await runner.start(10)
        calls = [asyncio.create_task(client.call("slow", "work")) for _ in range(4)]
        await gate.wait_for()
        stopping = asyncio.create_task(runner.stop())
        await queue_becomes(rabbit_uri, "rpc-slow", (3, 0))
        gate.open()
        await stopping
        async with run_services(Slow, broker=rabbit_uri):
            await asyncio.gather(*calls)

    assert gate.entered == 4


def make_slow(gate: Gate, seen: list[tuple[int, str]]) -> type:
    class Slow:
        name = "slow"

        @event_handler("tests", "departed")
        def on_departed(self, payload: Any) -> None:
            call = get_current_call()
            assert call is not None
            assert call.message is not None
            seen.append((call.attempt, call.message.properties.message_id or ""))
            gate.pass_through()

    return Slow


async def test_fault_12_what_runs_over_a_reconnect_is_not_run_again(rabbit_uri: str) -> None:
    """Nameko: the same work again, and nothing to know it by: no message id, no attempt, no redelivered flag."""
    seen: list[tuple[int, str]] = []
    gate = Gate()

    async with proxied(rabbit_uri) as (proxy, uri), Client(rabbit_uri) as client:
        slow = make_slow(gate, seen)
        async with run_services(slow, broker=uri, timeout=20) as bed:
            link = bed.container(slow).host.link
            await client.publish("tests", "departed", 1)
            await gate.wait_for(1)
            proxy.drop()
            await eventually(lambda: link.statistics().reconnects > 0, 30)
            gate.open()
            await queue_becomes(rabbit_uri, "evt-tests-departed--slow.on_departed", (0, 1))

    assert len(seen) == 1


async def test_fault_12_redelivery_to_another_instance_says_so(rabbit_uri: str) -> None:
    """What another process began cannot be known here; the attempt and the id tell that somebody did."""
    seen: list[tuple[int, str]] = []
    gate = Gate()

    async with Client(rabbit_uri) as client:
        first = Runner({"AMQP_URI": rabbit_uri}, [make_slow(gate, seen)])
        await first.start(10)
        await client.publish("tests", "departed", 1)
        await gate.wait_for(1)
        await first.kill()
        async with run_services(make_slow(gate, seen), broker=rabbit_uri, timeout=20):
            await gate.wait_for(2)
            gate.open()
            await queue_becomes(rabbit_uri, "evt-tests-departed--slow.on_departed", (0, 1))

    (attempt, first_id), (next_attempt, second_id) = seen
    assert (attempt, next_attempt) == (1, 2)
    assert first_id == second_id != ""


class Copies:
    name = "copies"
    ids: list[str]

    @event_handler("tests", "departed")
    def on_departed(self, payload: Any) -> None:
        call = get_current_call()
        assert call is not None
        Copies.ids.append(call.message.properties.message_id)


async def test_fault_13_repeated_publishing_has_the_same_message_id(rabbit_uri: str) -> None:
    """Nameko: a publishing whose confirm was lost is sent again, and is another message to everybody."""
    Copies.ids = []
    queue = "evt-tests-departed--copies.on_departed"
    async with run_services(Copies, broker=rabbit_uri):
        pass  # its queue stays
    async with proxied(rabbit_uri) as (proxy, uri), Client(uri, timeout=20) as client:
        await client.publish("tests", "other", 0)
        await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
        publishing = asyncio.create_task(client.publish("tests", "departed", 1))
        await queue_becomes(rabbit_uri, queue, (1, 0))  # it is there; its confirm is not
        assert not publishing.done()
        proxy.drop()
        await proxy.heal()
        await publishing

    async with run_services(Copies, broker=rabbit_uri):
        await eventually(lambda: len(Copies.ids) == 2)
    assert Copies.ids[0] == Copies.ids[1]


async def test_fault_13_message_id_is_made_when_none_is_given(rabbit_uri: str) -> None:
    Copies.ids = []
    async with run_services(Copies, broker=rabbit_uri) as bed:
        await bed.client.publish("tests", "departed", 1)
        await bed.client.publish("tests", "departed", 2)
        await queue_becomes(rabbit_uri, "evt-tests-departed--copies.on_departed", (0, 1))

    assert len(set(filter(None, Copies.ids))) == 2


class Orphanage:
    name = "orphanage"
    ran = 0

    @rpc
    def work(self) -> None:
        type(self).ran += 1


async def test_fault_14_request_is_dropped_when_its_caller_has_given_up(rabbit_uri: str) -> None:
    """Nameko: the request stays in the queue and is executed when the service comes back."""
    Orphanage.ran = 0
    async with run_services(Orphanage, broker=rabbit_uri):
        pass  # its queue stays
    async with Client(rabbit_uri) as client:
        with pytest.raises(RpcTimeout):
            await client.call("orphanage", "work", timeout=0.3)
        await queue_becomes(rabbit_uri, "rpc-orphanage", (0, 0))

    async with run_services(Orphanage, broker=rabbit_uri) as bed:
        await bed.client.call("orphanage", "work")
    assert Orphanage.ran == 1


async def test_fault_14_expired_request_that_arrives_is_not_run(rabbit_uri: str) -> None:
    """As from a caller that sets no `expiration`: the deadline in the header is enough."""
    Orphanage.ran = 0
    headers = {"nameko.deadline_ms": int((time.time() - 1) * 1000)}
    request = {"args": [], "kwargs": {}}
    async with run_services(Orphanage, broker=rabbit_uri) as bed:
        await asyncio.to_thread(
            publish_raw, rabbit_uri, "nameko-rpc", "orphanage.work", request, headers=headers
        )
        await bed.client.call("orphanage", "work")

    assert Orphanage.ran == 1
    assert await asyncio.to_thread(take, rabbit_uri, "rpc-orphanage") is None


async def test_fault_14_callers_death_ends_the_call_within_its_time(rabbit_uri: str) -> None:
    """A client that is closed fails its calls at once; nobody waits for the deadline."""
    async with run_services(Orphanage, broker=rabbit_uri):
        pass
    client = Client(rabbit_uri)
    await client.open()
    call = asyncio.create_task(client.call("orphanage", "work", timeout=30))
    await queue_becomes(rabbit_uri, "rpc-orphanage", (1, 0))
    await client.aclose()

    with pytest.raises(LinkError, match="closed before the reply"):
        await asyncio.wait_for(call, 5)
