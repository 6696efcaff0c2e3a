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

from mycelia.amqp import Delivery, Message, Queue
from mycelia.entrypoints.received import attempt_of, without_returns
from mycelia.errors import MyceliaError, describe, text_of
from mycelia.log_event import event
from mycelia.runtime import Container, SharedExtension
from mycelia.wire import ATTEMPT_HEADER

__all__ = [
    "DeadLetters",
    "dead_letter_headers",
    "dead_letter_queue_name",
]

log = logging.getLogger("mycelia.entrypoints")

MAX_ERROR_CHARS = 4 * 1024
MAX_TRACEBACK_CHARS = 16 * 1024
MAX_RAW_HEADERS_BYTES = 16 * 1024
RETRY_DELAY_S = 5.0
"""How long a message is kept back when its dead letter could not be published, before it goes back to the queue."""


def dead_letter_queue_name(queue: str) -> str:
    """The dead-letter queue of `queue`."""
    return f"{queue}.dead"


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
    if delivery.fault is not None:  # what could not be decoded goes along as it came
        headers["x-mycelia-raw-headers"] = delivery.raw_headers[:MAX_RAW_HEADERS_BYTES]
    if error is not None:
        text = "".join(traceback.format_exception(error))
        headers["x-mycelia-error-type"] = type(error).__name__
        headers["x-mycelia-error"] = text_of(error)[:MAX_ERROR_CHARS]
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
        properties = original.republished(
            headers=dead_letter_headers(
                delivery,
                queue=queue,
                service=self.container.service_name,
                method=method,
                reason=reason,
                error=error,
                now=time.time(),
            ),
        )
        properties.delivery_mode = 2  # it waits for somebody to look at it
        try:
            await host.link.declare(
                Queue(dead_queue, arguments={"x-queue-type": "quorum"}), timeout=timeout
            )
            await host.link.publish(
                Message("", dead_queue, delivery.body, properties, mandatory=True), timeout=timeout
            )
        except MyceliaError as exc:
            log.error(
                event("dead_letter_failed", queue=queue, error=exc, detail="the message goes back")
            )
            await asyncio.sleep(RETRY_DELAY_S)
            delivery.nack(requeue=True)
        except asyncio.CancelledError:
            delivery.nack(requeue=True)
            raise
        else:
            self.count += 1
            delivery.ack()
            log.warning(
                event(
                    "delivery_dead_lettered",
                    queue=queue,
                    dead_letter_queue=dead_queue,
                    reason=reason,
                    error=None if error is None else describe(error),
                )
            )

    async def stop(self) -> None:
        """Let what is under way reach its queue."""
        if self._tasks:
            done, pending = await asyncio.wait(self._tasks, timeout=5.0)
            for task in pending:
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
