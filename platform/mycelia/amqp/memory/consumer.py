"""A consumer of the memory link: one subscriber after another, and batches of deliveries in between.

`MemoryConsumer` is what the runtime holds. It runs on one `_Channel` after another: a channel is one subscriber at the
broker, and the settler of what was delivered there. Settling a delivery of an earlier channel does nothing, because the
broker has taken it back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from mycelia.amqp.link import ConsumeOptions, LinkState, OnDeliveries, check_prefetch
from mycelia.amqp.memory.broker import MemoryBroker, Peer, QueueSubscriber, Refused
from mycelia.amqp.memory.queues import Entry
from mycelia.amqp.model import STREAM_OFFSET, Delivery
from mycelia.errors import TopologyError
from mycelia.log_event import event

__all__ = ["ConsumerHost", "MemoryConsumer", "get_one"]

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

    def is_auto_delete(self, queue: str) -> bool:
        """Whether `queue` is remembered as one that goes with its last consumer."""
        ...

    def count(self, *, delivered: int = 0, acknowledged: int = 0, requeued: int = 0) -> None:
        """Add to the link's statistics."""
        ...

    def remove(self, consumer: MemoryConsumer) -> None: ...

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is not run by the link's event loop: another thread has published, by a link of its own."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have the link's event loop call it, whoever asks."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> None: ...


class _Channel:
    """One incarnation of a consumer's channel: where its deliveries are settled."""

    __slots__ = (
        "consumer",
        "has_been_used",
        "has_told_loss",
        "outbox",
        "subscriber",
        "unsettled",
    )

    def __init__(self, consumer: MemoryConsumer, subscriber: QueueSubscriber) -> None:
        self.consumer = consumer
        self.subscriber = subscriber
        self.outbox: list[Delivery] = []
        """Sent by the broker and not yet handed to the consumer: what a socket would hold."""
        self.unsettled = 0
        """Handed out and not settled; kept when the broker has taken them back."""
        self.has_been_used = False
        """Whether anything was ever handed out."""
        self.has_told_loss = False

    def empty_outbox(self) -> list[Delivery]:
        """What was in it. Another thread may be putting more into it meanwhile."""
        taken = self.outbox[:]
        del self.outbox[: len(taken)]
        return taken

    @property
    def is_lost(self) -> bool:
        return self.subscriber.queue is None and not self.subscriber.no_ack

    def ack(self, delivery_tag: int) -> None:
        if delivery_tag in self.subscriber.unsettled:
            self.unsettled -= 1
            self.consumer.host.count(acknowledged=1)
            self.consumer.host.broker.settle(self.subscriber, delivery_tag, accepted=True)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if delivery_tag in self.subscriber.unsettled:
            self.unsettled -= 1
            self.consumer.host.count(requeued=int(requeue))
            self.consumer.host.broker.settle(
                self.subscriber, delivery_tag, accepted=False, requeue=requeue
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
        check_prefetch(options.prefetch)
        self.host = host
        self.tag = tag
        self._queue = queue
        self._on_deliveries = on_deliveries
        self._options = options
        self._channel: _Channel | None = None
        self._has_started = False
        self._is_cancelled = False
        self._is_retired = False
        self._is_paused = False
        self._held: list[Delivery] = []
        """Of a `no_ack` consumer that lost its channel while paused: the broker does not have them any more."""

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def prefetch(self) -> int:
        return self._options.prefetch

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    @property
    def is_consuming(self) -> bool:
        return self._channel is not None and self._channel.subscriber.is_consuming

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    @property
    def unsettled(self) -> int:
        channel = self._channel
        if channel is None or self._options.no_ack:
            return 0
        return len(channel.subscriber.unsettled) - len(channel.outbox)

    # --- what can change while it runs -----------------------------------------------------------

    async def set_prefetch(self, prefetch: int) -> None:
        check_prefetch(prefetch)
        channel = self._channel
        if channel is not None and not prefetch and channel.subscriber.is_stream:
            raise TopologyError(
                f'queue "{self._queue}": prefetch 0 refused: a stream needs a prefetch'
            )
        self._options = replace(self._options, prefetch=prefetch)
        if channel is not None:
            self.host.broker.begin_anew(channel.subscriber, prefetch)
        await asyncio.sleep(0)

    async def pause(self) -> None:
        self._is_paused = True
        if self._channel is not None and not self.host.is_auto_delete(self._queue):
            self.host.broker.cancel(self._channel.subscriber)
        await asyncio.sleep(0)

    async def flush(self) -> None:
        await asyncio.sleep(0)  # what is settled is settled at once

    async def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            held, self._held = self._held, []
            if held:
                self._hand_out(held)
            if self._channel is None:
                self.come_back()
            else:
                self._flush(self._channel)
                self._consume_again(self._channel)
        await asyncio.sleep(0)

    def _consume_again(self, channel: _Channel) -> None:
        if channel.subscriber.is_consuming:
            return
        try:
            is_there = self.host.broker.consume_again(channel.subscriber, self._options.prefetch)
        except Refused:
            is_there = False
        if not is_there:
            self._replace(channel)

    # --- life ------------------------------------------------------------------------------------

    def retire(self) -> None:
        self._is_retired = self._is_paused = True

    async def cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            if self._channel is not None:
                self.host.broker.cancel(self._channel.subscriber)
                self._return_outbox(self._channel)
        await asyncio.sleep(0)

    async def aclose(self, timeout: float = 5.0) -> None:
        if self._is_retired:
            self._is_cancelled = True
        else:
            await self.cancel()
        self.host.remove(self)
        channel, self._channel = self._channel, None
        if channel is not None:
            self.host.broker.close(channel.subscriber)
            self._tell_loss(channel)

    def start(self) -> None:
        """Consume on a new channel.

        Raises:
            Refused: the broker said no.
        """
        subscriber = QueueSubscriber(
            self.tag,
            lambda tag, entry, headers: self._queue_delivery(channel, tag, entry, headers),
            lambda: self._cancelled_by_broker(channel),
            prefetch=self._options.prefetch,
            no_ack=self._options.no_ack,
            exclusive=self._options.exclusive,
            arguments=self._arguments(),
        )
        channel = _Channel(self, subscriber)
        self.host.broker.consume(self.host, self._queue, subscriber)
        self._channel = channel
        self._has_started = True

    def _arguments(self) -> dict[str, object]:
        """Of the next subscriber: a stream goes on where it is asked to."""
        arguments = dict(self._options.arguments)
        ask = self._options.resume_from
        if ask is not None and self._has_started:
            try:
                asked = ask()
            except (
                Exception
            ):  # the callback broke its promise; to go on is better than to stand still
                log.exception(event("resume_from_raised", queue=self._queue))
            else:
                if asked is not None:
                    arguments[STREAM_OFFSET] = asked
        return arguments

    def come_back(self) -> None:
        """Consume again after a reconnect or a cancellation; tries until it works or the consumer ends."""
        if (
            self._is_cancelled
            or self._is_paused
            or self._channel is not None
            or not self._may_consume
        ):
            return
        try:
            self.host.redeclare(self._queue)
            self.start()
        except (Refused, TopologyError) as refusal:
            log.warning(event("resume_refused", queue=self._queue, reason=str(refusal)))
            self.host.call_later(_RESUME_DELAY_S, self.come_back)

    def lost(self) -> None:
        """The connection is gone: what was not settled, or not even handed out, is with the broker again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._leave(channel)

    def detach(self) -> None:
        """The link closes."""
        self._is_cancelled = True
        if self._channel is not None:
            self._channel.outbox.clear()

    def closed(self) -> None:
        """The link has closed."""
        if self._channel is not None:
            self._tell_loss(self._channel)

    @property
    def _may_consume(self) -> bool:
        return self.host.state in (LinkState.CONNECTED, LinkState.BLOCKED)

    def _queue_delivery(
        self, channel: _Channel, tag: int, entry: Entry, extra_headers: Mapping[str, object]
    ) -> None:
        is_first = not channel.outbox
        channel.outbox.append(_delivery(channel, self.tag, tag, entry, extra_headers))
        if self.host.is_elsewhere:
            self.host.call_soon(lambda: self._look_in_outbox(channel))
        elif is_first:
            self.host.call_soon(lambda: self._flush(channel))

    def _look_in_outbox(self, channel: _Channel) -> None:
        if self._channel is not channel:
            return  # what is in it has gone back to its queue with the channel
        if self._is_cancelled:
            self._return_outbox(channel)
        else:
            self._flush(channel)

    def _flush(self, channel: _Channel) -> None:
        if self._is_paused or not channel.outbox:
            return
        batch = channel.empty_outbox()
        if not self._options.no_ack:
            channel.unsettled += len(batch)
            channel.has_been_used = True
        self._hand_out(batch)

    def _hand_out(self, batch: list[Delivery]) -> None:
        self.host.count(delivered=len(batch))
        try:
            self._on_deliveries(batch)
        except Exception:  # the callback broke its promise; the other consumers must not suffer
            log.exception(event("on_deliveries_raised", queue=self._queue))

    def _return_outbox(self, channel: _Channel) -> None:
        outbox = channel.empty_outbox()
        if self._options.no_ack:
            if outbox:
                self._hand_out(outbox)  # the broker has forgotten them already
            return
        for delivery in outbox:
            self.host.broker.settle(
                channel.subscriber, delivery.delivery_tag, accepted=False, requeue=True
            )

    def _cancelled_by_broker(self, channel: _Channel) -> None:
        # What was handed out dies with the channel: a fresh channel replaces it, and the broker requeues.
        self.host.call_soon(lambda: self._replace(channel))

    def _replace(self, channel: _Channel) -> None:
        if self._channel is not channel:
            return
        self.host.broker.close(channel.subscriber)
        self._channel = None
        self._leave(channel)
        self.come_back()

    def _leave(self, channel: _Channel) -> None:
        """Forget what a channel that is gone had not handed out, and go on where it stopped, if it read a stream."""
        if self._is_paused and self._options.no_ack:
            self._held += channel.outbox
        channel.outbox.clear()
        self._tell_loss(channel)
        if channel.subscriber.cursor:
            arguments = {**self._options.arguments, STREAM_OFFSET: channel.subscriber.cursor}
            self._options = replace(self._options, arguments=arguments)

    def _tell_loss(self, channel: _Channel) -> None:
        on_lost = self._options.on_lost
        if channel.has_told_loss or on_lost is None or not channel.has_been_used:
            return
        channel.has_told_loss = True
        try:
            on_lost()
        except (
            Exception
        ):  # the callback broke its promise; the consumer must come back all the same
            log.exception(event("on_lost_raised", queue=self._queue))


def _delivery(
    settler: _Channel | _Got,
    consumer_tag: str,
    tag: int,
    entry: Entry,
    extra_headers: Mapping[str, object],
) -> Delivery:
    message = entry.message
    properties = message.copy_properties()
    if extra_headers:
        properties.headers = {**(properties.headers or {}), **extra_headers}
    return Delivery(
        settler,
        consumer_tag,
        tag,
        entry.redelivered,
        message.exchange,
        message.routing_key,
        properties,
        message.body,
    )


class _Got:
    """Where a message that was asked for is settled."""

    def __init__(self, host: ConsumerHost) -> None:
        self.delivery: Delivery | None = None
        self.subscriber = QueueSubscriber(
            "", self._take, _ignore, prefetch=1, no_ack=False, exclusive=False, arguments={}
        )
        self._host = host

    @property
    def is_lost(self) -> bool:
        return self.subscriber.queue is None

    def ack(self, delivery_tag: int) -> None:
        if delivery_tag in self.subscriber.unsettled:
            self._host.count(acknowledged=1)
            self._settle(delivery_tag, accepted=True)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if delivery_tag in self.subscriber.unsettled:
            self._host.count(requeued=int(requeue))
            self._settle(delivery_tag, accepted=False, requeue=requeue)

    def _settle(self, tag: int, *, accepted: bool, requeue: bool = False) -> None:
        self._host.broker.settle(self.subscriber, tag, accepted=accepted, requeue=requeue)

    def _take(self, tag: int, entry: Entry, extra_headers: Mapping[str, object]) -> None:
        self.delivery = _delivery(self, "", tag, entry, extra_headers)


def get_one(host: ConsumerHost, queue: str) -> Delivery | None:
    """One message of `queue`, to be settled; `None` if none is ready.

    Raises:
        Refused: as `MemoryBroker.get()`.
    """
    got = _Got(host)
    if not host.broker.get(host, queue, got.subscriber):
        return None
    host.count(delivered=1)
    return got.delivery


def _ignore() -> None:
    pass
