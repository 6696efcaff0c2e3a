"""Another attempt, later: a message that is published for it, with its count raised, and then acknowledged.

The pause is spent at the broker (`mycelia.amqp.delays`), so it costs no worker and no place in the prefetch, and outlives this
process. Nothing waits in here but the broker's confirm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from mycelia.amqp import Delivery, Message
from mycelia.amqp.delays import MAX_DELAY_S
from mycelia.entrypoints.moving import Mover
from mycelia.entrypoints.republished import HEADER_LIMITS, for_another_attempt
from mycelia.errors import (
    AccessRefused,
    BrokerBlocked,
    BrokerUnavailable,
    DeadlinePassed,
    LinkError,
    ProtocolError,
    TopologyError,
    describe,
)
from mycelia.log_event import event
from mycelia.runtime import Container, Host, SharedExtension

__all__ = ["PutBack", "PutBacks"]

log = logging.getLogger("mycelia.entrypoints")

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each further try when the broker does not take the message (its queue is full, for instance). Arbitrary: half a
minute, beside what the link itself waits for."""

HELD_S: Final = 30.0
"""How long a message is kept here at most where the broker does not let us have delays (no permission to declare them)."""

DELAY_HEADERS_BYTES: Final = 1536
"""What the way through a delay may add to a message's headers: its levels, and the name of its queue."""

FINISH_S: Final = 5.0
"""For the last ones to reach the broker when a service stops."""


class PutBack:
    """Puts messages of one consumer back, each after its own delay.

    Args:
        host: of an open link.
        queue: where its messages come from, and come back to.
        user: who publishes on the link.
        may_vanish: the queue goes with its consumer, and then the messages may go as well.
        on_acknowledged: told of each message that has been put back and acknowledged.
    """

    def __init__(
        self,
        host: Host,
        queue: str,
        *,
        user: str | None = None,
        may_vanish: bool = False,
        on_acknowledged: Callable[[Delivery], None],
    ) -> None:
        self._host = host
        self._queue = queue
        self._on_acknowledged = on_acknowledged
        self._user = user
        self._may_vanish = may_vanish
        self._mover = Mover()
        self._has_said_held = False
        self.retried = 0
        """Messages that the broker has for another attempt, of all time."""

    @property
    def deliveries(self) -> list[Delivery]:
        """What is on its way back to the broker."""
        return self._mover.deliveries

    async def expect(self, after: float | None) -> None:
        """Have the way back to the queue declared, so that what is on it finds the queue, also a new one. Raises nothing.

        Args:
            after: the pause that is likely to come first.
        """
        try:
            await self._host.delays.expect(self._queue, after=after)
        except LinkError as exc:
            self._say_held(exc)

    def later(
        self,
        delivery: Delivery,
        exchange: str,
        routing_key: str,
        after: float,
        *,
        attempt: int,
        returns: int = 0,
        failed_at_ms: int | None = None,
        expires_at_ms: int | None = None,
        on_given_up: Callable[[], None],
        on_expired: Callable[[DeadlinePassed], None],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Publish `delivery` so that it comes back `after` seconds from now, then acknowledge it. Does not wait; never raises.

        Args:
            exchange: and `routing_key`, by which it comes back to the queue where it is published without a delay.
            attempt: which one it will be.
            returns: how often it has come back without an outcome, where the queue does not count that.
            failed_at_ms: when this attempt has failed, in milliseconds since the epoch.
            expires_at_ms: when its time to live ends, in milliseconds since the epoch.
            on_given_up: settles it when the broker does not take it, after half a minute and more. (Where no broker
                can be reached, it goes back.)
            on_expired: settles it when its time to live is over before it could be published; the broker would drop it
                without a word.
            on_end: told when it is settled, in whichever way.
        """
        after = min(max(after, 0.0), MAX_DELAY_S)

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
                    failed_at_ms=failed_at_ms,
                    expires_at_ms=expires_at_ms,
                    now_ms=now_ms,
                    user=self._user,
                    limit=limit - DELAY_HEADERS_BYTES if after else limit,
                )
                message = Message(exchange, routing_key, delivery.body, properties, mandatory=True)
                try:
                    await self._publish(message, after)
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

        def on_moved() -> None:
            self.retried += attempt > 1
            self._on_acknowledged(delivery)
            log.debug(
                event(
                    "delivery_put_back", queue=self._queue, attempt=attempt, delay_s=round(after, 3)
                )
            )

        self._mover.move(
            delivery,
            publish,
            name=f"mycelia:put-back:{routing_key}",
            pauses=PAUSES_S,
            on_failure=on_failure,
            on_given_up=given_up,
            on_moved=on_moved,
            on_end=on_end,
        )

    async def _publish(self, message: Message, after: float) -> None:
        timeout = self._host.settings.mycelia.publish_timeout
        if after:
            try:
                await self._host.delays.publish(
                    message,
                    after,
                    queue=self._queue,
                    may_vanish=self._may_vanish,
                    timeout=timeout,
                )
            except (AccessRefused, TopologyError) as exc:
                self._say_held(exc)
                await asyncio.sleep(min(after, HELD_S))
            else:
                return
        await self._host.link.publish(message, timeout=timeout)

    def _say_held(self, exc: Exception) -> None:
        if not self._has_said_held:
            self._has_said_held = True
            log.warning(
                event(
                    "delays_refused",
                    queue=self._queue,
                    held_s=HELD_S,
                    error=describe(exc),
                    detail="messages wait for another attempt in this process, in its prefetch, for held_s at most; "
                    "let the user configure, write and read mycelia\\.delay.*",
                )
            )

    def give_back(self) -> None:
        """Give back at once what has not reached the broker; it loses this attempt's count."""
        self._mover.give_back()

    async def finish(self, timeout: float = FINISH_S) -> None:
        """Let what is under way reach the broker; the rest goes back after `timeout` seconds."""
        await self._mover.finish(timeout)


class PutBacks(SharedExtension):
    """The `PutBack` of each handler of a service. They end after its workers, the last of which may fail as well."""

    needs_broker = True
    container: Container | None = None

    def __init__(self) -> None:
        self._all: list[PutBack] = []

    def add(self, put_back: PutBack) -> PutBack:
        self._all.append(put_back)
        return put_back

    async def stop(self) -> None:
        await asyncio.gather(*(put_back.finish() for put_back in self._all))
        self._all.clear()

    def kill(self) -> None:
        for put_back in self._all:
            put_back.give_back()
