"""`SharedDependency`: one object for all workers, unless a subclass has a word of its own for each of them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    Config,
    EventDispatcher,
    Logger,
    Publisher,
    RpcProxy,
    SharedDependency,
    WorkerContext,
    rpc,
)

KINDS = ["on_loop", "threaded"]


class Back:
    name = "back"

    @rpc
    async def echo(self, value: Any) -> Any:
        return value


def serving(provider: Any) -> type:
    class Front:
        name = "front"
        dependency = provider

        @rpc
        async def on_loop(self) -> Any:
            return describe(self.dependency)

        @rpc
        def threaded(self) -> Any:
            return describe(self.dependency)

    return Front


def describe(dependency: Any) -> Any:
    return dependency if isinstance(dependency, str) else type(dependency).__name__


class OwnWord:
    """What a subclass says for each worker."""

    def get_dependency(self, worker_ctx: WorkerContext) -> str:
        return f"mine, for {worker_ctx.entrypoint.method_name}"


def subclass_of(base: Any) -> Any:
    return type(f"My{base.__name__}", (OwnWord, base), {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("base", "args"),
    [
        (RpcProxy, ("back",)),
        (EventDispatcher, ()),
        (Publisher, ()),
        (Config, ()),
        (Logger, ()),
        (SharedDependency, ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_subclass_s_own_get_dependency_always_wins(
    serve: Serve, invoke: Invoke, base: Any, args: tuple[Any, ...], kind: str
) -> None:
    await serve(serving(subclass_of(base)(*args)))

    assert await invoke("front", kind) == f"mine, for {kind}"


@pytest.mark.parametrize(
    ("base", "args", "on_loop", "threaded"),
    [
        (RpcProxy, ("back",), "ServiceProxy", "BlockingServiceProxy"),
        (EventDispatcher, (), "Dispatch", "BlockingDispatch"),
        (Publisher, (), "Publish", "BlockingPublish"),
        (Config, (), "ConfigView", "ConfigView"),
        (SharedDependency, (), "Wrapping", "Wrapping"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_subclass_may_build_on_what_its_base_injects(
    serve: Serve, invoke: Invoke, base: Any, args: tuple[Any, ...], on_loop: str, threaded: str
) -> None:
    class Wrapping(base):  # type: ignore[misc]  # its base is a parameter
        def get_dependency(self, worker_ctx: WorkerContext) -> str:
            return f"around {describe(super().get_dependency(worker_ctx))}"

    await serve(serving(Wrapping(*args)))

    assert await invoke("front", "on_loop") == f"around {on_loop}"
    assert await invoke("front", "threaded") == f"around {threaded}"


async def test_shared_dependency_is_one_object_and_knows_the_kind_of_its_workers(
    serve: Serve, invoke: Invoke
) -> None:
    asked: list[bool] = []

    class Pool(SharedDependency):
        def shared_dependency(self, is_async: bool) -> str:
            asked.append(is_async)
            return "async pool" if is_async else "pool"

    await serve(serving(Pool()))
    at_start = list(asked)

    for _ in range(3):
        assert await invoke("front", "on_loop") == "async pool"
        assert await invoke("front", "threaded") == "pool"
    assert sorted(asked) == [False, True]
    assert asked == at_start


async def test_declaration_for_def_methods_blocks_there_and_refuses_to_on_the_loop(
    serve: Serve, invoke: Invoke
) -> None:
    class Front:
        name = "front"
        back = RpcProxy("back", timeout=5).blocking
        emit = EventDispatcher().blocking
        publish = Publisher().blocking

        @rpc
        def threaded(self) -> Any:
            self.emit("told", 1)
            self.publish(1, routing_key="nowhere")
            return self.back.echo(1)

        @rpc
        async def on_loop(self) -> list[str]:
            said = []
            for use in (
                lambda: self.back.echo(1),
                lambda: self.emit("told", 1),
                lambda: self.publish(1),
            ):
                with pytest.raises(Exception, match="would wait for itself") as refused:
                    use()
                said.append(refused.typename)
            return said

    await serve(Front, Back)

    assert await invoke("front", "threaded") == 1
    assert await invoke("front", "on_loop") == ["RuntimeStateError"] * 3
