"""What a nested call inherits from the call being handled: deadline, context data, call ids. In both kinds of worker."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    DependencyProvider,
    EventDispatcher,
    RpcProxy,
    WorkerContext,
    event_handler,
    get_current_call,
    rpc,
)
from mycelia.testing import eventually


def describe() -> dict[str, Any]:
    """What the running worker knows of itself."""
    call = get_current_call()
    assert call is not None
    context = {k: v for k, v in call.context.items() if k not in ("call_id_stack", "deadline_ms")}
    remaining = call.remaining()
    return {
        "remaining": None if remaining is None else round(remaining, 1),
        "context": context,
        "stack": call.call_id_stack,
    }


class Language(DependencyProvider):
    """Puts something into the context data, as Nameko's providers do."""

    def worker_setup(self, worker_ctx: WorkerContext) -> None:
        worker_ctx.data["language"] = "de"
        worker_ctx.data["user_id"] = 7


class Back:
    name = "back"

    @rpc
    def threaded(self) -> dict[str, Any]:
        return describe()

    @rpc
    async def on_loop(self) -> dict[str, Any]:
        return describe()


class Front:
    name = "front"
    back = RpcProxy("back")
    impatient = RpcProxy("back", timeout=10)
    language = Language()

    @rpc
    def threaded(self, method: str, proxy: str) -> dict[str, Any]:
        found: dict[str, Any] = getattr(self, proxy)[method]()
        return found

    @rpc
    async def on_loop(self, method: str, proxy: str) -> dict[str, Any]:
        found: dict[str, Any] = await getattr(self, proxy)[method]()
        return found

    @rpc
    def threaded_async(self, method: str, proxy: str) -> dict[str, Any]:
        found: dict[str, Any] = getattr(self, proxy)[method].call_async().result()
        return found

    @rpc
    async def on_loop_async(self, method: str, proxy: str) -> dict[str, Any]:
        found: dict[str, Any] = await getattr(self, proxy)[method].call_async().result()
        return found


FRONTS = ["threaded", "on_loop", "threaded_async", "on_loop_async"]


@pytest.mark.parametrize("back", ["threaded", "on_loop"])
@pytest.mark.parametrize("front", FRONTS)
async def test_nested_call_inherits_deadline_context_and_call_ids(
    serve: Serve, invoke: Invoke, front: str, back: str
) -> None:
    await serve(Front, Back)

    found = await invoke("front", front, back, "back", timeout=15)

    assert 10 < found["remaining"] <= 15
    assert found["context"] == {"language": "de", "user_id": 7}
    stack = [call_id.rpartition(".")[0] for call_id in found["stack"]]
    assert stack == ["tester.call", f"front.{front}", f"back.{back}"]


@pytest.mark.parametrize("front", FRONTS)
async def test_proxy_s_own_timeout_is_the_deadline_where_it_comes_first(
    serve: Serve, invoke: Invoke, front: str
) -> None:
    await serve(Front, Back)

    found = await invoke("front", front, "on_loop", "impatient", timeout=15)

    assert 0 < found["remaining"] <= 10


async def test_call_id_stack_is_as_long_as_configured(serve: Serve, invoke: Invoke) -> None:
    class Recursive:
        name = "recursive"
        me = RpcProxy("recursive")

        @rpc
        async def down(self, depth: int) -> list[str]:
            if depth:
                found: list[str] = await self.me.down(depth - 1)
                return found
            call = get_current_call()
            assert call is not None
            return call.call_id_stack

    await serve(Recursive, config={"parent_calls_tracked": 2})

    stack = await invoke("recursive", "down", 5)

    assert [call_id.rpartition(".")[0] for call_id in stack] == ["recursive.down"] * 3
    assert len(set(stack)) == 3


@pytest.mark.parametrize("tracked", [0, 10])
async def test_provider_knows_the_call_before_and_the_first_of_all(
    serve: Serve, invoke: Invoke, tracked: int
) -> None:
    seen: dict[str, WorkerContext] = {}

    class Watcher(DependencyProvider):
        def worker_setup(self, worker_ctx: WorkerContext) -> None:
            seen[worker_ctx.entrypoint.method_name] = worker_ctx

    class Nested:
        name = "nested"
        me = RpcProxy("nested")
        watcher = Watcher()

        @rpc
        async def first(self) -> None:
            await self.me.second()

        @rpc
        async def second(self) -> None:
            await self.me.third()

        @rpc
        async def third(self) -> None: ...

    await serve(Nested, config={"parent_calls_tracked": tracked})
    await invoke("nested", "first")

    first, second, third = (seen[name] for name in ("first", "second", "third"))
    assert (second.immediate_parent_call_id, third.immediate_parent_call_id) == (
        first.call_id,
        second.call_id,
    )
    # where no parents are sent on, the first that is known is the one before
    assert third.origin_call_id == (first.origin_call_id if tracked else second.call_id)
    assert str(first.origin_call_id).startswith("tester.call.")


async def test_event_inherits_context_and_call_ids_but_no_deadline(
    serve: Serve, invoke: Invoke
) -> None:
    seen: list[dict[str, Any]] = []

    class Teller:
        name = "teller"
        emit = EventDispatcher()
        language = Language()

        @rpc
        def threaded(self) -> None:
            self.emit("told", None)

        @rpc
        async def on_loop(self) -> None:
            await self.emit("told", None)

    class Listener:
        name = "listener"

        @event_handler("teller", "told")
        async def told(self, payload: None) -> None:
            seen.append(describe())

    await serve(Teller, Listener)

    await invoke("teller", "threaded", timeout=15)
    await invoke("teller", "on_loop", timeout=15)

    await eventually(lambda: len(seen) == 2)
    for found, method in zip(seen, ("threaded", "on_loop"), strict=True):
        assert found["remaining"] is None
        assert found["context"] == {"language": "de", "user_id": 7}
        stack = [call_id.rpartition(".")[0] for call_id in found["stack"]]
        assert stack == ["tester.call", f"teller.{method}", "listener.told"]


async def test_context_changed_by_a_worker_does_not_leak_into_the_next(
    serve: Serve, invoke: Invoke
) -> None:
    class Forgetful:
        name = "forgetful"

        @rpc
        def threaded(self) -> dict[str, Any]:
            return self.mark()

        @rpc
        async def on_loop(self) -> dict[str, Any]:
            return self.mark()

        @staticmethod
        def mark() -> dict[str, Any]:
            call = get_current_call()
            assert call is not None
            before = dict(call.context)
            call.context["mark"] = True
            return before

    await serve(Forgetful)

    for method in ("threaded", "on_loop", "threaded", "on_loop"):
        assert "mark" not in await invoke("forgetful", method)
