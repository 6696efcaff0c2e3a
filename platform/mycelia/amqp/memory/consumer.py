"""A consumer of the memory link: one subscription after another, and batches of deliveries in between.

`MemoryConsumer` is what the runtime holds. It runs on one `_Channel` after another: a channel is one subscription at the
broker, and the settler of what was delivered there. Settling a delivery of an earlier channel does nothing, because the
broker has taken it back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from mycelia.amqp.link import ConsumeOptions, LinkState, OnDeliveries
from mycelia.amqp.memory.broker import MemoryBroker, Peer, Refused, Subscription
from mycelia.amqp.memory.queues import Entry
from mycelia.amqp.model import Delivery
from mycelia.errors import TopologyError

__all__ = ["ConsumerHost", "MemoryConsumer"]

log = logging.getLogger("mycelia.amqp")

_RESUME_DELAY_S = 0.05
"""Between attempts to resume a consumer whose queue is not there. Short: nobody else pays for it in memory."""


class ConsumerHost(Peer, Protocol):
    """What a consumer asks of its link."""

    broker: MemoryBroker

    @property
    def state(self) -> LinkState: ...

    def redeclare(self, queue: str) -> None:
        """Declare again what is remembered of `queue`: itself and its bindings.

        Raises:
            TopologyError: refused.
        """
        ...

    def count(self, *, delivered: int = 0, acknowledged: int = 0, requeued: int = 0) -> None:
        """Add to the link's statistics."""
        ...

    def remove(self, consumer: MemoryConsumer) -> None: ...

    def call_soon(self, callback: Callable[[], None]) -> None: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> None: ...


class _Channel:
    """One incarnation of a consumer's channel: where its deliveries are settled."""

    __slots__ = ("consumer", "outbox", "subscription")

    def __init__(self, consumer: MemoryConsumer, subscription: Subscription) -> None:
        self.consumer = consumer
        self.subscription = subscription
        self.outbox: list[Delivery] = []
        """Sent by the broker and not yet handed to the consumer: what a socket would hold."""

    def ack(self, delivery_tag: int) -> None:
        if delivery_tag in self.subscription.unsettled:
            self.consumer.host.count(acknowledged=1)
            self.consumer.host.broker.settle(self.subscription, delivery_tag, accepted=True)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if delivery_tag in self.subscription.unsettled:
            self.consumer.host.count(requeued=int(requeue))
            self.consumer.host.broker.settle(
                self.subscription, delivery_tag, accepted=False, requeue=requeue
            )


class MemoryConsumer:
    """A running consumer of a `MemoryLink`."""

    def __init__(
        self,
        host: ConsumerHost,
        tag: str,
        queue: str,
        on_deliveries: OnDeliveries,
        options: ConsumeOptions,
    ) -> None:
        self.host = host
        self.tag = tag
        self._queue = queue
        self._on_deliveries = on_deliveries
        self._options = options
        self._channel: _Channel | None = None
        self._is_cancelled = False

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def unsettled(self) -> int:
        channel = self._channel
        if channel is None or self._options.no_ack:
            return 0
        return len(channel.subscription.unsettled) - len(channel.outbox)

    async def cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            if self._channel is not None:
                self.host.broker.cancel(self._channel.subscription)
                self._return_outbox(self._channel)
        await asyncio.sleep(0)

    async def aclose(self, timeout: float = 5.0) -> None:
        await self.cancel()
        self.host.remove(self)
        channel, self._channel = self._channel, None
        if channel is not None:
            self.host.broker.close(channel.subscription)

    def start(self) -> None:
        """Consume on a new channel.

        Raises:
            Refused: the broker said no.
        """
        subscription = Subscription(
            self.tag,
            lambda tag, entry, headers: self._queue_delivery(channel, tag, entry, headers),
            lambda: self._cancelled_by_broker(channel),
            prefetch=self._options.prefetch,
            no_ack=self._options.no_ack,
            exclusive=self._options.exclusive,
            arguments=dict(self._options.arguments),
        )
        channel = _Channel(self, subscription)
        self.host.broker.consume(self.host, self._queue, subscription)
        self._channel = channel

    def resume(self) -> None:
        """Consume again after a reconnect or a cancellation; tries until it works or the consumer ends."""
        if self._is_cancelled or self._channel is not None or not self._may_consume:
            return
        try:
            self.host.redeclare(self._queue)
            self.start()
        except (Refused, TopologyError) as refusal:
            log.warning("resume_refused queue=%r reason=%r", self._queue, str(refusal))
            self.host.call_later(_RESUME_DELAY_S, self.resume)

    def lost(self) -> None:
        """The connection is gone: what was not settled, or not even handed out, is with the broker again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.outbox.clear()
            self._remember_offset(channel)

    def detach(self) -> None:
        """The link closes."""
        self._is_cancelled = True
        if self._channel is not None:
            self._channel.outbox.clear()

    @property
    def _may_consume(self) -> bool:
        return self.host.state in (LinkState.CONNECTED, LinkState.BLOCKED)

    def _queue_delivery(
        self, channel: _Channel, tag: int, entry: Entry, extra_headers: Mapping[str, Any]
    ) -> None:
        message = entry.message
        properties = message.copy_properties()
        if extra_headers:
            properties.headers = {**(properties.headers or {}), **extra_headers}
        if not channel.outbox:
            self.host.call_soon(lambda: self._flush(channel))
        channel.outbox.append(
            Delivery(
                channel,
                self.tag,
                tag,
                entry.redelivered,
                message.exchange,
                message.routing_key,
                properties,
                message.body,
            )
        )

    def _flush(self, channel: _Channel) -> None:
        batch, channel.outbox = channel.outbox, []
        if not batch:
            return
        self.host.count(delivered=len(batch))
        try:
            self._on_deliveries(batch)
        except Exception:  # the callback broke its promise; the other consumers must not suffer
            log.exception("on_deliveries_raised queue=%r", self._queue)

    def _return_outbox(self, channel: _Channel) -> None:
        if self._options.no_ack:
            self._flush(channel)  # the broker has forgotten them already
            return
        outbox, channel.outbox = channel.outbox, []
        for delivery in outbox:
            self.host.broker.settle(
                channel.subscription, delivery.delivery_tag, accepted=False, requeue=True
            )

    def _cancelled_by_broker(self, channel: _Channel) -> None:
        # What was handed out dies with the channel: a fresh channel replaces it, and the broker requeues.
        self.host.call_soon(lambda: self._replace(channel))

    def _replace(self, channel: _Channel) -> None:
        if self._channel is not channel:
            return
        channel.outbox.clear()
        self.host.broker.close(channel.subscription)
        self._remember_offset(channel)
        self._channel = None
        self.resume()

    def _remember_offset(self, channel: _Channel) -> None:
        """A stream goes on where it stopped, and does not begin again where `x-stream-offset` first said."""
        if channel.subscription.cursor:
            arguments = {
                **self._options.arguments,
                "x-stream-offset": channel.subscription.cursor,
            }
            self._options = replace(self._options, arguments=arguments)
