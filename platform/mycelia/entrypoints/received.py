"""A delivery becomes a `Call`: once, for all kinds of entrypoints that take messages from a queue."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from mycelia.amqp import Delivery, Link, LinkConsumer, Queue
from mycelia.amqp.delay_levels import EXPIRES_AT_HEADER, GOAL_HEADER
from mycelia.entrypoints.origin import ROUTING_KEY_HEADER, restore_origin
from mycelia.errors import UndecodableMessage
from mycelia.log_event import event
from mycelia.wire import (
    ATTEMPT_HEADER,
    MAX_ATTEMPT,
    RETURNS_HEADER,
    SerializerRegistry,
    read_attempt,
    read_returns,
)

__all__ = [
    "DELIVERY_LIMIT",
    "RETURNS_HEADERS",
    "attempt_of",
    "counts_returns",
    "decode_body",
    "history_of",
    "is_counted",
    "is_over",
    "requeue_delay",
    "returns_of",
    "stop_deliveries",
]

log = logging.getLogger("mycelia.entrypoints")

RETURNS_HEADERS = ("x-acquired-count", "x-delivery-count")
"""A quorum queue's counts of one message, true in that queue only, so never published again; the first found is used.

`x-delivery-count` counted every return up to RabbitMQ 4.2. 4.3 counts only failures in it (`basic.reject`, a channel or
connection that ends) and no `basic.nack`, and has the old count in `x-acquired-count`: how often the message was handed
out before (seen with 4.3.6).
"""

DELIVERY_LIMIT = 20
"""Times a message may come back without an outcome, because whoever had it died or was stopped. The next delivery is
buried instead of handled: a message that kills its process must not go through the fleet for ever. RabbitMQ 4 counts
to 20 as well, and then drops the message where no dead-letter exchange is set."""

CANCEL_TIMEOUT = 3.0
"""Seconds for the broker's word that it sends no more. It must leave the workers their grace."""


def decode_body(delivery: Delivery, serializers: SerializerRegistry) -> Any:
    """What the message's body says, unpacked if need be.

    Raises:
        UndecodableMessage: too large, too much in it, not accepted, or broken (headers and properties included).
    """
    if delivery.fault is not None:
        raise UndecodableMessage(f"headers or properties: {delivery.fault}")
    properties = delivery.properties
    return serializers.decode(
        delivery.body, properties.content_type, properties.content_encoding, properties.headers
    )


def counts_returns(queue: Queue, link: Link) -> bool:
    """Whether `queue`, as it was declared on `link`, counts in a header how often a message has come back.

    Where it was found with other arguments it may be of another type, and the header what somebody has published: then we count.
    """
    return queue.arguments.get("x-queue-type") == "quorum" and not link.is_adopted(queue)


def returns_of(delivery: Delivery, queue_counts: bool) -> int:
    """How often this message has come back without an outcome.

    Quorum queues count in a header; it is true only of a redelivery: a first delivery has it as its publisher sent it
    (RabbitMQ 3.10 writes it from the second on), so a dead letter that somebody put back would bring the count of its
    former life. A classic queue says no more than that a message has come back; earlier returns are in a header of ours,
    once the entrypoint has counted them there (`is_counted()`).

    Args:
        queue_counts: see `counts_returns()`.
    """
    headers = delivery.properties.headers
    returns = read_returns(headers) if headers else 0
    if not delivery.redelivered:
        return returns
    for header in RETURNS_HEADERS if headers and queue_counts else ():
        count = headers.get(header)  # type: ignore[union-attr]  # there are headers
        if type(count) is int:
            return max(count, 1) + returns
    return returns + 1


def is_counted(delivery: Delivery, queue_counts: bool) -> bool:
    """Whether whoever gets this message next will know how often it has come back: nothing to count, or its queue does."""
    if not delivery.redelivered:
        return True
    headers = delivery.properties.headers or {}
    return queue_counts and any(type(headers.get(header)) is int for header in RETURNS_HEADERS)


def attempt_of(delivery: Delivery, returns: int) -> int:
    """Which attempt this delivery is, from 1: what we count in a header, and the returns since."""
    return min(read_attempt(delivery.properties.headers) + returns, MAX_ATTEMPT)


def history_of(delivery: Delivery, queue_counts: bool) -> tuple[int, int, bool]:
    """`attempt_of()`, `returns_of()`, and whether its time to live is over, which the broker has not known of.

    A message that comes out of a delay, or for another attempt, or redriven, gets all back that it was published with.
    """
    headers = delivery.properties.headers
    if not headers or not (
        ATTEMPT_HEADER in headers
        or GOAL_HEADER in headers
        or RETURNS_HEADER in headers
        or ROUTING_KEY_HEADER in headers
    ):
        if not delivery.redelivered:
            return 1, 0, False  # nearly always
        returns = returns_of(delivery, queue_counts)
        return attempt_of(delivery, returns), returns, False
    restore_origin(delivery)
    returns = returns_of(delivery, queue_counts)
    return attempt_of(delivery, returns), returns, is_over(delivery, time.time())


def is_over(delivery: Delivery, wall: float) -> bool:
    """Whether the moment has passed at which the message's time to live ends, where it brings that along."""
    ends_ms = (delivery.properties.headers or {}).get(EXPIRES_AT_HEADER)
    return type(ends_ms) is int and ends_ms <= wall * 1000


def requeue_delay(attempt: int) -> float:
    """Seconds before attempt `attempt + 1`: 0.1, 0.2, 0.4 … at most 30."""
    return float(min(0.1 * 2 ** min(attempt - 1, 10), 30.0))


async def stop_deliveries(consumer: LinkConsumer) -> None:
    """Take no more messages. Bounded: a broker that does not answer cannot hold up a stop."""
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await consumer.cancel()
    except TimeoutError:
        log.warning(
            event(
                "cancel_unanswered",
                queue=consumer.queue,
                timeout_s=CANCEL_TIMEOUT,
                detail="stopping without",
            )
        )
