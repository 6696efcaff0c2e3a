"""One channel of a consumer: takes its deliveries, settles them, and changes while it runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mycelia.amqp.link import ConsumeOptions, LinkStatistics, OnDeliveries
from mycelia.amqp.model import STREAM_OFFSET, Delivery, Queue, Returned
from mycelia.amqp.rabbit.ack_ledger import AckLedger
from mycelia.amqp.rabbit.connection import BrokerChannel
from mycelia.amqp.rabbit.frames import encode_ack, encode_nack
from mycelia.errors import LinkError, ProtocolError
from mycelia.log_event import event

__all__ = ["Intake"]

_log = logging.getLogger("mycelia.amqp")

_QUIET_S: Final = 0.1
"""Without a delivery for so long, with all acknowledgements at the broker, nothing is on its way. Arbitrary; a round trip and the
queue's part take milliseconds."""

_HANDLED_ANYWAY: Final = 16
"""Settlements in a row that a quorum queue is sure to be told, even if the channel is closed right behind them. RabbitMQ sends a queue 32
that it has not handled (`quorum_commands_soft_limit`); what is beyond waits in the channel, and is forgotten when that is closed: the
messages come again, though they were acknowledged. Half of 32, because its channel has some of its own to send."""

_BEHIND_ALL_OTHERS: Final = -1000
"""The priority of a consumer that wants no message."""

_ACK_DELAY: Final = 0.004
"""Seconds an acknowledgement may wait for others. Bounds what is handled twice when the process dies right then."""


class _NoSettler:
    """Of a `no_ack` consumer: the broker has forgotten its messages already."""

    def ack(self, delivery_tag: int) -> None:
        pass

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        pass

    is_lost = False


class Intake:
    """One channel incarnation of a consumer: takes its deliveries and settles them."""

    def __init__(
        self,
        channel: BrokerChannel,
        queue: str,
        options: ConsumeOptions,
        on_deliveries: OnDeliveries,
        statistics: LinkStatistics,
        declared: Queue | None,
        on_place_known: Callable[[], None],
        *,
        is_as_declared: bool = True,
    ) -> None:
        self.channel = channel
        self.batch: list[Delivery] = []
        self.settler: Any = _NoSettler() if options.no_ack else self
        self.ledger = AckLedger()
        self.ended: asyncio.Future[str] = channel.connection.loop.create_future()
        self.consumer_tag = f"{queue[:120]}.{os.urandom(8).hex()}"
        """Given to every delivery, also of the subscriptions that follow the first on this channel."""
        self.is_lost = False
        self.prefetch = 0
        self.is_paused = False
        self.held: list[Delivery] = []
        """Came while paused (they were on the way): handed out at `resume()`."""
        self._subscriptions: list[str] = []
        """Consumer tags that the broker delivers to, the latest last."""
        self._subscription_count = 0
        self._latest_tag = self.consumer_tag
        self._is_accepted = False
        """Whether the broker has accepted a subscription that has not been cancelled."""
        self._connection = channel.connection
        self._number = channel.number
        self._queue = queue
        self._options = options
        self._declared = declared
        self._on_place_known = on_place_known
        self._may_be_stream = (
            declared is None or declared.arguments.get("x-queue-type") == "stream"
        ) and not options.no_ack
        """Messages of a queue may bear a stream's header too, as their publisher sent it."""
        self._may_be_quorum = not (
            options.no_ack
            or (
                declared is not None
                and is_as_declared
                and declared.arguments.get("x-queue-type", "quorum") != "quorum"
            )
        )
        self._told = 0
        """Settlements written since the broker's queue was last seen to have handled them."""
        self._on_deliveries = on_deliveries
        self._take: OnDeliveries = on_deliveries
        self._statistics = statistics
        self._is_dirty = False
        self._untold = 0
        self._tell_at = 1
        self._telling_later: asyncio.TimerHandle | None = None
        self._offsets: deque[tuple[int, int]] = deque()
        """(tag, stream offset), from the lowest unsettled tag or just below it."""
        self._waits_for_place = False
        """What is wanted has to wait for the first delivery: see `_is_place_unknown`."""
        self._is_cancelled = False
        self._is_closing = False
        """What is unsettled goes back with the channel, all at once: returned before, the last would come before the first."""
        self._has_told_loss = False

    # --- in: called by the frame reader ---

    def on_batch(self) -> None:
        batch = self.batch
        self.batch = []
        if not self.channel.is_open:
            return
        if not self._options.no_ack:
            self.ledger.delivered_through(batch[-1].delivery_tag)
            if self._may_be_stream and batch[0].offset is not None:
                self._note_offsets(batch)
        if self._waits_for_place:
            self._waits_for_place = False
            self._on_place_known()
        if self._is_cancelled:  # still on the way when the cancellation was sent
            if not self._is_closing:
                for delivery in batch:
                    delivery.nack(requeue=True)
            return
        self._statistics.delivered += len(batch)
        self._hand_out(batch)

    def _hand_out(self, batch: list[Delivery]) -> None:
        try:
            self._take(batch)
        except Exception:  # noqa: BLE001  # a fault of the runtime; the connection must not pay for it
            _log.exception(event("on_deliveries_raised", queue=self._queue, count=len(batch)))

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        _log.warning(
            event("message_undecodable", queue=self._queue, delivery_tag=delivery_tag, reason=error)
        )
        self._statistics.extra["undecodable"] = self._statistics.extra.get("undecodable", 0) + 1

    def on_return(self, returned: Returned) -> None:
        raise ProtocolError(f"basic.return on channel {self._number}, which only consumes")

    def on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        raise ProtocolError(f"a confirm on channel {self._number}, which only consumes")

    def on_get_empty(self) -> None:
        raise ProtocolError(
            f"an answer to basic.get on channel {self._number}, which only consumes"
        )

    # --- out: the settler of its deliveries ---

    def ack(self, delivery_tag: int) -> None:
        """Tell the broker soon: with a quarter of the prefetch, or after `_ACK_DELAY`, whichever is first.

        An acknowledgement in a write of its own costs a system call here and another at the broker, about as much as
        the rest of an RPC. The broker needs it only to deliver beyond the prefetch.
        """
        if self.channel.is_open and self.ledger.ack(delivery_tag):
            self._statistics.acknowledged += 1
            self._untold += 1
            if self._untold >= self._tell_at:
                self.settle_soon()
            elif self._telling_later is None:
                self._telling_later = self._connection.loop.call_later(_ACK_DELAY, self._tell)

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if self.channel.is_open and self.ledger.nack(delivery_tag, requeue):
            if requeue:
                self._statistics.requeued += 1
            self.settle_soon()

    def settle_soon(self) -> None:
        """Have what is settled and untold leave with the next write."""
        if not self._is_dirty:
            self._is_dirty = True
            self._connection.settle_soon(self)

    def _tell(self) -> None:
        self._telling_later = None
        if self._untold:
            self.settle_soon()

    async def flush(self, timeout: float) -> None:
        """Return when the broker has what is settled. It answers no acknowledgement; but what follows on the channel comes after.

        Raises:
            As `start()`.
        """
        self.settle_soon()
        self._connection.write_settlements()
        # For consumers that start from now on, and those set their own. It changes nothing.
        await self.channel.call("basic_qos", timeout, prefetch_count=self.prefetch)

    def write_settlements(self, out: list[bytes]) -> None:
        self._is_dirty = False
        self._untold = 0
        news = self.ledger.take()
        if not self.channel.is_open:
            return
        number = self._number
        self._told += len(news.rejected) + (news.acked_through > 0) + len(news.acked_singly)
        if news.rejected:
            out.extend(encode_nack(number, tag, requeue) for tag, requeue in news.rejected)
        if news.acked_through:
            out.append(encode_ack(number, news.acked_through, True))
        if news.acked_singly:
            out.extend(encode_ack(number, tag, False) for tag in news.acked_singly)

    # --- life ---

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has accepted a subscription here, and has not ended it."""
        return self._is_accepted and self.channel.is_open and not self.ended.done()

    @property
    def unsettled(self) -> int:
        """Deliveries handed out and not settled."""
        return self.ledger.unsettled - len(self.held) if not self._options.no_ack else 0

    async def start(self, prefetch: int, offset: int | None, timeout: float) -> None:
        """Begin consuming; a stream from `offset`, if given.

        Raises:
            ChannelClosed: the broker refuses.
            BrokerUnavailable: the connection went down, or the broker does not answer.
        """
        self._connection.set_sink(self._number, self)
        self.channel.on_cancelled = self._on_cancelled_by_broker
        self.channel.on_closed = self._on_closed
        await self._subscribe(prefetch, offset, timeout)

    async def change_prefetch(self, prefetch: int, timeout: float) -> None:
        """Go on with another prefetch, on the same channel, so that what was handed out can still be settled.

        The broker takes a prefetch for consumers that start after it. So a second one is started, then the first one
        cancelled: an auto-delete queue would not survive the other order. Two cannot be side by side where the consumer is
        exclusive. A stream is left, and entered again at exactly the next offset; one that has brought nothing yet first has to
        bring something, which costs nothing: until then its prefetch does not matter.

        Raises:
            As `start()`.
        """
        if self.is_paused and not self._subscriptions:
            self._set_prefetch(prefetch)  # `resume()` subscribes with it
            return
        if self._is_place_unknown:
            self._waits_for_place = True
            return
        if self._options.exclusive or self._offsets:
            await self._unsubscribe(timeout)
            await self._subscribe(prefetch, self._following_offset, timeout)
            return
        await self._subscribe(prefetch, None, timeout)
        while len(self._subscriptions) > 1:
            await self._unsubscribe(timeout)

    def hold(self) -> None:
        """Hand out nothing from now on; what comes is kept."""
        self.is_paused = True
        self._take = self.held.extend

    async def pause(self, timeout: float) -> None:
        """Have the broker send nothing more.

        An auto-delete queue would be gone without its last consumer: there the subscription stays, and up to a prefetch is
        kept here. So it is with a stream that has brought nothing yet, until it does.
        """
        self.hold()
        declared = self._declared
        if declared is not None and declared.auto_delete:
            return
        if self._is_place_unknown:
            self._waits_for_place = True
            return
        while self._subscriptions:
            await self._unsubscribe(timeout)

    async def resume(self, prefetch: int, timeout: float) -> None:
        """Hand out what was kept, and have the broker send again."""
        self.is_paused = False
        self._take = self._on_deliveries
        if self.held:
            held, self.held = self.held, []
            self._hand_out(held)
        if not self._subscriptions:
            await self._subscribe(prefetch, self._following_offset, timeout)

    async def cancel(self, timeout: float, *, is_closing: bool = False) -> None:
        """Stop deliveries; what was handed out can still be settled, unless the channel is about to be closed."""
        self._is_closing = is_closing
        if self._is_cancelled:
            return
        self._is_cancelled = True
        held, self.held = self.held, []
        if self._options.no_ack:
            if held:  # the broker has forgotten them already
                self._take = self._on_deliveries
                self._hand_out(held)
        elif not is_closing:
            for delivery in held:
                delivery.nack(requeue=True)
        try:
            while self._subscriptions:
                await self._unsubscribe(timeout)
        except LinkError as exc:
            _log.debug(event("cancel_unanswered", queue=self._queue, reason=exc))

    async def retire(self, timeout: float) -> None:
        """Be about to be closed: settle what can be, and wait until nothing is on its way here any more, or `timeout`.

        What comes now goes back with the channel. What is on its way when a channel closes does not: a quorum queue puts it at
        its end (seen with 3.10.8). Nothing is once the prefetch is full or the queue empty.
        """
        self._is_cancelled = self._is_closing = True
        self.held.clear()
        try:
            async with asyncio.timeout(timeout):
                last = -1
                while self.channel.is_open and last != self.ledger.last:
                    last = self.ledger.last
                    await self.flush(timeout)
                    await asyncio.sleep(_QUIET_S)
                while self._may_be_quorum and self._subscriptions:
                    await self._unsubscribe(timeout)
        except (LinkError, TimeoutError) as exc:
            _log.debug(event("cancel_unanswered", queue=self._queue, reason=exc))

    async def settle_through(self, timeout: float) -> None:
        """Be about to be closed, with nothing subscribed: return when the queue has handled what is settled, or after `timeout`.

        Of a quorum queue what is settled last may still wait in the broker's channel, which forgets it when it is closed. Only what asks
        the queue itself, on this channel, comes back behind it: the start and the end of a consumer. It may be given one message, which
        goes back with the channel; so it is only asked where so much was settled that some may wait.
        """
        self._is_closing = True
        self.settle_soon()
        self._connection.write_settlements()
        if not self._may_be_quorum or self.is_stream or self._options.exclusive:
            return
        try:
            async with asyncio.timeout(timeout):
                if self._told > _HANDLED_ANYWAY:
                    await self._ask_queue(timeout)
                await self.flush(timeout)
        except (LinkError, TimeoutError) as exc:
            _log.debug(event("cancel_unanswered", queue=self._queue, reason=exc))

    async def _ask_queue(self, timeout: float) -> None:
        """
        Raises:
            As `start()`.
        """
        tag = self._latest_tag
        await self.channel.call("basic_qos", timeout, prefetch_count=1)
        # What waits is sent when the channel hears that all before is handled: behind the answer to the first, and with 3.10 even later,
        # when the queue has read the message that it gives us. Twice, so that the last comes behind it for sure.
        for _ in range(2):
            await self.channel.call(
                "basic_consume",
                timeout,
                queue=self._queue,
                on_message_callback=_never_called,
                consumer_tag=tag,
                arguments={"x-priority": _BEHIND_ALL_OTHERS},
            )
            await self.channel.call("basic_cancel", timeout, consumer_tag=tag)
        self._told = 0

    def close(self) -> None:
        """It has ended: give the channel up, and say what is lost with it."""
        self.channel.close_nowait()
        self.is_lost = True
        self._tell_loss()

    async def _subscribe(self, prefetch: int, offset: int | None, timeout: float) -> None:
        self._set_prefetch(prefetch)
        if not self._options.no_ack:
            await self.channel.call("basic_qos", timeout, prefetch_count=prefetch)
        arguments = dict(self._options.arguments)
        if offset is not None:
            arguments[STREAM_OFFSET] = offset
        tag = self.consumer_tag
        if self._subscription_count:
            # So that they sort as they follow each other: RabbitMQ gives back what they hold in the order of their tags.
            tag = f"{tag}.{self._subscription_count:06}"
        self._subscription_count += 1
        self._subscriptions.append(tag)
        self._latest_tag = tag
        await self.channel.call(
            "basic_consume",
            timeout,
            queue=self._queue,
            on_message_callback=_never_called,
            auto_ack=self._options.no_ack,
            exclusive=self._options.exclusive,
            consumer_tag=tag,
            arguments=arguments,
        )
        self._is_accepted = True

    async def _unsubscribe(self, timeout: float) -> None:
        """End the oldest subscription. What is on the way from it still arrives."""
        tag = self._subscriptions.pop(0)
        self._is_accepted = bool(self._subscriptions)
        if not self.channel.closed.done() and not self.ended.done():
            self._connection.write_settlements()
            self._told = 0  # the queue answers behind them
            await self.channel.call("basic_cancel", timeout, consumer_tag=tag)

    def _set_prefetch(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self._tell_at = max(1, prefetch // 4) if prefetch else 64

    def _on_cancelled_by_broker(self) -> None:
        self.end(
            "cancelled by the broker: was the queue deleted, or has its node gone? RabbitMQ 4.3 also does so (quorum "
            "queues) when a delivery stays unsettled longer than its consumer_timeout"
        )

    def _on_closed(self, reason: LinkError) -> None:
        self.is_lost = True
        self._tell_loss()
        self.end(str(reason))

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def _tell_loss(self) -> None:
        if self._has_told_loss:
            return
        self._has_told_loss = True
        on_lost = self._options.on_lost
        if on_lost is None or not self.ledger.has_been_used:
            return
        try:
            on_lost()
        except Exception:  # noqa: BLE001  # a fault of the runtime; the consumer must come back all the same
            _log.exception(event("on_lost_raised", queue=self._queue))

    # --- streams: where to go on ---

    @property
    def is_stream(self) -> bool:
        """As far as anything tells: how it was declared, how it is consumed, what came."""
        return self._may_be_stream and (
            self._declared is not None
            or bool(self._offsets)
            or STREAM_OFFSET in self._options.arguments
        )

    @property
    def _is_place_unknown(self) -> bool:
        """Whether this is (or may be) a stream that has brought nothing yet, and could not be entered again where it was."""
        return self._may_be_stream and not self.ledger.has_been_used

    @property
    def _following_offset(self) -> int | None:
        """Of a stream: the offset behind the last that came on this channel."""
        return self._offsets[-1][1] + 1 if self._offsets else None

    def _note_offsets(self, batch: list[Delivery]) -> None:
        offsets = self._offsets
        for delivery in batch:
            offset = delivery.offset
            if offset is not None:
                offsets.append((delivery.delivery_tag, offset))
        low = self.ledger.lowest_unsettled
        while len(offsets) > 1 and offsets[0][0] < low and offsets[1][0] <= low:
            offsets.popleft()

    def next_offset(self) -> int | None:
        """Of a stream: the offset to go on from, so that nothing unsettled is left out. `None`: no stream, or nothing came."""
        low = self.ledger.lowest_unsettled
        for tag, offset in self._offsets:
            if tag >= low:
                return offset
        return self._following_offset


def _never_called(*_arguments: Any) -> None:
    """What pika would call with a delivery; the frame reader takes them before pika sees them."""
