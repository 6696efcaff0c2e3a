"""The service of `kept_services.py`, written for Mycelia."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue
from tests.nameko.kept_values import PUBLISH_OPTIONS, RICH, of, with_user

from mycelia import EventDispatcher, Publisher, RpcProxy, consume, event_handler, rpc

HEARD: list[Any] = []


class Native:
    name = "kept_native"
    kept_stock = RpcProxy("kept_stock", compression="lzma", headers={"x": 1})
    kept_here = RpcProxy("kept_here")
    dispatch = EventDispatcher(compression="bzip2", headers={"a": 1})
    publish = Publisher()

    @rpc
    async def kind(self, value: Any) -> list[str]:
        return of(value)

    @rpc
    async def give(self) -> dict[str, Any]:
        return RICH

    @rpc
    async def relay(self, service: str, value: Any) -> list[list[str]]:
        proxy = getattr(self, service)
        return [await proxy.kind(value), sorted(map(of, (await proxy.give()).values()))]

    @rpc
    async def announce(self, value: Any) -> None:
        await self.dispatch("rich", value)

    @rpc
    async def take_heard(self) -> list[Any]:
        taken, HEARD[:] = list(HEARD), []
        return taken

    @rpc
    async def publish_with(self, options: str, routing_key: str) -> None:
        payload: Any = "für" if "content" in options else [1]
        await self.publish(payload, routing_key=routing_key, **PUBLISH_OPTIONS[options])

    @rpc
    async def publish_declaring(self, queue: str) -> None:
        exchange = Exchange(f"{queue}-exchange", type="direct")
        declared = Queue(queue, exchange=exchange, routing_key="k")
        await self.publish("declared", exchange=exchange, routing_key="k", declare=[declared])

    @rpc
    @with_user
    def greet(self, user: str, greeting: str) -> str:
        return f"{greeting}, {user}"

    @staticmethod
    @event_handler("kept_stock", "rich")
    async def on_stock(payload: Any) -> None:
        HEARD.append(["kept_stock", *of(payload)])

    @event_handler("kept_here", "rich")
    @with_user
    def on_here(self, user: str, payload: Any) -> None:
        HEARD.append(["kept_here", *of(payload)])

    @consume(Queue("", exchange=Exchange("native-fanout", type="fanout"), exclusive=True))
    async def on_anonymous(self, payload: Any) -> None:
        HEARD.append(["anonymous", *of(payload)])
