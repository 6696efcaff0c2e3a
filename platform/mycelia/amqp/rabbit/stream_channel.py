"""A channel in confirm mode for what goes to one stream, and for nothing else: RabbitMQ before 4.0 loses messages without.

When a stream gets another leader, the broker's channel sends it once more what is unconfirmed. Before 4.0 (rabbitmq-server #12236) it does so
under the numbers that the channel has given, and not under those by which the stream knows what comes from this channel. The two are the same
where all that a channel publishes goes to the stream. Else the channel's are higher: what was sent again is in the stream and is never confirmed,
and as many as come next have numbers that the stream takes for seen. They are dropped, and confirmed. With 3.10.8 that is what became of
thousands of confirmed messages when the node died that led two streams (`tests/cluster/test_streams_of_a_cluster.py`).

The numbers stay the same as long as each publishing is confirmed, in turn. So a channel is replaced, and what it holds is sent again, when

- a publishing came back or was nacked: the stream has not counted it;
- one is confirmed before an older one: the stream has dropped it, or the older;
- one was given up by its publisher, and the next is to go: nobody knows what the channel does with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from mycelia.amqp.model import Returned
from mycelia.amqp.rabbit.confirm_window import ConfirmWindow
from mycelia.amqp.rabbit.connection import BrokerChannel, BrokerConnection, ChannelClosed
from mycelia.amqp.rabbit.frames import PublishEncoder
from mycelia.amqp.rabbit.publishing import Publishing
from mycelia.amqp.rabbit.publishing_sink import PublishingSink
from mycelia.errors import LinkError, MessageTooLarge, ProtocolError

__all__ = [
    "StreamChannel",
    "abandon",
    "has_room_for_one",
    "needs_stream_channels",
    "open_confirming",
]

T = TypeVar("T")

_LONG_S: Final = 5.0
"""Seconds without a confirm. A broker takes milliseconds; a cluster that chooses a new leader, one or two seconds."""
_MENDED_IN: Final = 4
"""The first major version of RabbitMQ that sends again under the stream's numbers."""


class _Publisher(Protocol):
    """What a stream's channel needs of the publisher."""

    @property
    def may_send(self) -> bool: ...

    def write(
        self, publishing: Publishing, encoder: PublishEncoder, window: ConfirmWindow[Publishing]
    ) -> None: ...

    def settle(self, publishing: Publishing, acknowledged: bool) -> None: ...

    def note_returned(self, returned: Returned, window: ConfirmWindow[Publishing]) -> None: ...

    def answered(self) -> None: ...

    def stream_channel_closed(self, channel: StreamChannel, reason: ChannelClosed) -> bool: ...

    async def redeclare(self, connection: BrokerConnection) -> None: ...


class StreamChannel:
    """Lives as long as the connection, on one channel after another. The first is opened when there is something to publish.

    Args:
        new_window: makes a confirm window.
    """

    def __init__(
        self,
        publisher: _Publisher,
        connection: BrokerConnection,
        new_window: Callable[[], ConfirmWindow[Publishing]],
        step_timeout: float,
    ) -> None:
        self._publisher = publisher
        self._connection = connection
        self._step_timeout = step_timeout
        self._window = new_window()
        self._waiting: deque[Publishing] = deque()
        self._channel: BrokerChannel | None = None
        self._encoder: PublishEncoder | None = None
        """Of `_channel`; `None`: it is not open yet, or gone."""
        self._opening: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def unconfirmed(self) -> int:
        return len(self._window) + len(self._waiting)

    @property
    def is_any_on_wire(self) -> bool:
        return len(self._window) > 0

    def publish(self, publishing: Publishing) -> None:
        """Send it now, or when that can be done.

        Raises:
            ProtocolError, MessageTooLarge: it cannot be sent.
        """
        if self._has_let_one_down():
            self._replace()
        if self._waiting or not self._can_send():
            self._waiting.append(publishing)
            self._open()
        else:
            self._send(publishing)

    def pump(self) -> None:
        """Send what waits, as far as it may go."""
        waiting = self._waiting
        while waiting and self._can_send():
            publishing = waiting.popleft()
            if publishing.done.done():
                continue
            try:
                self._send(publishing)
            except (ProtocolError, MessageTooLarge) as exc:
                publishing.done.set_exception(exc)

    def take_written(self) -> list[Publishing]:
        """What is unconfirmed on the channel, which is gone; oldest first."""
        self._encoder = None
        return self._window.reset()

    @property
    def opening(self) -> asyncio.Task[None] | None:
        """What opens its channel now; ends soon after `take_back()` or `close()`."""
        return self._opening

    def take_back(self) -> list[Publishing]:
        """All that is not confirmed, oldest first. The connection is gone: this is the end."""
        self._end()
        taken = [*self.take_written(), *self._waiting]
        self._waiting.clear()
        return taken

    def close(self) -> None:
        """Nothing is unconfirmed, and nothing more goes here."""
        self._end()
        if self._channel is not None:
            abandon(self._channel)

    def _end(self) -> None:
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()

    # --- inside ---

    def _has_let_one_down(self) -> bool:
        """Whether the oldest on the wire was waited for in vain, and for long. One whose publisher went away says nothing of the channel."""
        oldest = self._window.oldest
        if oldest is None or oldest.timeout < _LONG_S:
            return False
        return oldest.done.done() and not oldest.done.cancelled()

    def _can_send(self) -> bool:
        return self._encoder is not None and self._window.has_room() and self._publisher.may_send

    def _send(self, publishing: Publishing) -> None:
        assert self._encoder is not None
        self._publisher.write(publishing, self._encoder, self._window)

    def _on_return(self, returned: Returned) -> None:
        self._publisher.note_returned(returned, self._window)

    def _on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        is_in_turn = acknowledged
        if acknowledged and not multiple and not self._window.is_oldest(delivery_tag):
            is_in_turn = False
            confirmed = self._window.find(delivery_tag)
            if confirmed is not None and not confirmed.is_returned:
                self._replace()  # not to be believed
                return
        for publishing in self._window.confirm(delivery_tag, multiple):
            is_in_turn = is_in_turn and not publishing.is_returned
            self._publisher.settle(publishing, acknowledged)
        if not is_in_turn:
            self._replace()
        self.pump()
        self._publisher.answered()

    def _replace(self) -> None:
        """Go on with another channel. What this one holds is sent again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            abandon(channel)
        for publishing in reversed(self.take_written()):
            if not publishing.done.done():
                publishing.is_returned = False
                self._waiting.appendleft(publishing)
        if self._waiting:
            self._open()

    def _on_closed(self, reason: LinkError) -> None:
        self._channel = None
        if self._is_closed or not isinstance(reason, ChannelClosed):
            return  # the whole connection is going down; the publisher takes back what is unconfirmed
        is_missing = self._publisher.stream_channel_closed(self, reason)
        self._open(redeclare=is_missing)
        self._publisher.answered()

    def _open(self, redeclare: bool = False) -> None:
        is_opening = self._opening is not None and not self._opening.done()
        if self._encoder is None and not is_opening and not self._is_closed:
            self._opening = asyncio.create_task(
                self._opened(redeclare), name="mycelia:publish:stream"
            )

    async def _opened(self, redeclare: bool) -> None:
        connection = self._connection
        sink = PublishingSink(self._on_return, self._on_confirm)
        try:
            if redeclare:
                await self._publisher.redeclare(connection)
            channel = await open_confirming(connection, sink, self._step_timeout)
        except LinkError as exc:
            # What waits would wait for ever: start over with a new connection.
            connection.abort(exc)
            return
        self._channel = channel
        self._encoder = PublishEncoder(channel.number, connection.frame_max)
        channel.on_closed = self._on_closed
        self.pump()


def needs_stream_channels(connection: BrokerConnection) -> bool:
    """Whether the broker at its other end is of those that need them."""
    major = str(connection.server_properties.get("version", "")).partition(".")[0]
    return not major.isdecimal() or int(major) < _MENDED_IN


def has_room_for_one(channels: dict[T, StreamChannel], connection: BrokerConnection) -> bool:
    """Whether one more may be opened, in place of one that holds nothing if need be. A broker that refuses one closes the connection."""
    if len(channels) < connection.channel_max // 2:
        return True
    idle = next((target for target, one in channels.items() if not one.unconfirmed), None)
    if idle is None:
        return False
    channels.pop(idle).close()
    return True


async def open_confirming(
    connection: BrokerConnection, sink: PublishingSink, timeout: float
) -> BrokerChannel:
    """Open a channel in confirm mode.

    Raises:
        LinkError: that cannot be done.
    """
    channel = await connection.open_channel(timeout)
    connection.set_sink(channel.number, sink)
    try:
        # pika calls `ack_nack_callback` only for frames the reader does not take
        await channel.call("confirm_delivery", timeout, ack_nack_callback=_never_called)
    except BaseException:
        channel.close_nowait()
        raise
    return channel


def abandon(channel: BrokerChannel) -> None:
    """Close it, and hear nothing more of it: a late confirm must not be taken for one of the next channel, which counts from 1 again."""
    channel.connection.set_sink(channel.number, PublishingSink(_ignored, _ignored))
    channel.on_closed = _ignored
    channel.close_nowait()


def _ignored(*_said: Any) -> None:
    """What the broker still says on a channel that was replaced."""


def _never_called(*_arguments: Any) -> None:
    """What pika would call with a confirm; the frame reader takes them before pika sees them."""
