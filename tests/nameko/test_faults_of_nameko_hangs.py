"""Nameko's faults 5 to 10 (reference, section 6): what hangs. Each is shown to be gone."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.nameko.fault_tools import Gate, dead_letter, proxied, queue_becomes
from tests.nameko.processes import queue_state

from mycelia import Client, EventDispatcher, RpcProxy, event_handler, rpc, timer
from mycelia.broker.node import PrivateNode
from mycelia.errors import LinkError, RemoteError
from mycelia.runtime import Runner
from mycelia.testing import Fault, eventually, run_services


async def test_fault_05_call_inside_a_service_has_a_timeout(rabbit_uri: str) -> None:
    """Nameko: a call to a service that is down, but has a queue, holds one of ten workers for ever."""

    class Down:
        name = "down"

        @rpc
        def work(self) -> None: ...

    class Caller:
        name = "caller"
        down = RpcProxy("down", timeout=0.3)
        down_by_default = RpcProxy("down")

        @rpc
        def work(self) -> None:
            self.down.work()

        @rpc
        async def work_async(self) -> None:
            await self.down.work()

        @rpc
        def work_by_default(self) -> None:
            self.down_by_default.work()

    async with run_services(Down, broker=rabbit_uri):
        pass  # its queue stays behind
    config = {"max_workers": 1, "mycelia": {"rpc_timeout": 0.4}}
    async with run_services(Caller, broker=rabbit_uri, config=config) as bed:
        for method in ("work", "work_async", "work_by_default", "work"):
            with pytest.raises(
                RemoteError, match=r"RpcTimeout down\.work: no reply within 0\.[34] s"
            ):
                await bed.client.call("caller", method)


async def test_fault_05_default_timeout_is_thirty_seconds(rabbit_uri: str) -> None:
    runner = Runner({"AMQP_URI": rabbit_uri}, [_Exiting])

    assert runner.host.settings.mycelia.rpc_timeout == 30.0


class _Exiting:
    """Leaves its methods by what is no `Exception`."""

    name = "exiting"
    ticks = 0

    @rpc
    def leave(self) -> None:
        raise SystemExit(3)

    @rpc
    async def leave_async(self) -> None:
        raise KeyboardInterrupt

    @rpc
    async def cancel(self) -> None:
        raise asyncio.CancelledError

    @rpc
    def stay(self) -> str:
        return "here"

    @event_handler("tests", "leave")
    def on_leave(self, payload: Any) -> None:
        raise GeneratorExit("from an event handler")

    @timer(0.05)
    def tick(self) -> None:
        type(self).ticks += 1
        raise SystemExit


async def test_fault_06_base_exception_gives_an_answer_and_its_slot_back(rabbit_uri: str) -> None:
    """Nameko: no reply, no ack, and the prefetch slot is gone; with max_workers=1 the service stands still."""
    config = {"max_workers": 1}
    async with run_services(_Exiting, broker=rabbit_uri, config=config) as bed:
        for method, error in (
            ("leave", "SystemExit"),
            ("leave_async", "KeyboardInterrupt"),
            ("cancel", "CancelledError"),
        ):
            with pytest.raises(RemoteError) as raised:
                await bed.client.call("exiting", method)
            assert raised.value.exc_type == error
        await bed.client.publish("tests", "leave", 1)
        _, headers = await dead_letter(rabbit_uri, "evt-tests-leave--exiting.on_leave")

        assert headers["x-mycelia-error-type"] == "GeneratorExit"
        assert await bed.client.call("exiting", "stay") == "here"
        await queue_becomes(rabbit_uri, "rpc-exiting", (0, 1))


async def test_fault_06_timer_ticks_on_after_a_base_exception(rabbit_uri: str) -> None:
    _Exiting.ticks = 0
    async with run_services(_Exiting, broker=rabbit_uri):
        await eventually(lambda: _Exiting.ticks >= 3)


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_fault_07_service_stops_with_the_broker_away(rabbit_uri: str, way: str) -> None:
    """Nameko: `stop()` and `kill()` wait for the broker; SIGTERM does nothing."""

    class Busy:
        name = "busy"
        other = RpcProxy("busy")
        emit = EventDispatcher()

        @rpc
        def work(self) -> None: ...

        @event_handler("tests", "x")
        def on_x(self, payload: Any) -> None: ...

    async with proxied(rabbit_uri) as (proxy, uri):
        runner = Runner({"AMQP_URI": uri}, [Busy])
        await runner.start(10)
        await proxy.fail(Fault.REFUSED)
        started = time.monotonic()

        await asyncio.wait_for(runner.stop(grace=1.0) if way == "stop" else runner.kill(), 8)

        assert time.monotonic() - started < 8


async def test_fault_08_publisher_waits_for_a_confirm_no_longer_than_its_time(
    rabbit_uri: str,
) -> None:
    """Nameko: a confirm that never comes is waited for without a bound."""

    class Announcer:
        name = "announcer"
        emit = EventDispatcher(timeout=0.5)

        @rpc
        def unused(self) -> None: ...

    async with proxied(rabbit_uri) as (proxy, uri):
        # Its dispatcher is used from outside a worker: a request could not come in over the broken network.
        runner = Runner({"AMQP_URI": uri}, [Announcer])
        await runner.start(10)
        try:
            emit = runner.container_of(Announcer).dependencies[0].shared_dependency(True)
            await emit("announced", 0)
            await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
            started = time.monotonic()
            with pytest.raises(LinkError):
                await emit("announced", 1)

            assert time.monotonic() - started < 15
            proxy.drop()
            await proxy.heal()
            await emit("announced", 2, timeout=10)
        finally:
            await runner.stop()


async def test_fault_08_broker_alarm_is_an_error_within_the_time(
    own_rabbit_node: PrivateNode,
) -> None:
    """Nameko: all publishers, and so all workers, block in silence under a memory or disk alarm."""
    uri = own_rabbit_node.uri()
    async with Client(uri) as client:
        await client.publish("tests", "before", 1)
        await asyncio.to_thread(own_rabbit_node.ctl, "set_vm_memory_high_watermark", "0.00001")
        try:
            with pytest.raises(LinkError):
                await _publish_until_refused(client)
        finally:
            await asyncio.to_thread(own_rabbit_node.ctl, "set_vm_memory_high_watermark", "0.6")
        await client.publish("tests", "after", 1, timeout=20)


async def _publish_until_refused(client: Client) -> None:
    """The broker speaks of its alarm once it has seen a publishing."""
    for _ in range(20):
        await client.publish("tests", "during", 1, timeout=1)


async def test_fault_09_calling_oneself_with_every_worker_busy_ends(rabbit_uri: str) -> None:
    """Nameko: a service that calls itself, with all workers waiting, is dead and looks healthy."""

    class Circle:
        name = "circle"
        circle = RpcProxy("circle", timeout=0.5)

        @rpc
        def outer(self) -> Any:
            return self.circle.inner()

        @rpc
        def inner(self) -> str:
            return "inner"

    config = {"max_workers": 2}
    async with run_services(Circle, broker=rabbit_uri, config=config, timeout=20) as bed:
        answers = await asyncio.gather(
            *(bed.client.call("circle", "outer") for _ in range(6)), return_exceptions=True
        )

        assert all(a == "inner" or "RpcTimeout" in str(a) for a in answers)
        assert await bed.client.call("circle", "outer") == "inner"


async def test_fault_10_blocking_handler_does_not_cost_the_connection(rabbit_uri: str) -> None:
    """Nameko: heartbeats are sent from the hub that the handler blocks; the broker hangs up and redelivers."""
    gate = Gate()
    runs: list[int] = []

    class Blocking:
        name = "blocking"

        @rpc
        def work(self) -> str:
            runs.append(1)
            _compute_for(2.6)
            gate.entered += 1
            return "worked"

    async with proxied(rabbit_uri) as (proxy, uri):
        config = {"HEARTBEAT": 1}  # the broker hangs up after two seconds of silence
        async with run_services(Blocking, broker=uri, config=config, timeout=20) as bed:
            connections = proxy.accepted_count
            assert await bed.client.call("blocking", "work") == "worked"

            assert proxy.accepted_count <= connections + 1  # the client's second one
            assert proxy.connection_count >= connections
            assert runs == [1]


def _compute_for(seconds: float) -> None:
    """Pure Python that leaves the interpreter lock only when it is taken away."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        number += sum(range(500))


async def test_fault_09_service_stays_responsive_beside_blocked_workers(rabbit_uri: str) -> None:
    """`def` and `async def` methods do not wait for each other's workers."""
    gate = Gate()

    class Mixed:
        name = "mixed"

        @rpc(concurrency=1)
        def block(self) -> None:
            gate.pass_through()

        @rpc
        async def answer(self) -> str:
            return threading.current_thread().name

    async with run_services(Mixed, broker=rabbit_uri) as bed:
        blocked = asyncio.create_task(bed.client.call("mixed", "block"))
        await gate.wait_for()
        try:
            assert await bed.client.call("mixed", "answer") == "MainThread"
        finally:
            gate.open()
            await blocked
    assert await asyncio.to_thread(queue_state, rabbit_uri, "rpc-mixed") == (0, 0)
