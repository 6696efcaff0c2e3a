"""`Link.get()`: one message at a time, asked for (`basic.get`).

Each message is asked for and held on a channel of its own, because a refusal (no such queue) closes the channel, and must not take
back what another caller holds. A channel whose message is settled serves the next caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mycelia.amqp.link import LinkStatistics
from mycelia.amqp.model import Delivery, Returned, Settler
from mycelia.amqp.rabbit.connection import (
    BrokerChannel,
    BrokerConnection,
    ChannelClosed,
    ConnectionLost,
)
from mycelia.amqp.rabbit.frames import encode_ack, encode_get, encode_nack
from mycelia.amqp.refusals import NOT_POSSIBLE, declaration_refused
from mycelia.errors import LinkError, ProtocolError, TopologyError

__all__ = ["Getter"]

_MAX_IDLE: Final = 16
"""Channels kept for the next callers. Arbitrary; a channel costs the broker a few processes."""


class _GetChannel:
    """Asks for a message, holds it, settles it."""

    def __init__(self, channel: BrokerChannel, owner: Getter, statistics: LinkStatistics) -> None:
        self.channel = channel
        self.batch: list[Delivery] = []
        self.settler: Settler = self
        self.consumer_tag = ""
        self._owner = owner
        self._statistics = statistics
        self._held = 0  # the delivery tag
        self._answer: asyncio.Future[Delivery | None] | None = None
        channel.connection.set_sink(channel.number, self)
        channel.on_closed = self._on_closed

    async def get(self, queue: str) -> Delivery | None:
        """Ask `queue` for its next message.

        Raises:
            ChannelClosed, ConnectionLost: instead of an answer.
        """
        self._answer = self.channel.connection.loop.create_future()
        self.channel.connection.write(encode_get(self.channel.number, queue))
        delivery = await self._answer
        if delivery is None:
            self._owner.take_back(self)
        else:
            self._held = delivery.delivery_tag
            self._statistics.delivered += 1
        return delivery

    # --- in: called by the frame reader ---

    def on_batch(self) -> None:
        batch, self.batch = self.batch, []
        self._give(batch[0])

    def on_get_empty(self) -> None:
        self._give(None)

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        """It comes up with its fault."""

    def on_return(self, returned: Returned) -> None:
        raise ProtocolError(f"basic.return on channel {self.channel.number}, which only gets")

    def on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        raise ProtocolError(f"a confirm on channel {self.channel.number}, which only gets")

    def _give(self, delivery: Delivery | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(delivery)

    def _on_closed(self, error: LinkError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # --- out: the settler ---

    @property
    def is_lost(self) -> bool:
        return not self.channel.is_open

    def ack(self, delivery_tag: int) -> None:
        if self._settle(delivery_tag, encode_ack(self.channel.number, delivery_tag, False)):
            self._statistics.acknowledged += 1

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        if self._settle(delivery_tag, encode_nack(self.channel.number, delivery_tag, requeue)):
            self._statistics.requeued += int(requeue)

    def _settle(self, delivery_tag: int, frame: bytes) -> bool:
        if delivery_tag != self._held or not self.channel.is_open:
            return False
        self._held = 0
        self.channel.connection.write(frame)
        self._owner.take_back(self)
        return True


class Getter:
    """The channels of a link's `get()`, on its consuming connection: a blocked publisher must not hold up settling."""

    def __init__(
        self,
        statistics: LinkStatistics,
        connected: Callable[[], Awaitable[BrokerConnection]],
        step_timeout: float,
    ) -> None:
        self._statistics = statistics
        self._connected = connected
        self._step_timeout = step_timeout
        self._idle: list[_GetChannel] = []

    async def get(self, queue: str) -> Delivery | None:
        """The next message of `queue`; `None` if none is ready. Waits for a connection; cancelling leaves the message there.

        Raises:
            TopologyError, AccessRefused: refused.
            BrokerUnavailable: the queue's node is down, or the link is closed.
        """
        while True:
            connection = await self._connected()
            one = await self._channel_on(connection)
            try:
                return await one.get(queue)
            except ChannelClosed as exc:
                raise declaration_refused(f'queue "{queue}"', exc.code, exc.text) from exc
            except ConnectionLost as exc:
                if exc.code in NOT_POSSIBLE:
                    raise TopologyError(f'queue "{queue}": {exc}') from exc
            except BaseException:
                one.channel.close_nowait()  # with an answer that may still come
                raise

    def take_back(self, one: _GetChannel) -> None:
        """`one` holds nothing any more."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(one)
        else:
            one.channel.close_nowait()

    async def _channel_on(self, connection: BrokerConnection) -> _GetChannel:
        while self._idle:
            one = self._idle.pop()
            if one.channel.is_open and one.channel.connection is connection:
                return one
        channel = await connection.open_channel(self._step_timeout)
        return _GetChannel(channel, self, self._statistics)
