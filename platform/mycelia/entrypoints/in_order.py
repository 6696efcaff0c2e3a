"""What a subscription with a key does otherwise: retries in their place, parked keys, and nothing that overtakes.

A message that is published anew comes at the end of its queue. So with a key nothing is: a message that has failed stays here,
unacknowledged, until it is tried again (for at most `MAX_PAUSE_S`); what a classic queue does not count stays uncounted; and at the
end of a service what is left goes back with its channel, which the broker does in the order of the queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from mycelia.amqp import Delivery
from mycelia.call import Call
from mycelia.entrypoints.keys import MessageKey, key_reader
from mycelia.entrypoints.origin import ROUTING_KEY_HEADER
from mycelia.log_event import event
from mycelia.policies.retry import Fixed, Retry
from mycelia.runtime import KeyedLane, KeyOrder
from mycelia.wire import ATTEMPT_HEADER

__all__ = ["BEHIND_EACH", "RETRY_IN_ORDER", "InOrder", "in_order_by"]

log = logging.getLogger("mycelia.entrypoints")

RETRY_IN_ORDER: Final = Retry(4, Fixed((1.0, 5.0, 30.0)))
"""Where nobody says otherwise. The message and those behind it are kept here for so long, so it is shorter than elsewhere."""

MAX_PAUSE_S: Final = 60.0
"""A longer pause in place is cut to this. RabbitMQ closes a channel on which a delivery is unsettled for half an hour."""

MAX_HERE_S: Final = 600.0
"""Seconds after its arrival from which a message is not tried again in place: a third of that half hour."""

BEHIND_EACH: Final = 10
"""The prefetch by default, as a multiple of the concurrency: what waits behind its key takes places in it."""


def in_order_by(key: MessageKey, prefetch: Callable[[], int]) -> KeyOrder:
    """The order by `key` of a lane whose consumer has that prefetch: a quarter of it may wait behind one failing message."""
    return KeyOrder(
        key_of=key_reader(key),
        releases=_is_redriven,
        most_behind=lambda: max(prefetch() // 4, 1),
    )


class InOrder:
    """Of one consumer.

    Args:
        lane: of its handler.
        queue: that it consumes.
        parks: whether what follows a dead letter of the same key is dead-lettered as well.
    """

    def __init__(self, lane: KeyedLane, *, queue: str, parks: bool) -> None:
        self._lane = lane
        self._queue = queue
        self._parks = parks

    def try_again(self, call: Call, after: float) -> bool:
        """Have a message that has failed run again in its place. Returns whether that is to be; else it is dead-lettered."""
        delivery = call.message
        assert delivery is not None
        if delivery.is_lost:
            delivery.nack(requeue=True)  # it comes again, before those behind it
            return True
        if self.keeps(delivery):
            return True
        after = min(max(after, 0.0), MAX_PAUSE_S)
        if time.monotonic() + after - call.arrived_at > MAX_HERE_S:
            return False
        again = Call(
            call.target,
            headers=call.headers,
            attempt=call.attempt + 1,
            arrived_at=call.arrived_at,
            message=delivery,
            read=call.read,
            parent_calls_tracked=call.parent_calls_tracked,
        )
        if not self._lane.try_again(call, again, after):
            return False
        log.debug(
            event(
                "delivery_kept",
                queue=self._queue,
                attempt=again.attempt,
                delay_s=round(after, 3),
            )
        )
        return True

    def keeps(self, delivery: Delivery) -> bool:
        """Whether what goes back does so with its channel, because the service stops."""
        return self._lane.is_over and not delivery.is_lost

    def failed_for_good(self, call: Call) -> None:
        """A message is dead-lettered."""
        if self._parks and self._lane.park(call):
            log.error(
                event(
                    "key_parked",
                    call=call.target.name,
                    call_id=call.call_id,
                    queue=self._queue,
                    parked=self._lane.parked,
                )
            )


def _is_redriven(call: Call) -> bool:
    """Whether the message was a dead letter, and is sent again."""
    headers = call.headers or {}
    return ROUTING_KEY_HEADER in headers and ATTEMPT_HEADER not in headers
