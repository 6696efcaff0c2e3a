"""Another attempt, later: a message kept for a while, then published again with its count raised."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from mycelia.amqp import Delivery, Link, Message
from mycelia.entrypoints.moving import Mover
from mycelia.entrypoints.republished import HEADER_LIMITS, for_another_attempt
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    DeadlinePassed,
    ProtocolError,
    describe,
)
from mycelia.log_event import event

__all__ = ["PutBack"]

log = logging.getLogger("mycelia.entrypoints")

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each further try when the queue does not take the message back (it is full, for instance). Arbitrary: half a
minute, beside what the link itself waits for."""


class PutBack:
    """Puts messages of one consumer back, each after its own delay.

    Args:
        link: an open link.
        publish_timeout: seconds for the broker to take the message.
        user: who publishes on the link.
        on_acknowledged: told of each message that has been put back and acknowledged.
    """

    def __init__(
        self,
        link: Link,
        *,
        publish_timeout: float,
        user: str | None = None,
        on_acknowledged: Callable[[Delivery], None],
    ) -> None:
        self._link = link
        self._on_acknowledged = on_acknowledged
        self.publish_timeout = publish_timeout
        """May be changed at any time."""
        self._user = user
        self._mover = Mover()

    @property
    def deliveries(self) -> list[Delivery]:
        """What waits to be put back."""
        return self._mover.deliveries

    def later(
        self,
        delivery: Delivery,
        exchange: str,
        routing_key: str,
        after: float,
        *,
        attempt: int,
        returns: int = 0,
        expires_at_ms: int | None = None,
        on_given_up: Callable[[], None],
        on_expired: Callable[[DeadlinePassed], None],
    ) -> None:
        """Publish `delivery` again `after` seconds from now, then acknowledge it. Does not wait; never raises.

        Args:
            attempt: which one it will be.
            returns: how often it has come back without an outcome, where the queue does not count that.
            expires_at_ms: when its time to live ends, in milliseconds since the epoch.
            on_given_up: settles it when the queue does not take it, after half a minute and more. (Where no broker
                can be reached, it goes back.)
            on_expired: settles it when its time to live is over before it could be published; the broker would drop it
                without a word.
        """

        async def publish() -> None:
            now_ms = int(time.time() * 1000)
            if expires_at_ms is not None and expires_at_ms <= now_ms:
                raise DeadlinePassed(f"{routing_key}: its time was over before attempt {attempt}.")
            refusal: ProtocolError | None = None
            for limit in HEADER_LIMITS:
                properties = for_another_attempt(
                    delivery,
                    attempt=attempt,
                    returns=returns,
                    expires_at_ms=expires_at_ms,
                    now_ms=now_ms,
                    user=self._user,
                    limit=limit,
                )
                message = Message(exchange, routing_key, delivery.body, properties, mandatory=True)
                try:
                    await self._link.publish(message, timeout=self.publish_timeout)
                except ProtocolError as exc:  # the frame is smaller than hoped for
                    refusal = exc
                else:
                    return
            assert refusal is not None
            raise refusal

        def on_failure(exc: Exception, retry_in_s: float | None) -> None:
            log.warning(
                event(
                    "put_back_failed",
                    routing_key=routing_key,
                    attempt=attempt,
                    retry_in_s=retry_in_s,
                    error=describe(exc),
                )
            )

        def given_up(exc: Exception) -> None:
            if isinstance(exc, BrokerUnavailable | BrokerBlocked):
                delivery.nack(requeue=True)
            elif isinstance(exc, DeadlinePassed):
                on_expired(exc)
            else:
                on_given_up()

        self._mover.move(
            delivery,
            publish,
            name=f"mycelia:put-back:{routing_key}",
            after=after,
            pauses=PAUSES_S,
            on_failure=on_failure,
            on_given_up=given_up,
            on_moved=lambda: self._on_acknowledged(delivery),
        )

    def stop(self) -> None:
        """Give back at once what waits; it loses this attempt's count."""
        self._mover.give_back()
