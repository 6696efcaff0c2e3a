"""What event handlers and `@consume` have in common: a queue, a lane, and what becomes of each message.

| outcome | what happens to the message |
|---|---|
| handled | acknowledged |
| the handler raised | dead-lettered with the reason |
| … with `requeue_on_error` | published to its queue again after a growing delay, dead-lettered after 20 attempts |
| undecodable, oversized, not accepted | dead-lettered with the reason |
| a middleware says so (`Outcome.settlement`) | acknowledged, tried again later, or dead-lettered |
| the service stops, or dies | back to the queue; delivered again, dead-lettered when it comes back for the 20th time (quorum queues count) |
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import Any

from mycelia.amqp import Binding, ConsumeOptions, Consumer, Delivery, Exchange, Queue
from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    DeadLetter,
    GiveBack,
    Outcome,
    Requeue,
    Retry,
    Settlement,
)
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.entrypoints.put_back import PutBack
from mycelia.entrypoints.received import (
    attempt_of,
    decode_body,
    requeue_delay,
    returns_of,
    stop_deliveries,
)
from mycelia.errors import TooManyDeliveries
from mycelia.runtime import Container, Entrypoint, Lane

__all__ = ["Subscription"]

log = logging.getLogger("mycelia.entrypoints")


DELIVERY_LIMIT = 20
"""Times a message may come back without an outcome, because whoever had it died or was stopped. The next delivery is
buried instead of handled: a message that kills its process must not go through the fleet for ever. RabbitMQ 4 counts
to 20 as well, and then drops the message where no dead-letter exchange is set."""

ACK = Ack()
REQUEUE = Requeue()


class Subscription(Entrypoint, ABC):
    """An entrypoint that handles the messages of one queue."""

    needs_broker = True
    kind = CallKind.MESSAGE
    settlements = frozenset({Ack, Requeue, Retry, DeadLetter})
    container: Container
    dead_letters = DeadLetters()

    def __init__(self, *, requeue_on_error: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.requeue_on_error = requeue_on_error
        self._consumer: Consumer | None = None
        self._lane: Lane | None = None
        self._put_back: PutBack | None = None

    @abstractmethod
    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        """The queue to consume, and all that must be declared for it, the queue included."""

    async def setup(self) -> None:
        container = self.container
        self._link = container.host.link
        self._serializers = container.host.serializers
        self._limits = container.settings.mycelia
        self._parent_calls_tracked = container.settings.parent_calls_tracked
        self._put_back = PutBack(self._link, publish_timeout=self._limits.publish_timeout)
        self._queue, parts = self.topology()
        await self._link.declare(*parts)

    async def start(self) -> None:
        container = self.container
        self._lane = container.make_lane(self)
        self._consumer = await self._link.consume(
            self._queue.name,
            self._on_deliveries,
            ConsumeOptions(prefetch=container.prefetch_of(self)),
        )

    async def stop(self) -> None:
        """Take no more messages; those that wait here go back to the queue."""
        if self._consumer is not None and self._lane is not None:
            await stop_deliveries(self._consumer)
            self._lane.give_back_backlog()
        if self._put_back is not None:
            self._put_back.stop()

    # --- a message comes in -------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        lane = self._lane
        assert lane is not None
        arrived_at = time.monotonic()
        for delivery in deliveries:
            call = Call(
                self.target,
                headers=delivery.properties.headers,
                attempt=attempt_of(delivery),
                arrived_at=arrived_at,
                message=delivery,
                decode=self.decode_arguments,
                parent_calls_tracked=self._parent_calls_tracked,
            )
            if returns_of(delivery) >= DELIVERY_LIMIT:
                lane.refuse(call, TooManyDeliveries(self._queue.name, DELIVERY_LIMIT))
            else:
                lane.submit(call)

    def decode_arguments(self, call: Call) -> Arguments:
        """The payload.

        Raises:
            UndecodableMessage: the message is dead-lettered with it; the method does not run.
        """
        assert call.message is not None
        return (decode_body(call.message, self._serializers),), {}

    # --- an outcome goes out ------------------------------------------------------------------

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        error = outcome.error
        if error is None:
            return ACK
        if isinstance(error, TooManyDeliveries):
            return DeadLetter("too_many_attempts")
        if outcome.is_refused:
            return DeadLetter("undecodable")
        return REQUEUE if self.requeue_on_error else DeadLetter("handler_error")

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        delivery = call.message
        assert delivery is not None
        match settlement:
            case Ack():
                delivery.ack()
            case GiveBack():
                delivery.nack(requeue=True)
            case Requeue():
                self._again(call, delivery, requeue_delay(call.attempt), outcome.error)
            case Retry(after):
                self._again(call, delivery, after, outcome.error)
            case DeadLetter(reason):
                self._bury(delivery, reason, outcome.error)

    def _again(
        self, call: Call, delivery: Delivery, after: float, error: BaseException | None
    ) -> None:
        if call.attempt >= self._limits.requeue_attempts:
            self._bury(delivery, "too_many_attempts", error)
            return
        assert self._put_back is not None
        self._put_back.later(delivery, "", self._queue.name, after, attempt=call.attempt + 1)

    def _bury(self, delivery: Delivery, reason: str, error: BaseException | None) -> None:
        self.dead_letters.bury(
            delivery, queue=self._queue.name, method=self.method_name, reason=reason, error=error
        )
