"""The life of a worker: which hooks run, in which order, where, and what becomes of their errors."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import DependencyProvider, WorkerContext, rpc
from mycelia.errors import RemoteError

HOOKS = ["get_dependency", "worker_setup", "worker_result", "worker_teardown"]


class Boom(Exception):
    """What a broken hook raises."""


class Scene:
    """What happened, in order, and which hook is to break."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.threads: set[int] = set()
        self.broken: tuple[str, str] | None = None
        self.error: BaseException = Boom("broken hook")
        self.replies_before_teardown: int | None = None

    def happened(self, hook: str, provider: str) -> None:
        self.log.append((hook, provider))
        self.threads.add(threading.get_ident())
        if self.broken == (hook, provider):
            self.broken = None  # once: the next call must find everything in order
            raise self.error


class _WatchedSettler:
    def __init__(self, inner: Any, log: list[Any]) -> None:
        self._inner = inner
        self._log = log

    def ack(self, delivery_tag: int) -> None:
        self._log.append("ack")
        self._inner.ack(delivery_tag)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        self._log.append("nack")
        self._inner.nack(delivery_tag, requeue)

    @property
    def is_lost(self) -> bool:
        return bool(self._inner.is_lost)


class Hooks(DependencyProvider):
    """A provider whose hooks are `def`."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.name = name

    def get_dependency(self, worker_ctx: WorkerContext) -> str:
        message = worker_ctx.call.message
        if not isinstance(message.settler, _WatchedSettler):
            message.settler = _WatchedSettler(message.settler, self.scene.log)
        self.scene.happened("get_dependency", self.name)
        return self.name.upper()

    def worker_setup(self, worker_ctx: WorkerContext) -> None:
        self.scene.happened("worker_setup", self.name)

    def worker_result(
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> None:
        self.scene.log.append(("outcome", result if exc_info is None else exc_info[0].__name__))
        self.scene.happened("worker_result", self.name)

    def worker_teardown(self, worker_ctx: WorkerContext) -> None:
        link = worker_ctx.container.host.link
        self.scene.replies_before_teardown = link.statistics().published
        self.scene.happened("worker_teardown", self.name)


class AsyncHooks(Hooks):
    """The same hooks as `async def`."""

    async def get_dependency(self, worker_ctx: WorkerContext) -> str:  # type: ignore[override]  # hooks may be async
        return super().get_dependency(worker_ctx)

    async def worker_setup(self, worker_ctx: WorkerContext) -> None:  # type: ignore[override]
        super().worker_setup(worker_ctx)

    async def worker_result(  # type: ignore[override]
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> None:
        super().worker_result(worker_ctx, result, exc_info)

    async def worker_teardown(self, worker_ctx: WorkerContext) -> None:  # type: ignore[override]
        super().worker_teardown(worker_ctx)


def make_service(scene: Scene, method_kind: str, hooks: type[Hooks]) -> type:
    class Base:
        name = "s"
        a = hooks(scene, "a")
        b = hooks(scene, "b")

        def work(self, value: int) -> str:
            scene.log.append("method")
            scene.threads.add(threading.get_ident())
            if value < 0:
                raise ValueError("below zero")
            return f"{self.a}{self.b}{value}"

    class Threaded(Base):
        @rpc(concurrency=1)
        def method(self, value: int) -> str:
            return self.work(value)

    class OnLoop(Base):
        @rpc(concurrency=1)
        async def method(self, value: int) -> str:
            return self.work(value)

    return Threaded if method_kind == "def" else OnLoop


@pytest.fixture(params=["def", "async def"])
def method_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(params=[Hooks, AsyncHooks], ids=["def-hooks", "async-hooks"])
def hooks(request: pytest.FixtureRequest) -> type[Hooks]:
    chosen: type[Hooks] = request.param
    return chosen


async def test_hooks_run_in_nameko_s_order_and_the_message_is_settled_last(
    serve: Serve, invoke: Invoke, method_kind: str, hooks: type[Hooks]
) -> None:
    scene = Scene()
    await serve(make_service(scene, method_kind, hooks))

    assert await invoke("s", "method", 7) == "AB7"

    log = [entry for entry in scene.log if entry[0] != "outcome"]
    assert set(log[0:2]) == {("get_dependency", "a"), ("get_dependency", "b")}
    assert set(log[2:4]) == {("worker_setup", "a"), ("worker_setup", "b")}
    assert log[4] == "method"
    assert set(log[5:7]) == {("worker_result", "a"), ("worker_result", "b")}
    assert set(log[7:9]) == {("worker_teardown", "a"), ("worker_teardown", "b")}
    assert log[9:] == ["ack"]
    assert scene.replies_before_teardown == 0


async def test_whole_life_of_a_def_worker_is_in_one_thread_unless_its_hooks_are_async(
    serve: Serve, invoke: Invoke, method_kind: str
) -> None:
    scene = Scene()
    await serve(make_service(scene, method_kind, Hooks))

    await invoke("s", "method", 1)

    loop_thread = threading.get_ident()
    assert len(scene.threads) == 1
    assert (loop_thread in scene.threads) is (method_kind == "async def")


async def test_async_hooks_of_a_def_worker_run_on_the_loop(serve: Serve, invoke: Invoke) -> None:
    scene = Scene()
    await serve(make_service(scene, "def", AsyncHooks))

    await invoke("s", "method", 1)

    assert threading.get_ident() in scene.threads
    assert len(scene.threads) == 2


async def test_worker_result_sees_the_result_or_the_error(
    serve: Serve, invoke: Invoke, method_kind: str, hooks: type[Hooks]
) -> None:
    scene = Scene()
    await serve(make_service(scene, method_kind, hooks))

    await invoke("s", "method", 7)
    with pytest.raises(RemoteError, match="ValueError below zero"):
        await invoke("s", "method", -1)

    outcomes = [entry[1] for entry in scene.log if entry[0] == "outcome"]
    assert outcomes == ["AB7", "AB7", "ValueError", "ValueError"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [Boom("broken hook"), SystemExit(3)], ids=["Boom", "SystemExit"])
async def test_raising_hook_is_an_error_reply_and_the_slot_comes_back(
    serve: Serve,
    invoke: Invoke,
    method_kind: str,
    hooks: type[Hooks],
    hook: str,
    error: BaseException,
) -> None:
    scene = Scene()
    scene.broken = (hook, "a")
    scene.error = error
    runner = await serve(make_service(scene, method_kind, hooks))

    with pytest.raises(RemoteError, match=type(error).__name__):
        await invoke("s", "method", 7)

    assert ("method" in scene.log) is (hook in ("worker_result", "worker_teardown"))
    torn_down = {entry for entry in scene.log if entry[0] == "worker_teardown"}
    assert len(torn_down) == (0 if hook == "get_dependency" else 2)
    assert runner.containers[0].started
    assert await invoke("s", "method", 8) == "AB8"


async def test_first_error_is_the_callers_and_later_ones_are_noted(
    serve: Serve, invoke: Invoke, method_kind: str, hooks: type[Hooks]
) -> None:
    scene = Scene()
    scene.broken = ("worker_teardown", "a")
    await serve(make_service(scene, method_kind, hooks))

    with pytest.raises(RemoteError, match="ValueError below zero") as caught:
        await invoke("s", "method", -1)

    assert "then a dependency's hook raised Boom: broken hook" in str(caught.value.remote_traceback)


async def test_each_worker_has_an_instance_of_its_own(
    serve: Serve, invoke: Invoke, method_kind: str
) -> None:
    class Counter:
        name = "counter"
        seen = 0

        @rpc
        def threaded(self) -> int:
            self.seen += 1
            return self.seen

        @rpc
        async def on_loop(self) -> int:
            self.seen += 1
            return self.seen

    await serve(Counter)
    method = "threaded" if method_kind == "def" else "on_loop"

    assert [await invoke("counter", method) for _ in range(3)] == [1, 1, 1]


async def test_service_whose_constructor_raises_answers_with_the_error(
    serve: Serve, invoke: Invoke, method_kind: str
) -> None:
    class Broken:
        name = "broken"

        def __init__(self) -> None:
            raise Boom("no instance today")

        @rpc
        def threaded(self) -> None: ...

        @rpc
        async def on_loop(self) -> None: ...

    await serve(Broken)

    with pytest.raises(RemoteError, match="Boom no instance today"):
        await invoke("broken", "threaded" if method_kind == "def" else "on_loop")
