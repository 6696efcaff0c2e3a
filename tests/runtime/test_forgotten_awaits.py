"""A forgotten `await` is an error of the worker, which says what was forgotten and where."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    Call,
    DependencyProvider,
    EventDispatcher,
    Next,
    Outcome,
    Publisher,
    RpcProxy,
    rpc,
)
from mycelia.errors import RemoteError
from mycelia.runtime.forgotten_awaits import forgotten


class PerWorker(DependencyProvider):
    """Has a hook, so that workers go the long way."""

    def worker_setup(self, worker_ctx: Any) -> None: ...


class Awaited(DependencyProvider):
    """Gives `def` methods what must be awaited, and forgets it itself after `forgets()`."""

    emit = EventDispatcher()

    def get_dependency(self, worker_ctx: Any) -> Any:
        return self.emit.awaited()

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        if worker_ctx.entrypoint.method_name == "hook":
            self.emit.awaited()("placed", {})


class InThreads:
    name = "in_threads"
    emit = Awaited()

    @rpc
    def method(self) -> str:
        self.emit("placed", {})
        return "done"

    @rpc
    def hook(self) -> str:
        return "done"

    @rpc
    def fine(self) -> str:
        return "fine"


class Forgetful:
    name = "forgetful"
    emit = EventDispatcher()
    publish = Publisher(queue="nowhere")
    me = RpcProxy("forgetful")

    @rpc
    async def event(self) -> str:
        self.emit("placed", {})  # type: ignore[unused-coroutine]
        return "done"

    @rpc
    async def message(self) -> str:
        self.publish({})  # type: ignore[unused-coroutine]
        return "done"

    @rpc
    async def proxy(self) -> str:
        answer = self.me.fine()
        return f"done {answer is not None}"

    @rpc
    async def returned(self) -> Any:
        return self.me.fine()

    @rpc
    async def own(self) -> Any:
        return self._helper()

    async def _helper(self) -> None: ...

    @rpc
    async def own_error(self) -> None:
        self.emit("placed", {})  # type: ignore[unused-coroutine]
        raise LookupError("mine")

    @rpc
    async def fine(self) -> str:
        return "fine"

    @rpc
    async def in_tasks(self) -> list[Any]:
        task = asyncio.create_task(self.me.fine())
        return [*await asyncio.gather(self.me.fine(), self.me.fine()), await task]


class WithHooks(Forgetful):
    per_worker = PerWorker()


async def pass_on(call: Call, next: Next) -> Outcome:
    return await next(call)


@pytest.mark.parametrize("service", [Forgetful, WithHooks])
@pytest.mark.parametrize("middleware", [(), (pass_on,)], ids=["plain", "outbound middleware"])
@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "event",
            r'missing before the publishing of "placed" \(test_forgotten_awaits\.py, line \d+',
        ),
        (
            "message",
            r'missing before the publishing of "nowhere" \(test_forgotten_awaits\.py, line',
        ),
        ("proxy", r"missing before forgetful\.fine: it was never run"),
        ("returned", r"missing before forgetful\.fine, which the method returns"),
        ("own", r"missing before Forgetful\._helper, which the method returns"),
        ("own_error", "mine"),
    ],
)
async def test_forgotten_await_is_the_workers_error(
    serve: Serve, invoke: Invoke, service: type, middleware: Any, method: str, says: str
) -> None:
    await serve(service, outbound=middleware)

    with pytest.raises(RemoteError, match=says):
        await invoke("forgetful", method)
    assert await invoke("forgetful", "fine") == "fine"  # and of no other worker


@pytest.mark.parametrize("service", [Forgetful, WithHooks])
@pytest.mark.parametrize("method", ["event", "proxy", "own"])
async def test_log_line_names_the_users_line_and_shows_no_frames_of_ours(
    serve: Serve, invoke: Invoke, service: type, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(service)

    with pytest.raises(RemoteError):
        await invoke("forgetful", method)
    with pytest.raises(RemoteError, match="mine"):
        await invoke("forgetful", "own_error")

    line, own = (r for r in caplog.records if "worker_failed" in r.getMessage())
    assert "`await` is missing before" in line.getMessage()
    assert line.exc_info is None
    assert own.exc_info is not None
    assert own.exc_info[2] is not None  # of what the method raised, all is shown


@pytest.mark.parametrize("method", ["method", "hook"])
async def test_def_methods_and_hooks_forget_too(serve: Serve, invoke: Invoke, method: str) -> None:
    await serve(InThreads)

    with pytest.raises(
        RemoteError, match=r'publishing of "placed" \(test_forgotten_awaits\.py, line'
    ):
        await invoke("in_threads", method)
    assert await invoke("in_threads", "fine") == "fine"
    assert forgotten == {}


async def test_coroutines_handed_to_tasks_are_not_forgotten(serve: Serve, invoke: Invoke) -> None:
    await serve(Forgetful)

    assert await invoke("forgetful", "in_tasks") == ["fine"] * 3
