"""How many workers run at once, and what becomes of requests that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Call, RpcProxy, Runner, rpc
from mycelia.amqp import Link, Message, Properties
from mycelia.errors import RpcTimeout
from mycelia.testing import eventually


class Gate:
    """Workers wait here; the most that were inside at once is counted."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered = 0
        self._lock = threading.Lock()
        self._open_in_threads = threading.Event()
        self.opened_on_loop = asyncio.Event()

    def open(self) -> None:
        self._open_in_threads.set()
        self.opened_on_loop.set()

    def _enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1

    def wait(self) -> int:
        self._enter()
        try:
            assert self._open_in_threads.wait(10)
        finally:
            self._leave()
        return 1

    async def wait_on_loop(self) -> int:
        self._enter()
        try:
            await self.opened_on_loop.wait()
        finally:
            self._leave()
        return 1


def make_gated(gate: Gate, concurrency: int | None) -> type:
    class Gated:
        name = "gated"

        @rpc(concurrency=concurrency)
        def threaded(self) -> int:
            return gate.wait()

        @rpc(concurrency=concurrency)
        async def on_loop(self) -> int:
            return await gate.wait_on_loop()

    return Gated


async def run_many(invoke: Invoke, gate: Gate, methods: list[str], expected_inside: int) -> None:
    """Call all `methods`, see that exactly so many get in, then open the gate and see all answered."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(invoke("gated", method)) for method in methods]  # type: ignore[arg-type]
        await eventually(lambda: gate.inside == expected_inside, 30)
        gate.open()
    assert [task.result() for task in tasks] == [1] * len(methods)
    assert gate.most == expected_inside


@pytest.mark.parametrize("method", ["threaded", "on_loop"])
async def test_entrypoint_s_concurrency_bounds_its_workers(
    serve: Serve, invoke: Invoke, method: str
) -> None:
    gate = Gate()
    await serve(make_gated(gate, 3))

    await run_many(invoke, gate, [method] * 8, expected_inside=3)


async def test_max_workers_bounds_all_entrypoints_together(serve: Serve, invoke: Invoke) -> None:
    gate = Gate()
    await serve(make_gated(gate, None), config={"max_workers": 2})

    await run_many(invoke, gate, ["threaded", "on_loop"] * 3, expected_inside=2)


async def test_each_entrypoint_has_slots_of_its_own_without_max_workers(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()
    await serve(make_gated(gate, 1))

    await run_many(invoke, gate, ["threaded", "threaded", "on_loop", "on_loop"], expected_inside=2)


async def test_def_methods_have_ten_workers_and_async_ones_the_setting_s(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()
    await serve(make_gated(gate, None), config={"mycelia": {"async_concurrency": 4}})

    await run_many(invoke, gate, ["threaded"] * 12 + ["on_loop"] * 6, expected_inside=14)


async def test_slow_entrypoint_does_not_hold_up_another_of_the_same_queue(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()
    await serve(make_gated(gate, 1))
    waiting = asyncio.ensure_future(invoke("gated", "threaded"))
    await eventually(lambda: gate.inside == 1)
    gate.opened_on_loop.set()

    assert await invoke("gated", "on_loop", timeout=15) == 1

    gate.open()
    await waiting


async def test_def_methods_that_call_each_other_do_not_starve_of_threads(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()

    class Pair:
        name = "pair"
        me = RpcProxy("pair")

        @rpc
        def outer(self) -> int:
            gate.wait()
            return int(self.me.inner()) + 1

        @rpc
        def inner(self) -> int:
            return 1

    await serve(Pair)
    calls = [asyncio.ensure_future(invoke("pair", "outer", timeout=15)) for _ in range(10)]
    await eventually(lambda: gate.inside == 10)

    gate.open()

    assert await asyncio.gather(*calls) == [2] * 10


@pytest.mark.parametrize("kind", ["threaded", "on_loop"])
async def test_a_method_that_fills_the_window_does_not_keep_the_others_from_their_requests(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    gate = Gate()

    class Pair:
        name = "pair"

        @rpc(concurrency=5)
        def threaded(self) -> int:
            return gate.wait()

        @rpc(concurrency=5)
        async def on_loop(self) -> int:
            return await gate.wait_on_loop()

        @rpc(concurrency=5)
        async def quick(self) -> str:
            return "quick"

    await serve(Pair)
    calls = [asyncio.ensure_future(invoke("pair", kind, timeout=20)) for _ in range(600)]
    await eventually(lambda: gate.inside == 5)

    assert await invoke("pair", "quick", timeout=5) == "quick"
    assert gate.entered == 5  # not one of the others has ended
    gate.open()
    assert await asyncio.gather(*calls) == [1] * 600


def expired_in(runner: Runner) -> int:
    """How many requests were skipped because nobody waited for them any more."""
    return sum(lane.statistics().expired for lane in runner.containers[0].lanes)


class Noting:
    name = "noting"
    ran: list[str] = []  # noqa: RUF012  shared by all instances on purpose

    @rpc
    async def note(self, what: str) -> str:
        self.ran.append(what)
        return what


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    Noting.ran.clear()


@pytest.mark.parametrize("sent_as", [int, str, float])
async def test_expired_request_is_skipped_and_counted(
    serve: Serve, invoke: Invoke, link: Link, sent_as: type
) -> None:
    runner = await serve(Noting)
    deadline_ms = int((time.time() - 1) * 1000)
    expired: dict[str, Any] = {"nameko.deadline_ms": sent_as(deadline_ms)}
    properties = Properties(
        "application/json", "utf-8", expired, reply_to="gone", correlation_id="1"
    )
    link.publish_nowait(
        Message("nameko-rpc", "noting.note", b'{"args": ["late"], "kwargs": {}}', properties)
    )

    assert await invoke("noting", "note", "in time") == "in time"

    assert Noting.ran == ["in time"]
    assert expired_in(runner) == 1
    assert await link.message_count("rpc-noting") == 0


async def test_request_that_expires_while_it_waits_for_a_slot_is_skipped(
    serve: Serve, invoke: Invoke
) -> None:
    gate = Gate()
    runner = await serve(make_gated(gate, 1))
    first = asyncio.ensure_future(invoke("gated", "on_loop"))
    await eventually(lambda: gate.inside == 1)

    with pytest.raises(RpcTimeout, match=r"gated\.on_loop: no reply within 0\.05 s"):
        await invoke("gated", "on_loop", timeout=0.05)
    gate.open()
    await first

    await eventually(lambda: expired_in(runner) == 1)
    assert gate.entered == 1


async def test_request_without_a_deadline_is_run(serve: Serve, link: Link, invoke: Invoke) -> None:
    await serve(Noting)
    properties = Properties("application/json", "utf-8")
    link.publish_nowait(
        Message("nameko-rpc", "noting.note", b'{"args": ["old"], "kwargs": {}}', properties)
    )

    await eventually(lambda: Noting.ran == ["old"])


@pytest.mark.parametrize("deadline", ["soon", None, True, [1], "9" * 5000, 2**63 - 1])
async def test_deadline_that_is_no_number_counts_as_none(
    serve: Serve, link: Link, deadline: Any
) -> None:
    await serve(Noting)
    headers = {"nameko.deadline_ms": deadline}
    properties = Properties("application/json", "utf-8", headers)
    link.publish_nowait(
        Message("nameko-rpc", "noting.note", b'{"args": ["odd"], "kwargs": {}}', properties)
    )

    await eventually(lambda: Noting.ran == ["odd"])


async def test_workers_of_different_calls_know_their_own_call(serve: Serve, invoke: Invoke) -> None:
    from mycelia import get_current_call

    class Who:
        name = "who"

        @rpc
        def threaded(self, value: int) -> list[Any]:
            return self.describe(get_current_call())

        @rpc
        async def on_loop(self, value: int) -> list[Any]:
            await asyncio.sleep(0)
            return self.describe(get_current_call())

        @staticmethod
        def describe(call: Call | None) -> list[Any]:
            assert call is not None
            return [call.target.name, *call.args, call.attempt]

    await serve(Who)

    answers = await asyncio.gather(
        *(invoke("who", method, n) for n in range(20) for method in ("threaded", "on_loop"))
    )

    expected = [[f"who.{m}", n, 1] for n in range(20) for m in ("threaded", "on_loop")]
    assert answers == expected
    assert get_current_call() is None
