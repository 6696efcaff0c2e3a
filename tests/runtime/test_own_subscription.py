"""An entrypoint of a user's own for messages, in place of one that was built on Nameko's `QueueConsumer`."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runtime.conftest import Serve

from mycelia import Binding, Exchange, Queue, Subscription
from mycelia.amqp import Link, Message, Properties
from mycelia.errors import ConfigError
from mycelia.testing import eventually


class Orders(Subscription):
    """The orders of one region.

    Args:
        region: the first word of their routing keys.
    """

    def __init__(self, region: str, **options: Any) -> None:
        super().__init__(**options)
        self.region = region

    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        queue, exchange = Queue(f"orders-{self.region}"), Exchange("orders")
        return queue, [exchange, queue, Binding(queue.name, exchange.name, f"{self.region}.#")]


orders = Orders.decorator


async def test_own_subscription_declares_its_queue_and_handles_its_messages(
    serve: Serve, link: Link
) -> None:
    heard: list[Any] = []

    class North:
        name = "north"

        @orders("north", concurrency=1)
        async def on_order(self, order: Any) -> None:
            heard.append(order)

    await serve(North)
    properties = Properties(content_type="application/json", content_encoding="utf-8")
    for key in ("south.new", "north.new", "north.late.new"):
        await link.publish(Message("orders", key, f'"{key}"'.encode(), properties))

    await eventually(lambda: len(heard) == 2)
    assert heard == ["north.new", "north.late.new"]


def test_mistake_in_the_arguments_of_an_own_subscription_is_told_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"East\.on_order: @.*county"):

        class East:
            @orders(county="east")  # type: ignore[call-arg]
            def on_order(self, order: Any) -> None: ...
