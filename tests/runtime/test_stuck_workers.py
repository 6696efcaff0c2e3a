"""Workers that take too long: their slots come back, their calls end, and somebody is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Call, Client, Next, Outcome, Runner, event_handler, rpc, timer
from mycelia.amqp import Link
from mycelia.errors import CallError
from mycelia.testing import eventually

from .dead_letter_box import read_dead_letters

MANY = 100


class Hangs:
    """A service whose methods never return until the test lets them."""

    def __init__(self) -> None:
        self.release_threads = threading.Event()
        self.cancelled = 0
        outer = self

        class Service:
            name = "hangs"

            @event_handler("source", "on_loop", timeout=0.2, concurrency=10)
            async def on_loop(self, payload: Any) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    outer.cancelled += 1

            @event_handler("source", "threaded", timeout=0.2, concurrency=10)
            def threaded(self, payload: Any) -> None:
                assert outer.release_threads.wait(30)

            @rpc
            async def call_on_loop(self) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    outer.cancelled += 1

            @rpc(concurrency=5)
            def call_threaded(self, hang: bool = True) -> str:
                if hang:
                    assert outer.release_threads.wait(30)
                return "done"

        self.service = Service


@pytest.fixture
def hangs() -> Any:
    made = Hangs()
    yield made
    made.release_threads.set()


async def passing(call: Call, next: Next) -> Outcome:
    return await next(call)


@pytest.mark.parametrize("inbound", [(), (passing,)], ids=["bare", "with middleware"])
@pytest.mark.parametrize("method", ["on_loop", "threaded"])
async def test_a_hundred_handlers_that_hang_are_given_up_and_the_entrypoint_lives_on(
    serve: Serve, client: Client, link: Link, hangs: Hangs, method: str, inbound: Any
) -> None:
    runner = await serve(hangs.service, inbound=inbound)
    for n in range(MANY):
        await client.publish("source", method, n)
    letters = await read_dead_letters(link, f"evt-source-{method}--hangs.{method}", MANY)

    headers = letters[0].properties.headers or {}
    assert headers["x-mycelia-error-type"] == "HandlerTimeout"
    assert headers["x-mycelia-error"].startswith(f"hangs.{method}: not done after 0.2 s")
    assert sorted(int(letter.body) for letter in letters) == list(range(MANY))
    lanes = {lane.target.method: lane.statistics() for lane in runner.containers[0].lanes}
    assert lanes[method].active == 0
    assert lanes[method].timed_out == MANY
    if method == "on_loop":
        assert hangs.cancelled == MANY


@pytest.mark.parametrize("method", ["call_on_loop", "call_threaded"])
async def test_a_call_ends_at_its_deadline_and_gives_its_slot_back(
    serve: Serve, invoke: Invoke, hangs: Hangs, method: str
) -> None:
    runner = await serve(hangs.service)
    calls = [invoke("hangs", method, timeout=0.3) for _ in range(20)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, CallError) for result in results)

    def is_idle() -> bool:
        return all(lane.active == 0 for lane in runner.containers[0].lanes)

    await eventually(is_idle, 30)
    assert await invoke("hangs", "call_threaded", False, timeout=5) == "done"


async def test_a_worker_that_refuses_to_be_cancelled_loses_its_slot(
    serve: Serve, client: Client, link: Link
) -> None:
    release = asyncio.Event()

    class Stubborn:
        name = "stubborn"

        @event_handler("source", "happened", timeout=0.1, concurrency=1)
        async def happened(self, payload: str) -> None:
            while payload == "hang" and not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    runner = await serve(Stubborn)
    await client.publish("source", "happened", "hang")
    await client.publish("source", "happened", "good")
    (letter,) = await read_dead_letters(link, "evt-source-happened--stubborn.happened", 1)

    [lane] = runner.containers[0].lanes
    await eventually(lambda: lane.statistics().finished == 2)
    assert letter.body == b'"hang"'
    release.set()


async def test_a_method_that_ends_in_spite_of_its_cancellation_keeps_its_result(
    serve: Serve, client: Client
) -> None:
    class Shielded:
        name = "shielded"

        @event_handler("source", "happened", timeout=0.1)
        async def happened(self, payload: str) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # it cleans up, and is done
                await asyncio.Event().wait()

    runner = await serve(Shielded)
    await client.publish("source", "happened", "x")

    [lane] = runner.containers[0].lanes
    await eventually(lambda: lane.statistics().finished == 1)
    assert lane.statistics().failed == 0


async def test_a_timer_that_hangs_ticks_again(serve: Serve) -> None:
    ticks = 0

    class Ticking:
        name = "ticking"

        @timer(0.05, timeout=0.1)
        async def tick(self) -> None:
            nonlocal ticks
            ticks += 1
            await asyncio.Event().wait()

    await serve(Ticking)
    await eventually(lambda: ticks >= 3, 30)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    caplog.set_level(logging.INFO, "mycelia")

    def starting_with(name: str) -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if message.split(" ")[0] == name]

    return starting_with


async def test_a_slow_worker_is_said_once(
    serve: Serve, client: Client, lines: Callable[[str], list[str]]
) -> None:
    release = asyncio.Event()

    class Slow:
        name = "slow"

        @event_handler("source", "happened")
        async def happened(self, payload: str) -> None:
            await release.wait()

    await serve(Slow, config={"mycelia": {"slow_after": 0.2}})
    await client.publish("source", "happened", "x")
    await eventually(lambda: lines("worker_slow"), 30)
    watched_until = time.monotonic() + 0.5
    await eventually(lambda: time.monotonic() > watched_until)  # five more looks say nothing new
    release.set()

    [line] = lines("worker_slow")
    assert line.startswith("worker_slow call=slow.happened call_id=slow.happened.")


async def test_a_lane_without_a_free_slot_is_said_once_a_minute(
    serve: Serve, client: Client, lines: Callable[[str], list[str]]
) -> None:
    release = asyncio.Event()

    class Full:
        name = "full"

        @event_handler("source", "happened", concurrency=2)
        async def happened(self, payload: str) -> None:
            await release.wait()

    runner: Runner = await serve(Full)
    [lane] = runner.containers[0].lanes
    for n in range(4):
        await client.publish("source", "happened", n)
    await eventually(lambda: lane.waiting == 2)
    watch = runner.host.watch(asyncio.get_running_loop())
    now = time.monotonic()
    for minutes in range(3):
        for seconds in (0, 30, 59):
            watch.look(now + 60 * minutes + seconds)
    release.set()

    assert len(lines("lane_full")) == 2
    assert lines("lane_full")[0].startswith(
        "lane_full call=full.happened limit=2 waiting=2 full_s=60.0 oldest_worker_s="
    )


async def test_the_watch_ends_with_its_services(serve: Serve) -> None:
    class Idle:
        name = "idle"

        @rpc
        async def nothing(self) -> None: ...

    runner = await serve(Idle)
    await runner.stop()

    loop = asyncio.get_running_loop()
    assert runner.host.watch(loop).is_idle
