"""Services with third-party extensions that go wrong, or reach a limit; none needs a broker until it is bound."""

from __future__ import annotations

import sys
import threading
import traceback
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from eventlet import Timeout
from eventlet.event import Event
from nameko.dependency_providers import Config
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension
from nameko.messaging import Consumer, Publisher, QueueConsumer
from nameko.rpc import MethodProxy, RpcProxy, ServiceProxy, rpc
from nameko.testing.utils import get_extension
from nameko.timer import Timer, timer
from nameko.web.handlers import HttpRequestHandler
from nameko.web.server import WebServer


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Loopy(QueueConsumer):
    """Overrides the consume loop, of which there is none here."""

    def on_iteration(self) -> None: ...


class LoopyConsumer(Consumer):
    queue_consumer = Loopy()


class OwnConsumeLoop:
    name = "own_consume_loop"

    @LoopyConsumer.decorator(queue="x")
    def handle(self, payload: Any) -> None: ...


class Served(WebServer):
    bind_addr = ("localhost", 1)

    def get_wsgi_server(self, *args: Any, **kwargs: Any) -> Any: ...


class ServedHandler(HttpRequestHandler):
    server = Served()


class OwnServer:
    name = "own_server"

    @ServedHandler.decorator("GET", "/")
    def get(self, request: Any) -> str:
        return ""


class ByHand(RpcProxy):
    """Makes its proxies by hand, from what the stock provider has inside."""

    def get_dependency(self, worker_ctx: Any) -> Any:
        return ServiceProxy(worker_ctx, "other", self.rpc_reply_listener)


class BlocksTheLoop:
    name = "blocks_the_loop"
    proxy = ByHand("other")

    @rpc
    async def method(self) -> None: ...


class PatchesLate(DependencyProvider):
    """Replaces a method of Nameko's in its setup, as nameko-zipkin does."""

    def setup(self) -> None:
        MethodProxy._call = lambda self: None


class Patched:
    name = "patched"
    tracer = PatchesLate()

    @rpc
    def method(self) -> None: ...


class RequestsWithAnId:
    name = "requests_with_an_id"
    proxy = RpcProxy("other", app_id="a")

    @rpc
    def method(self) -> None: ...


class PublishesAtOnce:
    name = "publishes_at_once"
    publish = Publisher(immediate=True)

    @rpc
    def method(self) -> None: ...


class Holder(DependencyProvider):
    proxy = RpcProxy("other")


class HoldsDependency:
    name = "holds_dependency"
    holder = Holder()

    @rpc
    def method(self) -> None: ...


class Loop(Entrypoint):
    """A consume loop in a managed thread."""

    def start(self) -> None:
        self.gt = self.container.spawn_managed_thread(self.run, identifier="loop")
        self.gt.link(lambda gt: say(f"loop ended, dead={gt.dead}"))

    def run(self) -> None: ...

    def stop(self) -> None:
        self.gt.kill()


class BrokenLoop(Loop):
    def run(self) -> None:
        raise ConnectionError("the source is gone")


class ThreadFails:
    name = "thread_fails"

    @BrokenLoop.decorator
    def handle(self) -> None: ...


class EndlessLoop(Loop):
    """Ends only when it is killed."""

    def run(self) -> None:
        say("loop runs")
        while True:
            threading.Event().wait(0.01)


class ThreadIsKilled:
    name = "thread_is_killed"

    @EndlessLoop.decorator
    def handle(self) -> None: ...


class Flood(Loop):
    """Spawns faster than workers end."""

    def run(self) -> None:
        for number in range(6):
            self.container.spawn_worker(self, (number,), {})
            say(f"spawned {number} with {Full.running} running")
        say("flood over")


class Full:
    name = "full"
    running = 0

    @Flood.decorator
    def handle(self, number: int) -> None:
        type(self).running += 1
        threading.Event().wait(0.2)
        type(self).running -= 1


class Stubborn(Loop):
    """Hears that the service stops, as Nameko's own consumers do, to give its message back."""

    given_back = threading.Event()

    def run(self) -> None:
        for number in range(2):
            try:
                self.container.spawn_worker(self, (number,), {})
            except ContainerBeingKilled:
                say(f"{number} is given back")
                self.given_back.set()

    def stop(self) -> None: ...


class Stopping:
    name = "stopping"

    @Stubborn.decorator
    def handle(self, number: int) -> None:
        say(f"{number} begins")
        Stubborn.given_back.wait(
            10.0
        )  # it has the only place until then, however long the stop takes to come
        say(f"{number} ends")


class FailingProvider(DependencyProvider):
    def get_dependency(self, worker_ctx: Any) -> Any:
        raise ConnectionError("no database")


class Asking(Loop):
    """Waits for each result."""

    def run(self) -> None:
        done = Event()
        self.container.spawn_worker(self, (), {}, handle_result=partial(self.handle_result, done))
        try:
            done.wait()
        except Exception as exc:  # noqa: BLE001  it is what the test asks for
            say(f"heard {type(exc).__name__}: {exc}")

    def handle_result(self, done: Any, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        done.send(result, exc_info)
        return result, exc_info


class ProviderFails:
    name = "provider_fails"
    provider = FailingProvider()

    @Asking.decorator
    def handle(self) -> None: ...


class MethodExits:
    name = "method_exits"

    @Asking.decorator
    async def handle(self) -> None:
        raise SystemExit(3)


class CountingTimer(Timer):
    """A subclass that overrides what Nameko's timer does: it runs as it is, `Timeout` and `Event` included."""

    def handle_timer_tick(self) -> None:
        say("tick")
        with Timeout(5):
            super().handle_timer_tick()


class CustomTimer:
    name = "custom_timer"

    @CountingTimer.decorator(interval=0.05)
    def handle(self) -> None:
        say("tock")


# --- what extensions ask of their container --------------------------------------------------------


class Shelf(SharedExtension):
    """Held by the provider and the entrypoint below."""


class Once(Loop):
    """Runs one worker and waits for it."""

    shelf = Shelf()

    def run(self) -> None:
        done = Event()
        self.container.spawn_worker(self, (), {}, handle_result=partial(self.handle_result, done))
        done.wait()
        self.after()

    def handle_result(self, done: Any, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        say(f"handle_result of {worker_ctx.kept_by_the_provider}")
        done.send(result, exc_info)
        return result, exc_info

    def after(self) -> None:
        threading.Event().wait(60)  # hooks that follow find this thread running

    def stop(self) -> None: ...


def _names_in(frame: Any) -> bool:
    """Whether the hook that asks is among what the worker runs; a greenthread that runs has no frame of its own."""
    return frame is None or any(
        frame.f_code.co_name in HOOKS for frame, _ in traceback.walk_stack(frame)
    )


HOOKS = ("get_dependency", "worker_setup", "worker_result", "worker_teardown")


class Teller(DependencyProvider):
    """Says what it finds of its container in each hook, as metrics and tracing packages read it."""

    shelf = Shelf()

    def get_dependency(self, worker_ctx: Any) -> Any:
        self.contexts = WeakKeyDictionary({worker_ctx: "kept"})
        worker_ctx.kept_by_the_provider = "a worker"
        self.tell("get_dependency", worker_ctx)

    def worker_setup(self, worker_ctx: Any) -> None:
        self.tell("worker_setup", worker_ctx)

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        self.tell("worker_result", worker_ctx)

    def worker_teardown(self, worker_ctx: Any) -> None:
        self.tell("worker_teardown", worker_ctx)

    def tell(self, hook: str, worker_ctx: Any) -> None:
        container = self.container
        entrypoint = worker_ctx.entrypoint
        facts = {
            "workers": len(container._worker_threads),
            "they": [
                (one.entrypoint.method_name, one is worker_ctx) for one in container._worker_threads
            ],
            "there": [_names_in(thread.gr_frame) for thread in container._worker_threads.values()],
            "pool": (container._worker_pool.size, container._worker_pool.running()),
            "died": (container._died.ready(), container._being_killed),
            "interface": container.interface is container,
            # A stock timer has a thread; Mycelia's, which runs in its place, has none.
            "threads": sorted(set(container._managed_threads.values()) - {"_run"}),
            "max_workers": container.max_workers,
            "serializer": container.serializer,
            "started": container.started,
            "of_context": (worker_ctx.container.service_name, worker_ctx.container.max_workers),
            "entrypoint": (type(entrypoint).__name__, entrypoint.method_name),
            "service": type(worker_ctx.service).__name__,
            "kept": self.contexts.get(worker_ctx),
            "shared": [key.__name__ for key in container.shared_extensions],
        }
        for kind in ("entrypoints", "dependencies", "subextensions", "extensions"):
            facts[kind] = sorted(type(one).__name__ for one in getattr(container, kind))
        for one in container.dependencies:
            assert one.container.service_name == "insides", one
        say(f"{hook} {facts}")


class Insides:
    name = "insides"
    config = Config()
    teller = Teller()

    @Once.decorator
    def handle(self) -> None:
        say(f"handle {self.config['max_workers']}")

    @Timer.decorator(interval=1000)
    def never(self) -> None: ...


class Steps(DependencyProvider):
    """Replaces the steps of the container's workers on the container, and says what they were called with."""

    def setup(self) -> None:
        for step in ("_worker_setup", "_worker_result", "_worker_teardown"):
            setattr(self.container, step, partial(self.after, step, getattr(self.container, step)))

    def after(self, step: str, original: Any, worker_ctx: Any, *args: Any) -> None:
        original(worker_ctx, *args)
        told = [getattr(arg[0], "__name__", arg) if isinstance(arg, tuple) else arg for arg in args]
        called = f"{step} of {type(worker_ctx.entrypoint).__name__} {worker_ctx.call_id_stack[-1].split('.')[:2]}"
        say(f"after {called} {told}: {worker_ctx.heard}")

    def get_dependency(self, worker_ctx: Any) -> None:
        worker_ctx.kept_by_the_provider = "a worker"

    def worker_setup(self, worker_ctx: Any) -> None:
        worker_ctx.heard = ["setup"]

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        worker_ctx.heard.append("result")

    def worker_teardown(self, worker_ctx: Any) -> None:
        worker_ctx.heard.append("teardown")


class StepsReplaced:
    name = "steps_replaced"
    steps = Steps()

    @Once.decorator
    def handle(self) -> str:
        return "done"

    @Timer.decorator(interval=1000, eager=True)
    def tick(self) -> None:
        raise LookupError("nothing")


class Waits(Loop):
    """Waits for a worker with Nameko's own tool for tests, then for all."""

    def run(self) -> None:
        from nameko.testing.services import entrypoint_hook, entrypoint_waiter

        for number in range(2):
            with entrypoint_waiter(self.container, "tick") as result:
                pass
            say(f"{number} waited: {result.get()} {sorted(set(vars(self.container)) & STEPS)}")
        self.container.spawn_worker(self, (), {})
        with entrypoint_waiter(self.container, "handle") as result:  # it runs already
            StepsAwaited.go.set()
        say(f"last waited: {result.get()}")
        with entrypoint_hook(self.container, "fail") as fail:
            try:
                fail("hooked")
            except LookupError as exc:
                say(f"hook waited: {exc}")
        heard = Event()
        entrypoint = get_extension(self.container, Timer, method_name="fail")
        context = self.container.spawn_worker(
            entrypoint, ("x",), {}, {"language": "en"}, partial(self.hear, heard)
        )
        same = heard.wait() is context, context.entrypoint is entrypoint, context.data["language"]
        say(f"spawner waited: {same}")
        self.container._worker_pool.waitall()
        say(f"all waited: {self.container._worker_pool.running()}")

    def hear(self, heard: Any, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        say(f"handle_result waited: {result} {exc_info[1]}")
        heard.send(worker_ctx)
        return result, exc_info


STEPS = {"_worker_setup", "_worker_result", "_worker_teardown"}


class StepsAwaited:
    name = "steps_awaited"
    go = threading.Event()

    @Waits.decorator
    def handle(self) -> str:
        self.go.wait(10)
        return "went"

    @Timer.decorator(interval=0.3)
    def tick(self) -> str:
        threading.Event().wait(0.05)
        return "ticked"

    @Timer.decorator(interval=1000)
    def fail(self, word: str) -> None:
        raise LookupError(word)


class Ending(Once):
    """Ends the service from one of its threads when the work is done."""

    def after(self) -> None:
        threading.Thread(target=self.await_end, daemon=True).start()
        self.end()

    def await_end(self) -> None:
        try:
            self.container.wait()
        except ConnectionError as exc:
            say(f"wait raised {exc}")
        else:
            say("wait returned")

    def end(self) -> None:
        self.container.stop()


class EndingBadly(Ending):
    def end(self) -> None:
        try:
            raise ConnectionError("the source is gone")
        except ConnectionError:
            self.container.kill(sys.exc_info())


class Kept(DependencyProvider):
    def get_dependency(self, worker_ctx: Any) -> Any:
        worker_ctx.kept_by_the_provider = "a worker"


class Stops:
    name = "stops"
    kept = Kept()

    @Ending.decorator
    def handle(self) -> None: ...


class Kills:
    name = "kills"
    kept = Kept()

    @EndingBadly.decorator
    def handle(self) -> None: ...


class HoldsOurs(DependencyProvider):
    """Binds one of Mycelia's providers by hand."""

    def bind(self, container: Any, attr_name: str) -> Any:
        import mycelia  # not above: stock Nameko runs services of this module too

        bound = super().bind(container, attr_name)
        bound.ours = mycelia.EventDispatcher().bind(container, attr_name)
        return bound


class BindsOurs:
    name = "binds_ours"
    holder = HoldsOurs()

    @timer(interval=1000)
    def method(self) -> None: ...


async def answer(call: Any, next_step: Any) -> Any:
    """A middleware that answers in the method's place."""
    from mycelia import Outcome  # not above: stock Nameko runs services of this module too

    return Outcome("from the cache")


async def mask(call: Any, next_step: Any) -> Any:
    """A middleware that lets the method run, and hides its value."""
    outcome = await next_step(call)
    say(f"middleware saw {outcome.value}")
    return outcome.replace(value="masked")


class Hearing(Asking):
    def run(self) -> None:
        done = Event()
        self.container.spawn_worker(self, (), {}, handle_result=partial(self.handle_result, done))
        say(f"heard {done.wait()}")


class Answered:
    name = "answered"

    @Hearing.decorator
    def handle(self) -> str:
        return "from the method"
