"""A delivery becomes a `Call`: once, for all kinds of entrypoints that take messages from a queue."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from mycelia.amqp import Consumer, Delivery
from mycelia.errors import UndecodableMessage
from mycelia.log_event import event
from mycelia.wire import (
    MAX_ATTEMPT,
    SerializerRegistry,
    read_attempt,
)

__all__ = [
    "RETURNS_HEADERS",
    "attempt_of",
    "decode_body",
    "requeue_delay",
    "returns_of",
    "stop_deliveries",
    "without_returns",
]

log = logging.getLogger("mycelia.entrypoints")

RETURNS_HEADERS = ("x-acquired-count", "x-delivery-count")
"""A quorum queue's counts of one message, true in that queue only, so never published again; the first found is used.

`x-delivery-count` counted every return up to RabbitMQ 4.2. 4.3 counts only failures in it (`basic.reject`, a channel or
connection that ends) and no `basic.nack`, and has the old count in `x-acquired-count`: how often the message was handed
out before (seen with 4.3.6).
"""

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


def returns_of(delivery: Delivery) -> int:
    """How often this message has come back without an outcome, as far as anybody has counted.

    Quorum queues count in a header; it is true only of a redelivery: a first delivery has it as its publisher sent it
    (RabbitMQ 3.10 writes it from the second on), so a dead letter that somebody put back would bring the count of its
    former life. Of a classic queue one only knows that it has come back, so that counts as once.
    """
    if not delivery.redelivered:
        return 0
    headers = delivery.properties.headers or {}
    for header in RETURNS_HEADERS:
        count = headers.get(header)
        if type(count) is int:
            return max(count, 1)
    return 1


def without_returns(headers: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of the headers without the queue's counts, to publish the message anew."""
    return {key: value for key, value in (headers or {}).items() if key not in RETURNS_HEADERS}


def attempt_of(delivery: Delivery) -> int:
    """Which attempt this delivery is, from 1: what we count in a header, and the returns since."""
    return min(read_attempt(delivery.properties.headers) + returns_of(delivery), MAX_ATTEMPT)


def requeue_delay(attempt: int) -> float:
    """Seconds before attempt `attempt + 1`: 0.1, 0.2, 0.4 … at most 30."""
    return float(min(0.1 * 2 ** min(attempt - 1, 10), 30.0))


async def stop_deliveries(consumer: Consumer) -> None:
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
