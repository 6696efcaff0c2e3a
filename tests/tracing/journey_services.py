"""Services as their users write them, for `nameko run` and `mycelia run`: nothing in the code asks for traces."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import httpx
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy import create_engine, text

from mycelia import EventDispatcher, RpcProxy, event_handler, http, rpc


class Door:
    name = "door"
    orders = RpcProxy("orders")

    @http("POST", "/orders/{number:int}")
    async def post(self, request: Any, number: int) -> Any:
        return {"placed": await self.orders.place(number)}

    @http("GET", "/teapots/{name}", expected_exceptions=LookupError)
    async def teapot(self, request: Any, name: str) -> None:
        raise LookupError(name)


class Orders:
    name = "orders"
    emit = EventDispatcher()

    @rpc
    def place(self, number: int) -> int:
        """In a thread: what leaves from here nests all the same."""
        with trace.get_tracer("shop").start_as_current_span("reserve"):
            self.emit("placed", {"number": number})
        return number


class Shipping:
    name = "shipping"
    stock = RpcProxy("stock")
    tried: ClassVar[dict[int, int]] = {}

    @event_handler("orders", "placed", requeue_on_error="REQUEUE" in os.environ)
    async def ship(self, event: dict[str, int]) -> None:
        number = event["number"]
        self.tried[number] = self.tried.get(number, 0) + 1
        if self.tried[number] == 1:
            raise ConnectionError("no truck")
        await self.stock.take(number)

    @event_handler("orders", "cursed", retry=None)
    async def never(self, event: dict[str, int]) -> None:
        if not os.path.exists("blessed"):  # noqa: ASYNC240  a look at the disk
            raise ValueError("cursed")
        await self.stock.take(event["number"])


class Stock:
    name = "stock"

    @rpc
    async def take(self, number: int) -> int:
        return number


class Library:
    """What others have instrumented, in a task and in a thread."""

    name = "library"
    engine = create_engine("sqlite://")
    # It takes SQLAlchemy 2.1 for too new, and works with it.
    SQLAlchemyInstrumentor().instrument(engine=engine, skip_dep_check=True)
    HTTPXClientInstrumentor().instrument()

    @rpc
    def in_thread(self, url: str) -> None:
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        with httpx.Client() as client:
            client.get(url)

    @rpc
    async def in_task(self, url: str) -> None:
        async with httpx.AsyncClient() as client:
            await client.get(url)
