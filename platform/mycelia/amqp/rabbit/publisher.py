"""The publishing side: two channels on one connection, one in confirm mode.

`publish_nowait()` writes to the plain channel. `publish()` puts a `_Publishing` into the queue, `_pump()` moves it from there to the wire
and into the confirm window as far as there is room, and the broker's confirm resolves it. When the connection is lost, what
the window holds goes back to the head of the queue.

A publishing can cost its channel: an exchange that does not exist, a permission, an expiration that is no number. The broker
does not say which one it was. So after such an error all that was unconfirmed is suspect and is sent again one at a time: the
one with which the channel closes again is the culprit and gets the error, the others go through.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from mycelia.amqp.link import LinkStatistics
from mycelia.amqp.model import Delivery, Message, Returned
from mycelia.amqp.rabbit.confirm_window import ConfirmWindow
from mycelia.amqp.rabbit.connection import BrokerConnection, ChannelClosed
from mycelia.amqp.rabbit.frames import PublishEncoder
from mycelia.errors import (
    AccessRefused,
    BrokerBlocked,
    BrokerUnavailable,
    LinkError,
    ProtocolError,
    PublishRejected,
    TopologyError,
    Unroutable,
)

__all__ = ["Publisher"]

_log = logging.getLogger("mycelia.amqp")


class _Publishing:
    """One `publish()` on its way."""

    __slots__ = (
        "done",
        "is_returned",
        "is_suspect",
        "message",
        "message_id",
        "timeout",
        "times_sent",
    )

    def __init__(
        self,
        message: Message,
        message_id: str,
        done: asyncio.Future[None],
        timeout: float,
    ) -> None:
        self.message = message
        self.message_id = message_id
        self.done = done
        self.timeout = timeout
        self.times_sent = 0
        self.is_returned = False
        self.is_suspect = False


class _Sink:
    """What the two publishing channels receive: returns and confirms, never deliveries."""

    def __init__(
        self,
        on_return: Callable[[Returned], None],
        on_confirm: Callable[[int, bool, bool], None],
    ) -> None:
        self.settler: Any = None
        self.consumer_tag = ""
        self.batch: list[Delivery] = []
        self.on_return = on_return
        self.on_confirm = on_confirm

    def on_batch(self) -> None:
        self.batch = []
        raise ProtocolError("a delivery on a channel that only publishes")

    def on_undecodable(self, delivery_tag: int, error: ProtocolError) -> None:
        raise ProtocolError(f"a delivery on a channel that only publishes ({error})")

    def on_get_empty(self) -> None:
        raise ProtocolError("an answer to basic.get on a channel that only publishes")


class Publisher:
    """Publishes for a link, on whatever connection it has at the moment.

    Args:
        on_return: takes unconfirmed mandatory publishings that came back.
        on_writable: called when `writable` may have changed.
        redeclare: declares the remembered topology on a connection.
        max_waiting: publishings that may wait for room or for a connection; more are refused at once.
    """

    def __init__(
        self,
        statistics: LinkStatistics,
        *,
        on_return: Callable[[Returned], None],
        on_writable: Callable[[], None],
        redeclare: Callable[[BrokerConnection], Awaitable[None]],
        window_messages: int,
        window_bytes: int,
        max_waiting: int = 65536,
        step_timeout: float = 30.0,
    ) -> None:
        self._statistics = statistics
        self._on_return = on_return
        self._on_writable = on_writable
        self._redeclare = redeclare
        self._step_timeout = step_timeout
        self._window: ConfirmWindow[_Publishing] = ConfirmWindow(window_messages, window_bytes)
        self._waiting: deque[_Publishing] = deque()
        self._max_waiting = max_waiting
        self._suspects = 0  # while there are any, one publishing is on the wire at a time
        self._connection: BrokerConnection | None = None
        self._plain: PublishEncoder | None = None
        self._confirmed: PublishEncoder | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._id_prefix = os.urandom(8).hex()
        self._ids = count(1)
        self._idle: asyncio.Event = asyncio.Event()

    # --- for the link ---

    @property
    def writable(self) -> bool:
        connection = self._connection
        return connection is not None and not connection.blocked and connection.has_room

    @property
    def is_blocked(self) -> bool:
        """Connected, but not taking publishings."""
        connection = self._connection
        return connection is not None and not connection.lost.done() and not self.writable

    @property
    def unconfirmed(self) -> int:
        return len(self._window) + len(self._waiting)

    async def attach(self, connection: BrokerConnection) -> None:
        """Publish on `connection` from now on; what was unconfirmed is sent again.

        Raises:
            LinkError: the channels cannot be opened.
        """
        self._take_back()
        await self._open_confirmed(connection)
        self._open_plain(connection)
        self._connection = connection  # last: from here on publishings go out
        connection.on_writable = self._on_room
        self._on_room()

    def detach(self) -> None:
        """The connection is gone."""
        self._connection = None
        self._plain = None
        self._take_back()

    def _on_room(self) -> None:
        self._pump()
        self._on_writable()

    def on_unblocked(self) -> None:
        self._pump()

    async def drain(self, timeout: float) -> None:
        """Wait until all is confirmed, at most `timeout` seconds."""
        if self.unconfirmed == 0 or self._connection is None:
            return
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("unconfirmed_at_close count=%d", self.unconfirmed)

    async def aclose(self) -> None:
        """Give up what is still unconfirmed."""
        self.detach()
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait([self._reopening])
        for publishing in self._waiting:
            if not publishing.done.done():
                publishing.done.set_exception(
                    BrokerUnavailable(
                        f"{publishing.message.target}: the link was closed before the broker confirmed; "
                        "it may or may not have arrived"
                    )
                )
        self._waiting.clear()

    # --- without confirms ---

    def publish_nowait(self, message: Message) -> None:
        connection = self._connection
        if (
            connection is None
            or self._plain is None
            or connection.blocked
            or not connection.has_room
        ):
            raise self.not_writable(message.target)
        connection.write(self._plain.encode(message))
        self._statistics.published += 1

    def not_writable(self, what: str) -> LinkError:
        """Why a publishing cannot go now."""
        if self._connection is None or self._connection.lost.done():
            return BrokerUnavailable(f"{what}: not sent, no connection to the broker")
        if self._connection.blocked:
            return BrokerBlocked(
                f"{what}: not sent, the broker takes no publishings (memory or disk alarm). "
                "Look at its alarms: rabbitmq-diagnostics alarms."
            )
        return BrokerBlocked(
            f"{what}: not sent, the write buffer is full: the broker or the network is slower than the publisher"
        )

    def _open_plain(self, connection: BrokerConnection) -> None:
        # Without waiting for the answer: what is written to the channel arrives behind its opening.
        channel = connection.open_channel_nowait()
        connection.set_sink(channel.number, _Sink(self._on_plain_return, _no_confirm))
        channel.on_closed = lambda reason: self._on_plain_closed(connection, reason)
        self._plain = PublishEncoder(channel.number, connection.frame_max)

    def _on_plain_closed(self, connection: BrokerConnection, reason: LinkError) -> None:
        if self._connection is not connection or not isinstance(reason, ChannelClosed):
            return  # the whole connection is going down
        _log.warning(
            "publishing_refused confirmed=False broker=%s; publishings just before it may be lost too",
            reason,
        )
        try:
            self._open_plain(connection)
        except LinkError as exc:
            connection.abort(exc)

    def _on_plain_return(self, returned: Returned) -> None:
        self._statistics.returned += 1
        self._on_return(returned)

    # --- with confirms ---

    async def publish(self, message: Message, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        publishing = _Publishing(
            message,
            message.properties.message_id or f"{self._id_prefix}{next(self._ids):x}",
            loop.create_future(),
            timeout,
        )
        if self._waiting or not self._can_send():
            if len(self._waiting) >= self._max_waiting:
                raise BrokerBlocked(
                    f"{publishing.message.target}: not sent, {self._max_waiting} publishings are waiting already"
                )
            self._waiting.append(publishing)
        else:
            self._send(publishing)
        expiry = loop.call_later(timeout, self._expire, publishing)
        try:
            await publishing.done
        finally:
            expiry.cancel()

    def _can_send(self) -> bool:
        window = self._window
        return (
            self._confirmed is not None
            and self.writable
            and window.has_room()
            and (not self._suspects or not len(window))
        )

    def _pump(self) -> None:
        waiting = self._waiting
        while waiting and self._can_send():
            publishing = waiting.popleft()
            if publishing.is_suspect:
                self._suspects -= 1
            if publishing.done.done():
                continue
            try:
                self._send(publishing)
            except ProtocolError as exc:
                publishing.done.set_exception(exc)
        if not waiting and not len(self._window):
            self._idle.set()

    def _send(self, publishing: _Publishing) -> None:
        assert self._confirmed is not None
        assert self._connection is not None
        message = publishing.message
        data = self._confirmed.encode(message, publishing.message_id)
        self._window.add(
            publishing, len(data), publishing.message_id if message.mandatory else None
        )
        self._connection.write(data)
        if publishing.times_sent:
            self._statistics.republished += 1
        else:
            self._statistics.published += 1
        publishing.times_sent += 1

    def _on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        statistics = self._statistics
        for publishing in self._window.confirm(delivery_tag, multiple):
            if acknowledged:
                statistics.confirmed += 1
            else:
                statistics.rejected += 1
            done = publishing.done
            if done.done():
                continue
            if not acknowledged:
                done.set_exception(
                    PublishRejected(
                        f"{publishing.message.target}: the broker did not take it (basic.nack): "
                        "a queue is full (x-overflow: reject-publish) or in trouble"
                    )
                )
            elif publishing.is_returned:
                done.set_exception(
                    Unroutable(publishing.message.exchange, publishing.message.routing_key)
                )
            else:
                done.set_result(None)
        self._pump()

    def _on_confirmed_return(self, returned: Returned) -> None:
        self._statistics.returned += 1
        publishing = self._window.find_returned(returned.properties.message_id)
        if publishing is not None:
            publishing.is_returned = True

    def _expire(self, publishing: _Publishing) -> None:
        if publishing.done.done():
            return
        what = f"{publishing.message.target}: not confirmed within {publishing.timeout:g} s"
        error: LinkError
        if self._connection is None or self._connection.lost.done():
            error = BrokerUnavailable(f"{what}, no connection to the broker")
        elif self.is_blocked:
            error = BrokerBlocked(f"{what}, the broker takes no publishings")
        else:
            error = BrokerUnavailable(f"{what}; it may or may not have arrived")
        publishing.done.set_exception(error)

    # --- the channel in confirm mode ---

    async def _open_confirmed(self, connection: BrokerConnection) -> None:
        channel = await connection.open_channel(self._step_timeout)
        connection.set_sink(channel.number, _Sink(self._on_confirmed_return, self._on_confirm))
        # pika calls `ack_nack_callback` only for frames the reader does not take
        await channel.call("confirm_delivery", self._step_timeout, ack_nack_callback=_never_called)
        self._confirmed = PublishEncoder(channel.number, connection.frame_max)
        channel.on_closed = lambda reason: self._on_confirmed_closed(connection, reason)

    def _on_confirmed_closed(self, connection: BrokerConnection, reason: LinkError) -> None:
        if self._connection is not connection or not isinstance(reason, ChannelClosed):
            return  # the whole connection is going down; detach() takes back what is unconfirmed
        _log.warning(
            "publishing_refused confirmed=True unconfirmed=%d broker=%s", len(self._window), reason
        )
        self._blame(reason)
        self._reopening = asyncio.create_task(
            self._reopen(connection), name="mycelia:publish:reopen"
        )

    def _blame(self, reason: LinkError) -> None:
        suspects = [one for one in self._window.reset() if not one.done.done()]
        self._confirmed = None
        if len(suspects) == 1 and suspects[0].is_suspect:
            culprit = suspects.pop()
            culprit.done.set_exception(_refused(culprit, reason))
        for suspect in suspects:
            suspect.is_suspect = True
        self._suspects += len(suspects)
        self._waiting.extendleft(reversed(suspects))

    def _take_back(self) -> None:
        """The connection is lost: everything unconfirmed goes back to the head of the queue."""
        self._confirmed = None
        unconfirmed = [one for one in self._window.reset() if not one.done.done()]
        self._suspects += sum(one.is_suspect for one in unconfirmed)
        self._waiting.extendleft(reversed(unconfirmed))

    async def _reopen(self, connection: BrokerConnection) -> None:
        try:
            await self._redeclare(connection)  # the exchange may have been deleted
            await self._open_confirmed(connection)
        except LinkError as exc:
            # Without the channel nobody's publishing would ever be confirmed: start over with a new connection.
            connection.abort(exc)
            return
        self._pump()


def _refused(publishing: _Publishing, reason: LinkError) -> LinkError:
    text = f"{publishing.message.target}: {reason}"
    code = reason.code if isinstance(reason, ChannelClosed) else 0
    if code == 404:
        return TopologyError(f"{text}. Declare the exchange, or check its name.")
    if code == 403:
        return AccessRefused(f"{text}. Give the user the permission to write.")
    return PublishRejected(text)


def _no_confirm(_delivery_tag: int, _multiple: bool, _acknowledged: bool) -> None:
    raise ProtocolError("a confirm on a channel that is not in confirm mode")


def _never_called(*_arguments: Any) -> None:
    """What pika would call with a confirm; the frame reader takes them before pika sees them."""
