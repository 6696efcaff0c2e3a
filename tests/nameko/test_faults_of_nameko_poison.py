"""Nameko's faults 1 to 4 (reference, section 6): what kills a service. Each is shown to be gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.nameko.fault_tools import Gate, proxied, queue_becomes
from tests.nameko.raw_rpc import publish_raw, raw_call

from mycelia import Client, DependencyProvider, EventDispatcher, Publisher, Queue, Runner, rpc
from mycelia.errors import RemoteError
from mycelia.testing import Fault, run_services


class Victim:
    name = "victim"
    done: list[Any]

    @rpc
    def work(self, value: Any = None) -> Any:
        Victim.done.append(value)
        return value


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Victim.done = []


REQUEST = {"args": [1], "kwargs": {}}


@pytest.mark.parametrize(
    ("properties", "body", "runs"),
    [
        ({}, REQUEST, [1]),
        ({"content_type": None, "reply_to": "nobody"}, REQUEST, []),
        ({"content_type": "application/x-unknown", "reply_to": "nobody"}, REQUEST, []),
        ({"content_type": None}, b"\x00", []),
        ({"reply_to": "nobody"}, b"not json", []),
        ({"reply_to": "nobody"}, {"args": 1}, []),
        ({"reply_to": "nobody"}, [1, 2], []),
        ({"reply_to": "x" * 255}, REQUEST, [1]),
    ],
    ids=[
        "no reply_to",
        "no content type",
        "unknown content type",
        "neither, and binary",
        "broken json",
        "args is no list",
        "a list",
        "unroutable reply_to",
    ],
)
async def test_fault_01_bad_message_does_not_take_the_service_down(
    rabbit_uri: str, properties: dict[str, Any], body: Any, runs: list[Any]
) -> None:
    """Nameko: no `reply_to` is a KeyError that kills the container; the message comes back and kills the next one."""
    async with run_services(Victim, broker=rabbit_uri) as bed:
        await asyncio.to_thread(
            publish_raw, rabbit_uri, "nameko-rpc", "victim.work", body, **properties
        )

        assert await bed.client.call("victim", "work", 2) == 2
        assert Victim.done == [*runs, 2]
        await queue_becomes(rabbit_uri, "rpc-victim", (0, 1))
    # Nothing was left unacknowledged for the next instance.
    await queue_becomes(rabbit_uri, "rpc-victim", (0, 0))


class FailingHook(DependencyProvider):
    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.failures = 1

    def _fail_once(self, hook: str) -> None:
        if hook == self.hook and self.failures:
            self.failures -= 1
            raise ConnectionError(f"the database is down in {hook}")

    def get_dependency(self, worker_ctx: Any) -> Any:
        self._fail_once("get_dependency")

    def worker_setup(self, worker_ctx: Any) -> None:
        self._fail_once("worker_setup")

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        self._fail_once("worker_result")

    def worker_teardown(self, worker_ctx: Any) -> None:
        self._fail_once("worker_teardown")


@pytest.mark.parametrize(
    "hook", ["get_dependency", "worker_setup", "worker_result", "worker_teardown"]
)
async def test_fault_02_error_in_a_providers_hook_is_an_error_reply(
    rabbit_uri: str, hook: str
) -> None:
    """Nameko: it kills the container with the message unacknowledged: a crash loop through the fleet."""

    class Hooked:
        name = "hooked"
        failing = FailingHook(hook)

        @rpc
        def work(self) -> str:
            return "worked"

    async with run_services(Hooked, broker=rabbit_uri) as bed:
        with pytest.raises(RemoteError, match=f"ConnectionError the database is down in {hook}"):
            await bed.client.call("hooked", "work")

        assert await bed.client.call("hooked", "work") == "worked"
        await queue_becomes(rabbit_uri, "rpc-hooked", (0, 1))


async def test_fault_03_broker_lost_before_the_reply_does_not_kill_the_service(
    rabbit_uri: str,
) -> None:
    """Nameko: after three tries of one second each to publish the reply the container is killed."""
    gate = Gate()

    class Slow:
        name = "slow"

        @rpc
        def work(self) -> str:
            gate.pass_through()
            return "worked"

    async with proxied(rabbit_uri) as (proxy, uri), Client(rabbit_uri, timeout=20) as client:
        async with run_services(Slow, broker=uri, timeout=20):
            call = asyncio.create_task(client.call("slow", "work"))
            await gate.wait_for()
            await proxy.fail(Fault.REFUSED)
            gate.open()
            await queue_becomes(rabbit_uri, "rpc-slow", (1, 0))  # the broker has taken it back
            await proxy.heal()

            assert await call == "worked"
            assert await client.call("slow", "work") == "worked"


async def test_fault_04_service_that_publishes_starts_when_the_broker_comes(
    rabbit_uri: str,
) -> None:
    """Nameko: a service with an EventDispatcher or Publisher dies after two seconds, where one without would wait."""

    class Announcer:
        name = "announcer"
        emit = EventDispatcher()
        publish = Publisher(queue=Queue("announcements"))

        @rpc
        def announce(self) -> None:
            self.emit("announced", 1)
            self.publish("announced")

    async with proxied(rabbit_uri) as (proxy, uri):
        await proxy.fail(Fault.CLOSED)
        runner = Runner({"AMQP_URI": uri}, [Announcer])
        starting = asyncio.create_task(runner.start())
        refused = proxy.accepted_count
        while proxy.accepted_count < refused + 3:  # it tries, and tries again
            assert not starting.done()
            await asyncio.wait([starting], timeout=0.05)
        await proxy.heal()
        await asyncio.wait_for(starting, 20)
        try:
            async with Client(rabbit_uri) as client:
                await client.call("announcer", "announce")
            await queue_becomes(rabbit_uri, "announcements", (1, 0))
        finally:
            await runner.stop()


async def test_fault_01_reply_names_the_problem_to_who_sent_it(rabbit_uri: str) -> None:
    async with run_services(Victim, broker=rabbit_uri):
        reply = await asyncio.to_thread(raw_call, rabbit_uri, "victim.work", b"not json")

    assert reply["error"]["exc_type"] == "MalformedRequest"
