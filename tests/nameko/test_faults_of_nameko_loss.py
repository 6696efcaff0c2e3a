"""Nameko's faults 15 to 20 (reference, section 6): what gets lost. Each is shown to be gone."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from tests.nameko.fault_tools import Gate, dead_letter, proxied
from tests.nameko.raw_rpc import publish_raw

from mycelia import (
    BROADCAST,
    Client,
    EventDispatcher,
    Publisher,
    Queue,
    consume,
    event_handler,
    rpc,
)
from mycelia.entrypoints import EventHandler
from mycelia.errors import UnknownService, Unroutable
from mycelia.testing import Fault, eventually, run_services


class Failing:
    name = "failing"
    attempts: list[float]

    @event_handler("tests", "broken")
    def on_broken(self, payload: Any) -> None:
        raise ValueError(f"cannot handle {payload}")

    @consume(Queue("imports"))
    def on_import(self, payload: Any) -> None:
        raise ValueError(f"cannot import {payload}")

    @event_handler("tests", "again", requeue_on_error=True)
    def on_again(self, payload: Any) -> None:
        Failing.attempts.append(time.monotonic())
        raise ValueError("again")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Failing.attempts = []


async def test_fault_15_failed_event_is_kept_with_its_reason(rabbit_uri: str) -> None:
    """Nameko: acked and gone."""
    async with run_services(Failing, broker=rabbit_uri) as bed:
        await bed.client.publish("tests", "broken", {"tail": "N1"})
        body, headers = await dead_letter(rabbit_uri, "evt-tests-broken--failing.on_broken")

    assert json.loads(body) == {"tail": "N1"}
    assert headers["x-mycelia-reason"] == "handler_error"
    assert headers["x-mycelia-error"] == "cannot handle {'tail': 'N1'}"
    assert "on_broken" in headers["x-mycelia-traceback"]
    assert headers["x-mycelia-attempts"] >= 1


async def test_fault_15_failed_message_is_kept_with_its_reason(rabbit_uri: str) -> None:
    async with run_services(Failing, broker=rabbit_uri):
        await asyncio.to_thread(publish_raw, rabbit_uri, "", "imports", 7)
        body, headers = await dead_letter(rabbit_uri, "imports")

    assert (body, headers["x-mycelia-error"]) == (b"7", "cannot import 7")


async def test_fault_16_requeue_on_error_is_no_hot_loop(rabbit_uri: str) -> None:
    """Nameko: 1,300 attempts a second, without an end."""
    config = {"mycelia": {"requeue_attempts": 4}}
    async with run_services(Failing, broker=rabbit_uri, config=config) as bed:
        await bed.client.publish("tests", "again", 1)
        _, headers = await dead_letter(rabbit_uri, "evt-tests-again--failing.on_again")

    pauses = [b - a for a, b in zip(Failing.attempts, Failing.attempts[1:], strict=False)]
    assert len(Failing.attempts) == 4
    assert headers["x-mycelia-reason"] == "too_many_attempts"
    assert pauses[0] >= 0.09
    assert pauses[2] >= 0.36  # it grows: 0.1, 0.2, 0.4 seconds


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"{not json", {}),
        (b"\x81", {"content_type": "application/x-msgpack", "content_encoding": "binary"}),
        (b"x", {"content_type": "application/x-unknown"}),
    ],
    ids=["broken", "not accepted", "unknown"],
)
async def test_fault_17_undecodable_message_is_kept(
    rabbit_uri: str, body: bytes, properties: dict[str, Any]
) -> None:
    """Nameko: acked and dropped, with a line in the log."""
    async with run_services(Failing, broker=rabbit_uri):
        await asyncio.to_thread(publish_raw, rabbit_uri, "", "imports", body, **properties)
        kept, headers = await dead_letter(rabbit_uri, "imports")

    assert kept == body
    assert headers["x-mycelia-reason"] == "undecodable"


class HostHandler(EventHandler):
    @property
    def broadcast_identifier(self) -> str:
        return "host-1"


class Listening:
    name = "listening"
    heard: list[Any]

    @event_handler("tests", "landed", handler_type=BROADCAST, reliable_delivery=False)
    def on_landed(self, payload: Any) -> None:
        Listening.heard.append(payload)

    @HostHandler.decorator("tests", "reliable", handler_type=BROADCAST)
    def on_reliable(self, payload: Any) -> None:
        Listening.heard.append(payload)


async def test_fault_18_event_without_subscriber_can_be_an_error(rabbit_uri: str) -> None:
    """Nameko: dropped by the broker, and nobody can know."""

    class Announcer:
        name = "announcer"
        emit = EventDispatcher(mandatory=True)

        @rpc
        async def announce(self) -> str:
            try:
                await self.emit("unheard", 1)
            except Unroutable as exc:
                return exc.routing_key
            return "heard"

    async with run_services(Announcer, broker=rabbit_uri) as bed:
        assert await bed.client.call("announcer", "announce") == "unheard"


async def test_fault_18_broadcast_handler_hears_again_after_a_disconnect(rabbit_uri: str) -> None:
    """Its queue goes with the connection, and comes back with the next one."""
    Listening.heard = []
    async with proxied(rabbit_uri) as (proxy, uri), Client(rabbit_uri) as client:
        async with run_services(Listening, broker=uri, timeout=20):
            proxy.drop()

            async def heard() -> bool:
                await client.publish("tests", "landed", "after")
                return "after" in Listening.heard

            await eventually(heard, timeout=15, interval=0.1)


async def test_fault_18_broadcast_with_an_identifier_keeps_events(rabbit_uri: str) -> None:
    """Reliable delivery and BROADCAST together: what is published while the instance is away waits for it."""
    Listening.heard = []
    async with run_services(Listening, broker=rabbit_uri):
        pass
    async with Client(rabbit_uri) as client:
        await client.publish("tests", "reliable", "meanwhile")
    async with run_services(Listening, broker=rabbit_uri):
        await eventually(lambda: Listening.heard == ["meanwhile"])


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.DOWNSTREAM_BLACKHOLE])
async def test_fault_19_reply_sent_while_the_caller_was_away_arrives(
    rabbit_uri: str, fault: Fault
) -> None:
    """Nameko: a reply is acknowledged before it is handed over, and lost without a word if its queue is gone.

    In the black hole the broker has sent the reply, and the network has lost it.
    """
    gate = Gate()

    class Slow:
        name = "slow"

        @rpc
        def work(self) -> str:
            gate.pass_through()
            return "worked"

    async with run_services(Slow, broker=rabbit_uri), proxied(rabbit_uri) as (proxy, uri):
        async with Client(uri, timeout=10) as client:
            call = asyncio.create_task(client.call("slow", "work"))
            await gate.wait_for()
            await proxy.fail(fault)
            gate.open()
            # When a later call of somebody else is answered, the reply has been sent.
            async with Client(rabbit_uri) as other:
                assert await other.call("slow", "work") == "worked"
            assert not call.done()
            proxy.drop()
            await proxy.heal()

            assert await call == "worked"


async def test_fault_20_publishing_without_confirms_changes_nothing_for_the_rest(
    rabbit_uri: str,
) -> None:
    """Nameko: one `use_confirms=False` can turn confirms off for all, and with them `UnknownService`."""

    class Careless:
        name = "careless"
        careless = Publisher(use_confirms=False)
        careful = Publisher(mandatory=True)

        @rpc
        async def publish(self) -> str:
            for _ in range(5):
                await self.careless("x", routing_key="nowhere")
            try:
                await self.careful("x", routing_key="nowhere")
            except Unroutable:
                return "told"
            return "lost"

    async with run_services(Careless, broker=rabbit_uri) as bed:
        assert await bed.client.call("careless", "publish") == "told"
        await bed.client.publish("tests", "x", 1, use_confirms=False)
        with pytest.raises(UnknownService):
            await bed.client.call("nobody", "nothing")
