"""One `publish()` on its way to the broker's confirm."""

from __future__ import annotations

import asyncio

from mycelia.amqp.model import Message
from mycelia.amqp.rabbit.backoff import Backoff

__all__ = ["Publishing"]


class Publishing:
    """Belongs to `RabbitPublisher`, and to the `StreamChannel` that it is on."""

    __slots__ = (
        "deadline",
        "done",
        "is_returned",
        "message",
        "message_id",
        "nack_backoff",
        "nacked_since",
        "nacks",
        "suspicion",
        "timeout",
        "times_refused",
        "times_sent",
    )

    def __init__(
        self,
        message: Message,
        message_id: str,
        done: asyncio.Future[None],
        timeout: float,
        deadline: float,
    ) -> None:
        self.message = message
        self.message_id = message_id
        self.done = done
        self.timeout = timeout
        self.deadline = deadline
        self.times_sent = 0
        self.times_refused = 0
        self.is_returned = False
        self.suspicion = 0
        """How often it was on the wire when a channel or connection was closed over we do not know which publishing."""
        self.nacks = 0
        self.nacked_since = 0.0
        self.nack_backoff: Backoff | None = None
