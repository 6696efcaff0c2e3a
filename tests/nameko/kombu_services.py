"""Extensions that reach for Nameko's insides, twice: on stock Nameko and here; `test_kombu_extensions.py` compares."""

from __future__ import annotations

import sys
import threading
from typing import Any

from kombu import Exchange, Queue
from nameko.amqp.publish import Publisher as PublisherCore
from nameko.amqp.publish import UndeliverableMessage
from nameko.events import EventDispatcher, EventHandler
from nameko.exceptions import RpcTimeout
from nameko.extensions import DependencyProvider, Entrypoint
from nameko.messaging import Consumer, Publisher
from nameko.rpc import MethodProxy, Rpc, RpcProxy, ServiceProxy
from nameko.timer import Timer

HEARD: list[Any] = []


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class CountingRpc(Rpc):
    """Answers with how often it was asked, and puts something into the context."""

    def handle_message(self, body: Any, message: Any) -> None:
        message.headers["nameko.seen_by"] = "CountingRpc"
        super().handle_message(body, message)

    def handle_result(self, message: Any, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        if exc_info is None:
            result = [result, worker_ctx.data.get("seen_by"), message.delivery_info["routing_key"]]
        else:
            result = "beside the error"
        return super().handle_result(message, worker_ctx, result, exc_info)


counting = CountingRpc.decorator


class Again(Exception):
    pass


class RetryingConsumer(Consumer):
    """Requeues by itself, however often."""

    def handle_result(
        self, message: Any, worker_ctx: Any, result: Any = None, exc_info: Any = None
    ) -> Any:
        if exc_info is not None and isinstance(exc_info[1], Again):
            message.requeue()
            return result, exc_info
        return super().handle_result(message, worker_ctx, result, exc_info)


class RetryingHandler(EventHandler, RetryingConsumer):
    """Its own way comes from a base beside the stock class, as in nameko-amqp-retry."""


class LoudMethod(MethodProxy):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return ["loud", super().__call__(*args, **kwargs)]


class LoudService(ServiceProxy):
    def __getattr__(self, name: str) -> Any:
        return LoudMethod(
            self.worker_ctx, self.service_name, name, self.reply_listener, **self.options
        )


class LoudProxy(RpcProxy):
    def get_dependency(self, worker_ctx: Any) -> Any:
        return LoudService(worker_ctx, self.target_service, self.rpc_reply_listener, **self.options)


class Core(PublisherCore):
    def publish(self, payload: Any, **kwargs: Any) -> None:
        super().publish(["core", payload], **kwargs)


class CorePublisher(Publisher):
    publisher_cls = Core


class YamlDispatcher(EventDispatcher):
    serializer = "yaml"

    def get_message_headers(self, worker_ctx: Any) -> Any:
        return {**super().get_message_headers(worker_ctx), "tenant": "t1"}


class Forgetful(Entrypoint):
    """Does not call `super().__init__()`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def start(self) -> None:
        self.container.spawn_managed_thread(self.run)

    def run(self) -> None:
        self.container.spawn_worker(self, (self.text,), {})


class ForgetfulTimer(Timer):
    def __init__(self, interval: float, **kwargs: Any) -> None:
        super().__init__(interval=interval, **kwargs)


class Binder(DependencyProvider):
    """Binds one of Nameko's own providers by hand."""

    def bind(self, container: Any, attr_name: str) -> Any:
        bound = super().bind(container, attr_name)
        bound.proxy = RpcProxy(container.service_name).bind(container, attr_name)
        return bound

    def get_dependency(self, worker_ctx: Any) -> Any:
        return self.proxy.get_dependency(worker_ctx)


class Results(DependencyProvider):
    """Puts down what it is told of `fail()`."""

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        if worker_ctx.entrypoint.method_name == "fail":
            HEARD.append([result, exc_info and exc_info[0].__name__])


class _Reaching:
    results = Results()
    loud: Any
    deaf = LoudProxy("deaf")
    bound = Binder()
    core = CorePublisher()
    plain = Publisher()
    emit = YamlDispatcher()
    ticks: set[int] = set()  # noqa: RUF012  shared on purpose
    tries: dict[Any, int] = {}  # noqa: RUF012  shared on purpose

    @counting
    def count(self, value: Any) -> Any:
        return value

    @counting
    def fail(self) -> None:
        raise ValueError("no")

    @Rpc.decorator
    def beside(self, value: Any) -> Any:
        """An ordinary method on the same queue."""
        return value

    @Rpc.decorator
    def call_loudly(self, value: Any) -> Any:
        return self.loud.beside(value)

    @Rpc.decorator
    def call_bound(self, value: Any) -> Any:
        return self.bound.beside(value)

    @Rpc.decorator
    def call_unanswered(self) -> str:
        try:
            return str(self.deaf.method())
        except RpcTimeout:
            return "timeout"

    @Rpc.decorator
    def publish_to(self, queue: str, value: Any) -> None:
        self.core(value, routing_key=queue)

    @Rpc.decorator
    def publish_to_nobody(self) -> str:
        try:
            self.plain("x", routing_key="nobody", mandatory=True)
        except UndeliverableMessage:
            return "undeliverable"
        return "delivered"

    @Rpc.decorator
    def dispatch(self, value: Any) -> None:
        self.emit("emitted", value)

    @Rpc.decorator
    def take_heard(self, word: Any) -> list[Any]:
        taken = [heard for heard in HEARD if heard == word]
        for heard in taken:
            HEARD.remove(heard)
        return taken

    def handle(self, payload: Any) -> None:
        HEARD.append(payload)
        self.tries[payload] = self.tries.get(payload, 0) + 1
        if self.tries[payload] < 3:
            raise Again

    @Forgetful.decorator("begun")
    def begun(self, text: str) -> None:
        HEARD.append(text)

    @ForgetfulTimer.decorator(interval=0)
    def tick(self) -> None:
        threading.Event().wait(0.01)
        self.ticks.add(len(self.ticks))

    @Rpc.decorator
    def has_ticked(self) -> bool:
        return len(self.ticks) > 3


class Stock(_Reaching):
    name = "reaching_stock"
    loud = LoudProxy("reaching_stock")

    @RetryingHandler.decorator("feed", "again_stock")
    def on_again(self, payload: Any) -> None:
        self.handle(payload)

    @RetryingConsumer.decorator(queue=Queue("again-stock", exchange=Exchange("again-stock")))
    def on_message(self, payload: Any) -> None:
        self.handle(payload)


class Here(_Reaching):
    name = "reaching_here"
    loud = LoudProxy("reaching_here")

    @RetryingHandler.decorator("feed", "again_here")
    def on_again(self, payload: Any) -> None:
        self.handle(payload)

    @RetryingConsumer.decorator(queue=Queue("again-here", exchange=Exchange("again-here")))
    def on_message(self, payload: Any) -> None:
        self.handle(payload)


class Slow:
    """Stopped while its worker runs."""

    name = "slow"
    emit = EventDispatcher()

    @counting
    def work(self, value: Any) -> Any:
        say("work begins")
        threading.Event().wait(1.0)
        return value

    @RetryingConsumer.decorator(queue=Queue("slow-messages"))
    def on_message(self, payload: Any) -> None:
        say("message begins")
        threading.Event().wait(1.0)
        say("message ends")
