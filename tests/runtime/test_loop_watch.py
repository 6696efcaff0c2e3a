"""A blocked event loop is said, while it is blocked, with what blocks it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import uvloop

from mycelia import Client, Runner, rpc
from mycelia.log_event import LogEvent
from mycelia.runtime import LoopWatch
from mycelia.testing import eventually

URI = "memory://loop-watch"


class Careless:
    name = "careless"

    @rpc
    async def sleeps(self, seconds: float) -> None:
        self.down_below(seconds)

    def down_below(self, seconds: float) -> None:
        time.sleep(seconds)

    @rpc
    async def computes(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    @rpc
    def in_a_thread(self, seconds: float) -> None:
        time.sleep(seconds)

    @rpc
    async def short(self) -> int:
        return sum(range(1000))


def told(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    found = [r.msg for r in caplog.records if isinstance(r.msg, LogEvent) and r.msg.name == name]
    return [dict(line.fields) for line in found]


def serve_and(calls: Any, *, on_uvloop: bool = False, blocked_after: float = 0.5) -> None:
    """Run `calls(client)` against a watched service. On a loop of its own: the suite's does not let itself be blocked."""

    async def main() -> None:
        async with Runner({"AMQP_URI": URI}, [Careless]):
            with LoopWatch(blocked_after):
                async with Client(URI, timeout=20) as client:
                    await calls(client)

    factory = uvloop.new_event_loop if on_uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("on_uvloop", [False, True], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("method", "innermost"), [("sleeps", "down_below < "), ("computes", "computes < ")]
)
def test_blockage_is_told_with_its_call_and_stack_and_again_when_it_is_over(
    method: str, innermost: str, on_uvloop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def calls(client: Client) -> None:
        await client.call("careless", method, 1.6)
        await eventually(lambda: len(told(caplog, "event_loop_free")) == 1)
        await client.call("careless", method, 1.6)
        await eventually(lambda: len(told(caplog, "event_loop_free")) == 2)

    serve_and(calls, on_uvloop=on_uvloop)

    begun, over = told(caplog, "event_loop_blocked"), told(caplog, "event_loop_free")
    assert [line["call"] for line in begun + over] == [f"careless.{method}"] * 4
    assert all(0.5 <= line["blocked_s"] < 1.6 for line in begun)
    assert all(line["blocked_s"] >= 1.2 for line in over)
    for line in begun:
        assert line["stack"].partition(" ")[2].startswith(innermost)
        assert line["stack"].startswith("test_loop_watch.py:")
    levels = {r.levelname for r in caplog.records if "event_loop_blocked" in r.getMessage()}
    assert levels == {"ERROR"}


def test_load_and_slow_threads_are_no_blockage(caplog: pytest.LogCaptureFixture) -> None:
    async def calls(client: Client) -> None:
        slow = [client.call("careless", "in_a_thread", 1.5) for _ in range(5)]
        waiting = asyncio.gather(*slow)
        while not waiting.done():
            await asyncio.gather(*(client.call("careless", "short") for _ in range(50)))
        await waiting

    serve_and(calls, blocked_after=1.0)

    assert told(caplog, "event_loop_blocked") == []


@pytest.mark.parametrize("blocked_after", [0.0, 1.0])
def test_no_thread_is_left_and_none_is_started_for_nothing(blocked_after: float) -> None:
    seen: list[list[str]] = []

    def watching() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "mycelia-loop-watch"]

    async def calls(client: Client) -> None:
        seen.append(watching())

    serve_and(calls, blocked_after=blocked_after)

    assert seen == [["mycelia-loop-watch"] if blocked_after else []]
    assert watching() == []
