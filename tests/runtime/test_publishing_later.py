"""Events and messages for later: from services, clients and threads, kept by the broker meanwhile."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mycelia import EventDispatcher, Publisher, Queue, consume, event_handler, get_current_call, rpc
from mycelia.broker.node import PrivateNode
from mycelia.errors import ConfigError
from mycelia.testing import eventually, run_services

heard: list[tuple[str, float, Any]] = []


def note(what: Any) -> None:
    call = get_current_call()
    assert call is not None
    heard.append((what, time.monotonic(), dict(call.context)))


class Shop:
    name = "shop"
    emit = EventDispatcher()
    publish = Publisher(queue=Queue("orders"))
    emit_blocking = EventDispatcher().blocking
    publish_blocking = Publisher(queue=Queue("orders")).blocking

    @rpc
    async def remind(self, after: Any) -> None:
        await self.emit.later(after, "reminder", "async")
        await self.publish.later(after, "async message")

    @rpc
    def remind_in_thread(self, after: Any) -> None:
        self.emit_blocking.later(after, "reminder", "thread")
        self.publish_blocking.later(after, "thread message")

    @rpc
    async def remind_at(self, seconds: float) -> None:
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        await self.emit.at(when, "reminder", "at")
        await self.publish.at(when, "at message")

    @event_handler("shop", "reminder")
    async def reminded(self, payload: str) -> None:
        note(payload)

    @consume(Queue("orders"))
    async def ordered(self, payload: str) -> None:
        note(payload)


@pytest.fixture(params=["memory", "rabbit"])
def broker(request: pytest.FixtureRequest) -> str | None:
    heard.clear()
    return None if request.param == "memory" else request.getfixturevalue("rabbit_uri")


def soon(*expected: str) -> bool:
    return {what for what, _, _ in heard} >= set(expected)


async def test_what_is_published_for_later_arrives_then_with_its_context(
    broker: str | None,
) -> None:
    async with run_services(Shop, broker=broker, timeout=20) as bed:
        shop = await bed.client.service("shop", context={"user_id": 7})
        began = time.monotonic()
        await shop.remind("1s")
        await shop.remind_in_thread(1.25)
        await bed.client.publish("shop", "reminder", "client", after="750ms")
        assert heard == []
        everything = ("async", "async message", "thread", "thread message", "client")
        await eventually(lambda: soon(*everything), 20)

    assert len(heard) == 5
    for what, at, context in heard:
        least = {"client": 0.75, "thread": 1.25, "thread message": 1.25}.get(what, 1.0)
        assert at - began >= least - 0.01
        assert context.get("user_id") == (None if what == "client" else 7)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_what_is_published_for_later_outlives_a_restart_of_the_broker(
    own_rabbit_node: PrivateNode,
) -> None:
    """The broker stops in order, and comes back before the time is up."""
    heard.clear()
    after, began = 45.0, time.monotonic()
    everything = (
        "async",
        "async message",
        "thread",
        "thread message",
        "at",
        "at message",
        "client",
    )
    async with run_services(Shop, broker=own_rabbit_node.uri(), timeout=20) as bed:
        shop = await bed.client.service("shop", context={"user_id": 7})
        await shop.remind(after)
        await shop.remind_in_thread(after)
        await shop.remind_at(after)
        await bed.client.publish("shop", "reminder", "client", after=after)
        await asyncio.to_thread(own_rabbit_node.stop)
        await asyncio.to_thread(own_rabbit_node.start, leash=True)
        assert time.monotonic() - began < after, "the machine is too slow: the time was up before"
        assert heard == []
        await eventually(lambda: soon(*everything), 60)

    assert sorted(what for what, _, _ in heard) == sorted(everything)
    assert all(at - began >= after - 0.1 for _, at, _ in heard)
    users = {what: context.get("user_id") for what, _, context in heard}
    assert users == {what: None if what == "client" else 7 for what in everything}


async def test_moments_that_have_passed_are_now(broker: str | None) -> None:
    async with run_services(Shop, broker=broker, timeout=20) as bed:
        shop = await bed.client.service("shop")
        await shop.remind_at(-3600)
        await eventually(lambda: soon("at", "at message"), 30)
        heard.clear()
        began = time.monotonic()
        await shop.remind_at(0.5)
        await eventually(lambda: soon("at", "at message"), 30)

    assert all(at - began >= 0.45 for _, at, _ in heard)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"after": "soon"}, "is no duration"),
        ({"after": -1}, "is no duration"),
        ({"after": "46d"}, "45 days"),
        ({"after": "5m", "mandatory": True}, "Leave mandatory out"),
    ],
)
async def test_what_cannot_be_is_told_at_once(options: Any, text: str) -> None:
    async with run_services(Shop) as bed:
        with pytest.raises(ConfigError, match=text):
            await bed.client.publish("shop", "reminder", 1, **options)


async def test_a_moment_without_a_time_zone_is_refused() -> None:
    class Naive:
        name = "naive"
        emit = EventDispatcher()

        @rpc
        async def remind(self) -> str:
            try:
                await self.emit.at(datetime(2030, 1, 1), "x")  # noqa: DTZ001
            except ConfigError as exc:
                return str(exc)
            return ""

    async with run_services(Naive) as bed:
        assert "no moment in a time zone" in await bed.client.call("naive", "remind")
