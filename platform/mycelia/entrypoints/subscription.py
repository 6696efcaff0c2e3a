"""What event handlers and `@consume` have in common: a queue, a lane, and what becomes of each message.

| outcome | what happens to the message |
|---|---|
| handled | acknowledged |
| the handler raised | dead-lettered with the reason |
| … with `requeue_on_error` | published to its queue again after a growing delay, dead-lettered after 20 attempts |
| undecodable, oversized, not accepted | dead-lettered with the reason |
| the service stops, or dies | back to the queue; delivered again, dead-lettered when it comes back for the 20th time (quorum queues count) |
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Consumer,
    Delivery,
    Exchange,
    Message,
    Properties,
    Queue,
)
from mycelia.call import Call, CallKind, Outcome, Settle
from mycelia.entrypoints.dead_letters import DeadLetters, attempt_of, returns_of, without_returns
from mycelia.errors import LinkError, MyceliaError
from mycelia.runtime import Container, Entrypoint
from mycelia.wire import ATTEMPT_HEADER, decompress

__all__ = ["Subscription", "requeue_delay", "stop_deliveries"]

log = logging.getLogger("mycelia.entrypoints")


DELIVERY_LIMIT = 20
"""Times a message may come back without an outcome, because whoever had it died or was stopped. The next delivery is
buried instead of handled: a message that kills its process must not go through the fleet for ever. RabbitMQ 4 counts
to 20 as well, and then drops the message where no dead-letter exchange is set."""

CANCEL_TIMEOUT = 3.0
"""Seconds for the broker's word that it sends no more. It must leave the workers their grace."""


async def stop_deliveries(consumer: Consumer) -> None:
    """Take no more messages. Bounded: a broker that does not answer cannot hold up a stop."""
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await consumer.cancel()
    except TimeoutError:
        log.warning(
            "cancel_unanswered queue=%s timeout_s=%g: stopping without",
            consumer.queue,
            CANCEL_TIMEOUT,
        )


def requeue_delay(attempt: int) -> float:
    """Seconds before attempt `attempt + 1`: 0.1, 0.2, 0.4 … at most 30."""
    return float(min(0.1 * 2 ** min(attempt - 1, 10), 30.0))


class Subscription(Entrypoint, ABC):
    """An entrypoint that handles the messages of one queue."""

    needs_broker = True
    container: Container
    dead_letters = DeadLetters()
    kind = CallKind.MESSAGE

    def __init__(self, *, requeue_on_error: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.requeue_on_error = requeue_on_error
        self._consumer: Consumer | None = None
        self._retries: dict[Delivery, asyncio.Task[None]] = {}

    @abstractmethod
    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        """The queue to consume, and all that must be declared for it, the queue included."""

    async def setup(self) -> None:
        container = self.container
        self._link = container.host.link
        self._serializers = container.host.serializers
        self._limits = container.settings.mycelia
        self._queue, parts = self.topology()
        await self._link.declare(*parts)

    async def start(self) -> None:
        container = self.container
        self._lane = container.make_lane(self, self._settle)
        self._consumer = await self._link.consume(
            self._queue.name,
            self._on_deliveries,
            ConsumeOptions(prefetch=container.prefetch_of(self)),
        )

    async def stop(self) -> None:
        """Take no more messages; those that wait here go back to the queue."""
        if self._consumer is not None:
            await stop_deliveries(self._consumer)
            for call in self._lane.take_backlog():
                call.message.nack(requeue=True)
        for task in list(self._retries.values()):
            task.cancel()

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._accept(delivery)
            except MyceliaError as exc:
                self._bury(delivery, "undecodable", exc)
            except Exception as exc:
                # Whatever a message holds, it must not end the consumer.
                log.exception("delivery_failed queue=%s", self._queue.name)
                self._bury(delivery, "undecodable", exc)

    def _accept(self, delivery: Delivery) -> None:
        properties = delivery.properties
        if returns_of(delivery) >= DELIVERY_LIMIT:
            self._bury(delivery, "too_many_attempts", None)
            return
        body = decompress(delivery.body, properties.headers, self._serializers.max_body_bytes)
        payload = self._serializers.decode(
            body, properties.content_type, properties.content_encoding
        )
        self._lane.submit(
            Call(
                self.kind,
                self.container.service_name,
                self.method_name,
                (payload,),
                headers=properties.headers,
                attempt=attempt_of(delivery),
                message=delivery,
                parent_calls_tracked=self.container.settings.parent_calls_tracked,
            )
        )

    def _settle(self, call: Call, outcome: Outcome) -> None:
        delivery: Delivery = call.message
        error = outcome.error
        if outcome.settle is Settle.REQUEUE:
            delivery.nack(requeue=True)
        elif outcome.settle is Settle.DEAD_LETTER:
            self._bury(delivery, "rejected", error)
        elif error is None or outcome.settle is Settle.ACK:
            delivery.ack()
        else:
            self._log_error(call, error)
            if not self.requeue_on_error:
                self._bury(delivery, "handler_error", error)
            elif call.attempt >= self._limits.requeue_attempts:
                self._bury(delivery, "too_many_attempts", error)
            else:
                self._retry_later(delivery, call.attempt)

    def _log_error(self, call: Call, error: BaseException) -> None:
        if isinstance(error, self.expected_exceptions):
            log.warning(
                "worker_raised call=%s error=%s: %s", call.target, type(error).__name__, error
            )
        else:
            log.error("worker_failed call=%s attempt=%d", call.target, call.attempt, exc_info=error)

    def _bury(self, delivery: Delivery, reason: str, error: BaseException | None) -> None:
        self.dead_letters.bury(
            delivery, queue=self._queue.name, method=self.method_name, reason=reason, error=error
        )

    def _retry_later(self, delivery: Delivery, attempt: int) -> None:
        """Keep the message for a while, then publish it to the end of its queue with the count raised.

        Kept unacknowledged meanwhile, so a crash loses nothing, and the prefetch bounds how many wait.
        """
        task = asyncio.create_task(
            self._retry(delivery, attempt), name=f"mycelia:requeue:{self._queue.name}"
        )
        self._retries[delivery] = task
        task.add_done_callback(lambda _: self._retries.pop(delivery, None))

    async def _retry(self, delivery: Delivery, attempt: int) -> None:
        original = delivery.properties
        headers = without_returns(original.headers) | {ATTEMPT_HEADER: attempt + 1}
        properties = Properties(
            content_type=original.content_type,
            content_encoding=original.content_encoding,
            headers=headers,
            delivery_mode=2,
            priority=original.priority,
            correlation_id=original.correlation_id,
            message_id=original.message_id,
            timestamp=original.timestamp,
            type=original.type,
            app_id=original.app_id,
        )
        try:
            await asyncio.sleep(requeue_delay(attempt))
            await self._link.publish(
                Message("", self._queue.name, delivery.body, properties, mandatory=True),
                timeout=self._limits.publish_timeout,
            )
        except LinkError as exc:
            log.warning("requeue_failed queue=%s error=%s", self._queue.name, exc)
            delivery.nack(requeue=True)
        except asyncio.CancelledError:
            delivery.nack(requeue=True)
            raise
        else:
            delivery.ack()
