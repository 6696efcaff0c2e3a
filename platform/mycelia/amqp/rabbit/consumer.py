"""A consumer that outlives its channels.

`RabbitConsumer` is what the runtime holds. It runs on one `_Intake` after another: an intake is one channel with one consumer on
it, and the settler of what was delivered there. When an intake ends (connection lost, channel closed by an error, consumer
cancelled by the broker), the consumer's task sees to the next; settling a delivery of an ended intake does nothing, because the
broker has requeued it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from mycelia.amqp.link import ConsumeOptions, LinkStatistics, OnDeliveries
from mycelia.amqp.model import Delivery, Returned
from mycelia.amqp.rabbit.ack_ledger import AckLedger
from mycelia.amqp.rabbit.backoff import Backoff
from mycelia.amqp.rabbit.connection import (
    BrokerChannel,
    BrokerConnection,
    ChannelClosed,
    ConnectionLost,
)
from mycelia.amqp.rabbit.declarer import refusal
from mycelia.amqp.rabbit.frames import encode_ack, encode_nack
from mycelia.errors import AccessRefused, BrokerUnavailable, LinkError, ProtocolError, TopologyError

__all__ = ["RabbitConsumer"]

_log = logging.getLogger("mycelia.amqp")


_OFFSET: Final = "x-stream-offset"
_ACK_DELAY: Final = 0.004
"""Seconds an acknowledgement may wait for others. Bounds what is handled twice when the process dies right then."""


class _NoSettler:
    """Of a `no_ack` consumer: the broker has forgotten its messages already."""

    def ack(self, delivery_tag: int) -> None:
        pass

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        pass


class _Intake:
    """One channel incarnation of a consumer: takes its deliveries and settles them."""

    def __init__(
        self,
        channel: BrokerChannel,
        queue: str,
        options: ConsumeOptions,
        on_deliveries: OnDeliveries,
        statistics: LinkStatistics,
    ) -> None:
        self.channel = channel
        self.batch: list[Delivery] = []
        self.settler: Any = _NoSettler() if options.no_ack else self
        self.ledger = AckLedger()
        self.ended: asyncio.Future[str] = channel.connection.loop.create_future()
        self.consumer_tag = f"{queue[:120]}.{os.urandom(8).hex()}"
        self._is_consuming = False
        self._connection = channel.connection
        self._number = channel.number
        self._queue = queue
        self._options = options
        self._on_deliveries = on_deliveries
        self._statistics = statistics
        self._is_dirty = False
        self._untold = 0
        self._tell_at = max(1, options.prefetch // 4) if options.prefetch else 64
        self._telling_later: asyncio.TimerHandle | None = None
        self._offsets: deque[tuple[int, int]] = deque()
        """(tag, stream offset), from the lowest unsettled tag or just below it."""
        self._is_cancelled = False

    # --- in: called by the frame reader ---

    def on_batch(self) -> None:
        batch = self.batch
        self.batch = []
        if not self.channel.is_open:
            return
        if not self._options.no_ack:
            self.ledger.delivered_through(batch[-1].delivery_tag)
            if batch[0].properties.headers and _OFFSET in batch[0].properties.headers:
                self._note_offsets(batch)
        if self._is_cancelled:  # still on the way when the cancellation was sent
            for delivery in batch:
                delivery.nack(requeue=True)
            return
        self._statistics.delivered += len(batch)
        try:
            self._on_deliveries(batch)
        except Exception:  # noqa: BLE001  # a fault of the runtime; the connection must not pay for it
            _log.exception("on_deliveries_raised queue=%s count=%d", self._queue, len(batch))

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        _log.warning(
            "message_undecodable queue=%s delivery_tag=%d dead_lettered=%s reason=%s",
            self._queue,
            delivery_tag,
            not self._options.no_ack,
            error,
        )
        self._statistics.extra["undecodable"] = self._statistics.extra.get("undecodable", 0) + 1
        if not self._options.no_ack:
            self.ledger.delivered_through(delivery_tag)
            self.nack(delivery_tag, False)

    def on_return(self, returned: Returned) -> None:
        raise ProtocolError(f"basic.return on channel {self._number}, which only consumes")

    def on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        raise ProtocolError(f"a confirm on channel {self._number}, which only consumes")

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

    def write_settlements(self, out: list[bytes]) -> None:
        self._is_dirty = False
        self._untold = 0
        news = self.ledger.take()
        if not self.channel.is_open:
            return
        number = self._number
        out.extend(encode_nack(number, tag, requeue) for tag, requeue in news.rejected)
        if news.acked_through:
            out.append(encode_ack(number, news.acked_through, True))
        out.extend(encode_ack(number, tag, False) for tag in news.acked_singly)

    # --- life ---

    async def start(self, timeout: float) -> None:
        """Begin consuming.

        Raises:
            ChannelClosed: the broker refuses.
            BrokerUnavailable: the connection went down, or the broker does not answer.
        """
        self._connection.set_sink(self._number, self)
        self.channel.on_cancelled = self._on_cancelled_by_broker
        self.channel.closed.add_done_callback(self._on_closed)
        if not self._options.no_ack:
            await self.channel.call("basic_qos", timeout, prefetch_count=self._options.prefetch)
        await self.channel.call(
            "basic_consume",
            timeout,
            queue=self._queue,
            on_message_callback=_never_called,
            auto_ack=self._options.no_ack,
            exclusive=self._options.exclusive,
            consumer_tag=self.consumer_tag,
            arguments=dict(self._options.arguments),
        )
        self._is_consuming = True

    async def cancel(self, timeout: float) -> None:
        """Stop deliveries; what was handed out can still be settled."""
        if self._is_cancelled:
            return
        self._is_cancelled = True
        if self._is_consuming and not self.channel.closed.done() and not self.ended.done():
            try:
                await self.channel.call("basic_cancel", timeout, consumer_tag=self.consumer_tag)
            except LinkError as exc:
                _log.debug("cancel_unanswered queue=%s reason=%s", self._queue, exc)

    # --- streams: where to go on ---

    def _note_offsets(self, batch: list[Delivery]) -> None:
        offsets = self._offsets
        for delivery in batch:
            offset = (delivery.properties.headers or {}).get(_OFFSET)
            if isinstance(offset, int):
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
        return self._offsets[-1][1] + 1 if self._offsets else None

    def _on_cancelled_by_broker(self) -> None:
        self._end("cancelled by the broker: was the queue deleted, or has its node gone?")

    def _on_closed(self, closed: asyncio.Future[LinkError]) -> None:
        self._end(str(closed.result()))

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


class RabbitConsumer:
    """A consumer on a `RabbitLink`. See `Consumer`.

    Args:
        connected: waits for a connection on which the topology is declared.
        redeclare: declares the remembered topology again.
    """

    def __init__(
        self,
        queue: str,
        options: ConsumeOptions,
        on_deliveries: OnDeliveries,
        statistics: LinkStatistics,
        *,
        connected: Callable[[], Awaitable[BrokerConnection]],
        redeclare: Callable[[BrokerConnection], Awaitable[None]],
        backoff: Backoff,
        step_timeout: float,
        on_closed: Callable[[RabbitConsumer], None],
    ) -> None:
        self._queue = queue
        self._options = options
        self._on_deliveries = on_deliveries
        self._statistics = statistics
        self._connected = connected
        self._redeclare = redeclare
        self._backoff = backoff
        self._step_timeout = step_timeout
        self._on_closed = on_closed
        self._intake: _Intake | None = None
        self._is_cancelled = False
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def unsettled(self) -> int:
        intake = self._intake
        return intake.ledger.unsettled if intake is not None and intake.channel.is_open else 0

    def __repr__(self) -> str:
        return f"<RabbitConsumer {self.queue!r} unsettled={self.unsettled}>"

    async def start(self, timeout: float | None) -> None:
        """Run; return when the broker has accepted the consumer.

        Raises:
            TopologyError, AccessRefused: refused for good.
            BrokerUnavailable: not consuming within `timeout` seconds.
        """
        self._task = asyncio.create_task(self._run(), name=f"mycelia:consume:{self.queue}")
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._started)
        except TimeoutError:
            await self.aclose(0)
            raise BrokerUnavailable(
                f'queue "{self.queue}": not consuming within {timeout:g} s; no connection to the broker'
            ) from None
        except BaseException:
            await self.aclose(0)
            raise

    async def cancel(self) -> None:
        self._is_cancelled = True
        await self._end_task()
        if self._intake is not None:
            await self._intake.cancel(self._step_timeout)

    async def aclose(self, timeout: float = 5.0) -> None:
        self._is_cancelled = True
        await self._end_task()
        intake, self._intake = self._intake, None
        if intake is not None:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + timeout
            try:
                await intake.cancel(timeout)
            finally:
                intake.settle_soon()
                await intake.channel.close(max(0.0, deadline - loop.time()))
        self._on_closed(self)

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._connected()
            except LinkError as exc:  # there will be no connection any more
                if not self._started.done():
                    self._started.set_exception(exc)
                return
            try:
                intake = await self._start_intake(connection)
            except LinkError as exc:
                if not self._started.done() and isinstance(exc, TopologyError | AccessRefused):
                    self._started.set_exception(exc)
                    return
                reason = str(exc)
            else:
                if not self._started.done():
                    self._started.set_result(None)
                started_at = connection.loop.time()
                # shielded: `cancel()` cancels this task, and must not leave the intake looking ended
                reason = await asyncio.shield(intake.ended)
                intake.channel.close_nowait()
                self._go_on_behind(intake)
                if connection.loop.time() - started_at > 5.0:
                    self._backoff.reset()
            if connection.lost.done():
                continue  # the link says so, reconnects and declares; all that is left is to wait for it
            delay = self._backoff.next_delay()
            _log.warning(
                'consumer_lost queue="%s" retry_in_s=%.2f reason=%s', self.queue, delay, reason
            )
            await asyncio.sleep(delay)
            if self._started.done() and not connection.lost.done():
                try:
                    await self._redeclare(connection)
                except LinkError as exc:
                    _log.debug('redeclare_given_up queue="%s" reason=%s', self.queue, exc)

    def _go_on_behind(self, intake: _Intake) -> None:
        """A stream hands out from where it is asked to, so ask for what was not settled, not for the beginning again."""
        offset = intake.next_offset()
        if offset is not None:
            arguments = {**self._options.arguments, _OFFSET: offset}
            self._options = replace(self._options, arguments=arguments)

    async def _start_intake(self, connection: BrokerConnection) -> _Intake:
        channel = await connection.open_channel(self._step_timeout)
        intake = _Intake(channel, self._queue, self._options, self._on_deliveries, self._statistics)
        self._intake = intake
        try:
            await intake.start(self._step_timeout)
        except ChannelClosed as exc:
            raise refusal(f'consuming from queue "{self.queue}"', exc) from exc
        except ConnectionLost as exc:
            if exc.code in (502, 503, 530, 540):  # not a thing this broker or queue can do
                raise TopologyError(f'consuming from queue "{self.queue}": {exc}') from exc
            raise
        except ProtocolError as exc:
            raise TopologyError(f'consuming from queue "{self.queue}": {exc}') from exc
        except BaseException:
            channel.close_nowait()
            raise
        return intake


def _never_called(*_arguments: Any) -> None:
    """What pika would call with a delivery; the frame reader takes them before pika sees them."""
