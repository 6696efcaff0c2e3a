"""Services with third-party extensions that go wrong, or reach a limit; none needs a broker until it is bound."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import Any

from eventlet import Timeout
from eventlet.event import Event
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import DependencyProvider, Entrypoint
from nameko.messaging import Consumer
from nameko.rpc import RpcProxy, rpc
from nameko.timer import Timer


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class RetryingConsumer(Consumer):
    """Overrides what works on kombu's messages."""

    def handle_result(self, message: Any, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        return super().handle_result(message, worker_ctx, result, exc_info)


class OverridesConsumer:
    name = "overrides_consumer"

    @RetryingConsumer.decorator(queue="x")
    def handle(self, payload: Any) -> None: ...


class Holder(DependencyProvider):
    proxy = RpcProxy("other")


class HoldsDependency:
    name = "holds_dependency"
    holder = Holder()

    @rpc
    def method(self) -> None: ...


class Binder(DependencyProvider):
    """Binds one of Nameko's own providers by hand."""

    def bind(self, container: Any, attr_name: str) -> Any:
        bound = super().bind(container, attr_name)
        bound.proxy = RpcProxy("other").bind(container, attr_name)
        return bound


class BindsProxy:
    name = "binds_proxy"
    binder = Binder()

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

    def run(self) -> None:
        for number in range(2):
            try:
                self.container.spawn_worker(self, (number,), {})
            except ContainerBeingKilled:
                say(f"{number} is given back")

    def stop(self) -> None: ...


class Stopping:
    name = "stopping"

    @Stubborn.decorator
    def handle(self, number: int) -> None:
        say(f"{number} begins")
        threading.Event().wait(1.0)
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
