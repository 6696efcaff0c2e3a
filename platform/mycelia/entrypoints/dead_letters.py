"""Dead letters: where a message goes that cannot be handled, with the reason, instead of vanishing.

The service publishes the message itself to `<queue>.dead` (confirmed, then the original is acknowledged), because a
queue declared exactly as Nameko declares it has no dead-letter arguments. So a crash in between leaves the message
in both places, never in neither.

Headers added to the message's own:

| header | type | meaning |
|---|---|---|
| `x-mycelia-reason` | str | `handler_error`, `undecodable`, `too_many_attempts`, `rejected` |
| `x-mycelia-error-type`, `x-mycelia-error` | str | the error's class and text (the text cut at 4 KiB) |
| `x-mycelia-traceback` | str | cut at 16 KiB, the end kept |
| `x-mycelia-queue`, `-exchange`, `-routing-key` | str | where it came from |
| `x-mycelia-service`, `x-mycelia-method` | str | who could not handle it |
| `x-mycelia-attempt` | int | how often it was tried |
| `x-mycelia-failed-at-ms` | int | wall clock, milliseconds since the epoch |
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import Any

from mycelia.amqp import Delivery, Message, Properties, Queue
from mycelia.errors import MyceliaError
from mycelia.runtime import Container, SharedExtension
from mycelia.wire import ATTEMPT_HEADER, MAX_ATTEMPT, read_attempt

__all__ = [
    "DeadLetters",
    "attempt_of",
    "dead_letter_headers",
    "dead_letter_queue_name",
    "returns_of",
    "without_returns",
]

log = logging.getLogger("mycelia.entrypoints")

RETURNS_HEADERS = ("x-acquired-count", "x-delivery-count")
"""A quorum queue's counts of one message, true in that queue only, so never published again; the first found is used.

`x-delivery-count` counted every return up to RabbitMQ 4.2. 4.3 counts only failures in it (`basic.reject`, a channel or
connection that ends) and no `basic.nack`, and has the old count in `x-acquired-count`: how often the message was handed
out before (seen with 4.3.6).
"""
MAX_ERROR_CHARS = 4 * 1024
MAX_TRACEBACK_CHARS = 16 * 1024
RETRY_DELAY_S = 5.0
"""How long a message is kept back when its dead letter could not be published, before it goes back to the queue."""


def dead_letter_queue_name(queue: str) -> str:
    """The dead-letter queue of `queue`."""
    return f"{queue}.dead"


def attempt_of(delivery: Delivery) -> int:
    """Which attempt this delivery is, from 1: counted by us in a header, and by quorum queues at the broker."""
    headers = delivery.properties.headers
    if not headers:
        return 1
    return min(read_attempt(headers) + returns_of(delivery), MAX_ATTEMPT)


def returns_of(delivery: Delivery) -> int:
    """How often the broker has taken this message back, as quorum queues count it; 0 where nobody counts.

    The header counts only on a redelivery. A first delivery has it as its publisher sent it (RabbitMQ 3.10 writes it
    from the second on), so a dead letter that somebody put back would bring the count of its former life.
    """
    if not delivery.redelivered:
        return 0
    headers = delivery.properties.headers or {}
    for header in RETURNS_HEADERS:
        count = headers.get(header)
        if type(count) is int:
            return max(count, 0)
    return 0


def without_returns(headers: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of the headers without the queue's counts, to publish the message anew."""
    return {key: value for key, value in (headers or {}).items() if key not in RETURNS_HEADERS}


def dead_letter_headers(
    delivery: Delivery,
    *,
    queue: str,
    service: str,
    method: str,
    reason: str,
    error: BaseException | None,
    now: float,
) -> dict[str, Any]:
    """The message's own headers and those that tell its fate. `now` is wall-clock seconds."""
    headers = without_returns(delivery.properties.headers)
    headers |= {
        "x-mycelia-reason": reason,
        "x-mycelia-queue": queue,
        "x-mycelia-exchange": delivery.exchange,
        "x-mycelia-routing-key": delivery.routing_key,
        "x-mycelia-service": service,
        "x-mycelia-method": method,
        "x-mycelia-failed-at-ms": int(now * 1000),
        ATTEMPT_HEADER: attempt_of(delivery),
    }
    if error is not None:
        text = "".join(traceback.format_exception(error))
        headers["x-mycelia-error-type"] = type(error).__name__
        headers["x-mycelia-error"] = str(error)[:MAX_ERROR_CHARS]
        headers["x-mycelia-traceback"] = text[-MAX_TRACEBACK_CHARS:]
    return headers


class DeadLetters(SharedExtension):
    """Moves messages of one container to their dead-letter queues."""

    needs_broker = True
    container: Container | None = None

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.count = 0

    def bury(
        self,
        delivery: Delivery,
        *,
        queue: str,
        method: str,
        reason: str,
        error: BaseException | None = None,
    ) -> None:
        """Publish `delivery` to `<queue>.dead`, then acknowledge it. Does not wait; never raises."""
        task = asyncio.create_task(
            self._bury(delivery, queue, method, reason, error), name=f"mycelia:dead:{queue}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(
        self,
        delivery: Delivery,
        queue: str,
        method: str,
        reason: str,
        error: BaseException | None,
    ) -> None:
        assert self.container is not None
        host = self.container.host
        dead_queue = dead_letter_queue_name(queue)
        timeout = host.settings.mycelia.publish_timeout
        original = delivery.properties
        properties = Properties(
            content_type=original.content_type,
            content_encoding=original.content_encoding,
            headers=dead_letter_headers(
                delivery,
                queue=queue,
                service=self.container.service_name,
                method=method,
                reason=reason,
                error=error,
                now=time.time(),
            ),
            delivery_mode=2,
            correlation_id=original.correlation_id,
            message_id=original.message_id,
            timestamp=original.timestamp,
            type=original.type,
            app_id=original.app_id,
        )
        try:
            await host.link.declare(
                Queue(dead_queue, arguments={"x-queue-type": "quorum"}), timeout=timeout
            )
            await host.link.publish(
                Message("", dead_queue, delivery.body, properties, mandatory=True), timeout=timeout
            )
        except MyceliaError as exc:
            log.error("dead_letter_failed queue=%s error=%s: the message goes back", queue, exc)
            await asyncio.sleep(RETRY_DELAY_S)
            delivery.nack(requeue=True)
        except asyncio.CancelledError:
            delivery.nack(requeue=True)
            raise
        else:
            self.count += 1
            delivery.ack()
            log.warning(
                "delivery_dead_lettered queue=%s dead_letter_queue=%s reason=%s error=%s",
                queue,
                dead_queue,
                reason,
                f"{type(error).__name__}: {error}" if error is not None else "",
            )

    async def stop(self) -> None:
        """Let what is under way reach its queue."""
        if self._tasks:
            done, pending = await asyncio.wait(self._tasks, timeout=5.0)
            for task in pending:
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
