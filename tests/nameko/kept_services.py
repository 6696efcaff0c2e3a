"""What an existing service may do, twice: on stock Nameko and here; `test_kept_as_it_was.py` compares."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue
from nameko.events import EventDispatcher, event_handler
from nameko.messaging import Publisher, consume
from nameko.rpc import RpcProxy, rpc
from tests.nameko.kept_values import PUBLISH_OPTIONS, RICH, of, with_user


class _Kept:
    """The service's body; a class for each name it runs under."""

    name: str
    kept_stock = RpcProxy("kept_stock")
    kept_here = RpcProxy("kept_here", compression="gzip", headers={"x": 1}, delivery_mode=1)
    kept_native = RpcProxy("kept_native", retry=True, use_confirms=True)
    dispatch = EventDispatcher(compression="bzip2", headers={"a": 1})
    publish = Publisher()

    def __init__(self) -> None:
        self.heard = HEARD

    @rpc
    def kind(self, value: Any) -> list[str]:
        return of(value)

    @rpc
    def give(self) -> dict[str, Any]:
        return RICH

    @rpc
    def relay(self, service: str, value: Any) -> list[list[str]]:
        """What the other service says it got, and what came back from it."""
        proxy = getattr(self, service)
        return [proxy.kind(value), sorted(map(of, proxy.give().values()))]

    @rpc
    def announce(self, value: Any) -> None:
        self.dispatch("rich", value)

    @rpc
    def take_heard(self) -> list[Any]:
        taken, self.heard[:] = list(self.heard), []
        return taken

    @rpc
    def publish_with(self, options: str, routing_key: str) -> None:
        payload: Any = "für" if "content" in options else [1]
        self.publish(payload, routing_key=routing_key, **PUBLISH_OPTIONS[options])

    @rpc
    def publish_declaring(self, queue: str) -> None:
        """To a queue that is declared with the message."""
        exchange = Exchange(f"{queue}-exchange", type="direct")
        declared = Queue(queue, exchange=exchange, routing_key="k")
        self.publish("declared", exchange=exchange, routing_key="k", declare=[declared])

    @rpc
    @with_user
    def greet(self, user: str, greeting: str) -> str:
        return f"{greeting}, {user}"


HEARD: list[Any] = []


class Stock(_Kept):
    name = "kept_stock"

    @staticmethod
    @event_handler("kept_here", "rich")
    def on_here(payload: Any) -> None:
        HEARD.append(["kept_here", *of(payload)])

    @event_handler("kept_native", "rich")
    @with_user
    def on_native(self, user: str, payload: Any) -> None:
        HEARD.append(["kept_native", *of(payload)])

    @consume(Queue("", exchange=Exchange("stock-fanout", type="fanout"), exclusive=True))
    def on_anonymous(self, payload: Any) -> None:
        HEARD.append(["anonymous", *of(payload)])


class Here(_Kept):
    name = "kept_here"

    @staticmethod
    @event_handler("kept_stock", "rich")
    def on_stock(payload: Any) -> None:
        HEARD.append(["kept_stock", *of(payload)])

    @event_handler("kept_native", "rich")
    @with_user
    def on_native(self, user: str, payload: Any) -> None:
        HEARD.append(["kept_native", *of(payload)])

    @consume(Queue("", exchange=Exchange("here-fanout", type="fanout"), exclusive=True))
    def on_anonymous(self, payload: Any) -> None:
        HEARD.append(["anonymous", *of(payload)])
