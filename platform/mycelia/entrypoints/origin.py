"""Where a message was first published, whatever ways it has gone since. Pure."""

from __future__ import annotations

from typing import Final

from mycelia.amqp import Delivery
from mycelia.amqp.delay_levels import (
    GOAL_HEADER,
    expiration_of,
    is_from_levels,
    restored,
)
from mycelia.wire import ATTEMPT_HEADER

__all__ = ["EXCHANGE_HEADER", "ROUTING_KEY_HEADER", "origin_of", "restore_origin"]

EXCHANGE_HEADER: Final = "x-mycelia-exchange"
ROUTING_KEY_HEADER: Final = "x-mycelia-routing-key"


def origin_of(delivery: Delivery) -> tuple[str, str]:
    """Exchange and routing key that the message was published with; what is published again brings them along."""
    headers = delivery.properties.headers or {}
    exchange, key = headers.get(EXCHANGE_HEADER), headers.get(ROUTING_KEY_HEADER)
    if isinstance(exchange, str) and isinstance(key, str):
        return exchange, key
    return delivery.exchange, delivery.routing_key


def restore_origin(delivery: Delivery) -> None:
    """Give a message back what it was published with, where it came another way: out of a delay, for another attempt, redriven.

    The headers are believed of what came so only: by its queue's name, or out of a delay, by the exchanges behind that. What comes
    through any other exchange comes with what that exchange was given.
    """
    headers = delivery.properties.headers or {}
    is_by_queue = not delivery.exchange
    if GOAL_HEADER in headers and (is_by_queue or is_from_levels(delivery.exchange)):
        is_by_queue = ATTEMPT_HEADER in headers
        restored(delivery)
    if ROUTING_KEY_HEADER in headers:
        delivery.properties.expiration = expiration_of(delivery.properties)
        if is_by_queue:
            delivery.exchange, delivery.routing_key = origin_of(delivery)
