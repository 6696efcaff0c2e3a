"""Another attempt, later: a message kept for a while, then published again with its count raised."""

from __future__ import annotations

import asyncio
import logging

from mycelia.amqp import Delivery, Link, Message
from mycelia.entrypoints.received import without_returns
from mycelia.errors import LinkError
from mycelia.log_event import event
from mycelia.wire import ATTEMPT_HEADER

__all__ = ["PutBack"]

log = logging.getLogger("mycelia.entrypoints")


class PutBack:
    """Puts messages of one consumer back, each after its own delay.

    A message stays unacknowledged meanwhile, so a crash loses nothing, and the prefetch bounds how many wait.

    Args:
        link: an open link.
        publish_timeout: seconds for the broker to take the message.
    """

    def __init__(self, link: Link, *, publish_timeout: float) -> None:
        self._link = link
        self._publish_timeout = publish_timeout
        self._tasks: dict[Delivery, asyncio.Task[None]] = {}

    def later(
        self, delivery: Delivery, exchange: str, routing_key: str, after: float, *, attempt: int
    ) -> None:
        """Publish `delivery` again `after` seconds from now, as attempt number `attempt`, then acknowledge it."""
        task = asyncio.create_task(
            self._wait_and_publish(delivery, exchange, routing_key, after, attempt),
            name=f"mycelia:put-back:{routing_key}",
        )
        self._tasks[delivery] = task
        task.add_done_callback(lambda _: self._tasks.pop(delivery, None))

    def stop(self) -> None:
        """Give back at once what waits; it loses this attempt's count."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _wait_and_publish(
        self, delivery: Delivery, exchange: str, routing_key: str, after: float, attempt: int
    ) -> None:
        headers = without_returns(delivery.properties.headers) | {ATTEMPT_HEADER: attempt}
        properties = delivery.properties.republished(headers=headers)
        try:
            await asyncio.sleep(after)
            await self._link.publish(
                Message(exchange, routing_key, delivery.body, properties, mandatory=True),
                timeout=self._publish_timeout,
            )
        except LinkError as exc:
            log.warning(event("put_back_failed", routing_key=routing_key, error=exc))
            delivery.nack(requeue=True)
        except asyncio.CancelledError:
            delivery.nack(requeue=True)
            raise
        else:
            delivery.ack()
