"""The publishing side: two channels on one connection, one in confirm mode; and one more for each stream, where the broker needs that.

`publish_nowait()` writes to the plain channel (`unconfirmed.py`). `publish()` puts a `Publishing` into the queue, `_pump()` moves it
from there to the wire and into the confirm window as far as there is room, and the broker's confirm resolves it. When the connection
is lost, what the window holds goes back to the head of the queue.

A nack is not the end: a quorum queue that is electing its leader nacks, and takes the same message a moment later; a queue that
rejects what it has no room for may have room again. So a nacked publishing is tried again after a growing delay, for as long as
its publisher waits, but not longer than `rejected_patience` seconds, for a queue may stay full for good. And on a fresh channel after
the second nack: up to RabbitMQ 3.10 (4.3 does not), one that first published to a queue while it had no leader nacks for ever, while
one opened 0.3 s later is served. What the old one holds is awaited first, for a second.

What goes to a stream has a channel of its own on RabbitMQ before 4.0 (`stream_channel.py`). It goes through the same queue, and what goes
wrong there is seen to here.

A publishing can cost its channel (an exchange that does not exist, a permission, a body too large) or the whole connection (bytes
that the broker cannot read). Mostly the broker's text tells which one it was (`refusals.py`): it gets the error, and the others are sent again.
Where it does not, all that was unconfirmed is suspect:

- Suspects are sent again one at a time, each beside whatever else is published, which need not wait for them.
- One that is on the wire when it happens again is sent alone, ahead of everything, unconfirmed publishings included. If it happens
  then, it is the culprit and gets the error; if not, it is innocent, and what was on the wire beside it is suspect now.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from random import Random
from typing import Final

from mycelia.amqp.link import LinkStatistics
from mycelia.amqp.model import Message, Returned
from mycelia.amqp.rabbit.backoff import Backoff
from mycelia.amqp.rabbit.confirm_window import ConfirmWindow
from mycelia.amqp.rabbit.connection import BrokerChannel, BrokerConnection, ChannelClosed
from mycelia.amqp.rabbit.frames import PublishEncoder
from mycelia.amqp.rabbit.publishing import Publishing
from mycelia.amqp.rabbit.publishing_sink import PublishingSink
from mycelia.amqp.rabbit.resend_ledger import Written
from mycelia.amqp.rabbit.stream_channel import (
    StreamChannel,
    abandon,
    has_room_for_one,
    needs_stream_channels,
    open_confirming,
)
from mycelia.amqp.rabbit.unconfirmed import UnconfirmedPublisher
from mycelia.amqp.refusals import (
    NOT_FOUND,
    blames_a_publishing,
    find_culprit,
    max_message_bytes,
    publishing_nacked,
    publishing_refused,
)
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    LinkError,
    MessageTooLarge,
    ProtocolError,
    Unroutable,
)
from mycelia.log_event import event

__all__ = ["RabbitPublisher"]

_log = logging.getLogger("mycelia.amqp")

_NO_ROUTE: Final = 312
_FIRST_NACK_DELAY_S: Final = 0.05
_LONGEST_NACK_DELAY_S: Final = 1.0
_NACKS_OF_A_CHANNEL: Final = 2
"""Of one publishing, before it is tried on a fresh channel."""
_RENEW_EVERY_S: Final = 1.0
"""At most; the queue may simply be full."""
_DRAIN_S: Final = 1.0
"""For what a channel holds to be confirmed before it is given up."""


class RabbitPublisher:
    """Publishes for a link, on whatever connection it has at the moment.

    Args:
        on_return: takes unconfirmed mandatory publishings that came back.
        on_refused: takes unconfirmed publishings that the broker refused, with the error.
        on_writable: called when `writable` may have changed.
        redeclare: declares the remembered topology on a connection.
        declares_exchange: whether the remembered topology holds the exchange of that name.
        leads_to_stream: whether, by the remembered topology, what is published to that exchange with that routing key goes to a stream.
        max_waiting: publishings that may wait for room or for a connection; more are refused at once.
        rejected_patience: seconds for which a nacked publishing is tried again.
        random: for the jitter of trying again.
    """

    def __init__(
        self,
        statistics: LinkStatistics,
        *,
        on_return: Callable[[Returned], None],
        on_refused: Callable[[Message, LinkError], None],
        on_writable: Callable[[], None],
        redeclare: Callable[[BrokerConnection], Awaitable[None]],
        declares_exchange: Callable[[str], bool],
        leads_to_stream: Callable[[str, str], bool],
        window_messages: int,
        window_bytes: int,
        max_waiting: int = 65536,
        step_timeout: float = 30.0,
        rejected_patience: float = 10.0,
        random: Random | None = None,
    ) -> None:
        self._statistics = statistics
        self._on_return = on_return
        self._on_refused = on_refused
        self._on_writable = on_writable
        self._redeclare = redeclare
        self._declares_exchange = declares_exchange
        self._leads_to_stream = leads_to_stream
        self._step_timeout = step_timeout
        self._rejected_patience = rejected_patience
        self._random = random or Random()
        self._new_window = partial(ConfirmWindow[Publishing], window_messages, window_bytes)
        self._window = self._new_window()
        self._waiting: deque[Publishing] = deque()
        self._max_waiting = max_waiting
        self._suspects: deque[Publishing] = deque()  # those that must go alone are ahead
        self._suspect: Publishing | None = None
        """The one of them that is on the wire."""
        self._delayed: dict[Publishing, asyncio.TimerHandle] = {}  # nacked, to be tried again
        self._connection: BrokerConnection | None = None
        self._confirmed: PublishEncoder | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._channel: BrokerChannel | None = None
        """What `_confirmed` encodes for."""
        self._retiring: BrokerChannel | None = None
        """It nacks too much: nothing more is put on it, and it is replaced when it holds nothing more."""
        self._renew_at = 0.0
        self._stream_channels: dict[tuple[str, str], StreamChannel] | None = None
        """Of the connection of now, by exchange and routing key; `None`: it needs none."""
        self._id_prefix = os.urandom(8).hex()
        self._ids = count(1)
        self._idle = asyncio.Event()
        """Cleared by who waits until all is confirmed."""
        self._idle.set()
        self._unconfirmed = UnconfirmedPublisher(
            statistics,
            on_return=on_return,
            on_refused=on_refused,
            resend=self._resend,
            on_ready=on_writable,
            redeclare=redeclare,
            declares_exchange=declares_exchange,
        )

    # --- for the link ---

    @property
    def writable(self) -> bool:
        return self._has_room() and self._unconfirmed.is_open and not self._tests_alone

    @property
    def _tests_alone(self) -> bool:
        """Whether a suspect is, or is next to be, alone on the wire."""
        if self._suspect is not None:
            return self._suspect.suspicion > 1
        suspects = self._suspects
        return bool(suspects) and suspects[0].suspicion > 1 and not suspects[0].done.done()

    def _has_room(self) -> bool:
        connection = self._connection
        return connection is not None and not connection.blocked and connection.has_room

    @property
    def is_blocked(self) -> bool:
        """Connected, but not taking publishings."""
        connection = self._connection
        return connection is not None and not connection.lost.done() and not self.writable

    @property
    def unconfirmed(self) -> int:
        held = sum(one.unconfirmed for one in (self._stream_channels or {}).values())
        return (
            held + len(self._window) + len(self._waiting) + len(self._suspects) + len(self._delayed)
        )

    @property
    def unproven(self) -> int:
        return self._unconfirmed.unproven

    async def attach(self, connection: BrokerConnection) -> None:
        """Publish on `connection` from now on; what was unconfirmed is sent again.

        Raises:
            LinkError: the channels cannot be opened.
        """
        await self._open_confirmed(connection)
        self._unconfirmed.attach(connection)
        self._stream_channels = {} if needs_stream_channels(connection) else None
        self._connection = connection  # last: from here on publishings go out
        connection.on_writable = self._on_room
        self._on_room()

    def detach(self) -> None:
        """The connection is gone."""
        connection, self._connection = self._connection, None
        suspect = False
        if connection is not None and connection.lost.done():
            reason = connection.lost.result()
            suspect = blames_a_publishing(reason.code)
            if suspect:
                self._log_refusal(None, str(reason))
                on_wire = self._window.reset()
                for channel in (self._stream_channels or {}).values():
                    on_wire += channel.take_written()
                alone = self._end_suspicion(alone=not self._unconfirmed.unproven)
                self._blame(on_wire, reason.code, str(reason), alone)
        self._take_back()
        for channel in self._end_stream_channels():
            self._put_back(channel.take_back())
        self._unconfirmed.detach(suspect)

    def _end_stream_channels(self) -> list[StreamChannel]:
        channels, self._stream_channels = self._stream_channels, None
        return list((channels or {}).values())

    def _on_room(self) -> None:
        self._pump()
        self._pump_stream_channels()
        self._on_writable()

    def on_unblocked(self) -> None:
        self._pump()
        self._pump_stream_channels()

    async def drain(self, timeout: float) -> None:
        """Wait until all is confirmed, at most `timeout` seconds."""
        if self.unconfirmed == 0 or self._connection is None:
            return
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            _log.warning(event("unconfirmed_at_close", count=self.unconfirmed))

    async def aclose(self) -> None:
        """Give up what is still unconfirmed."""
        await self._unconfirmed.aclose()
        channels = (self._stream_channels or {}).values()
        opening = [one.opening for one in channels if one.opening is not None]
        self.detach()
        if self._reopening is not None:
            self._reopening.cancel()
            opening.append(self._reopening)
        if opening:
            await asyncio.wait(opening)
        for handle in self._delayed.values():
            handle.cancel()
        for publishing in (*self._suspects, *self._waiting, *self._delayed):
            if not publishing.done.done():
                publishing.done.set_exception(
                    BrokerUnavailable(
                        f"{publishing.message.target}: the link was closed before the broker confirmed; "
                        "it may or may not have arrived"
                    )
                )
        self._suspects.clear()
        self._waiting.clear()
        self._delayed.clear()

    # --- without confirms ---

    def publish_nowait(self, message: Message, resend_until: float | None) -> None:
        connection = self._connection
        if (
            connection is None
            or connection.blocked
            or not connection.has_room
            or not self._unconfirmed.is_open
            or ((self._suspects or self._suspect) and self._tests_alone)
        ):
            raise self.not_writable(message.target)
        self._unconfirmed.publish(message, resend_until)
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
        if not self._unconfirmed.is_open:
            return BrokerUnavailable(
                f"{what}: not sent, an exchange was deleted and is being declared again"
            )
        if self._tests_alone:
            return BrokerUnavailable(
                f"{what}: not sent, the broker has closed the connection over some publishing, and it is being found out which"
            )
        return BrokerBlocked(
            f"{what}: not sent, the write buffer is full: the broker or the network is slower than the publisher"
        )

    def _resend(self, doubtful: list[Written], suspect: bool) -> None:
        """Publish with a confirm what was written without one and may not have arrived."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for message, until in doubtful:
            if until is None or until <= now or self.unconfirmed >= self._max_waiting:
                self._count_extra("resend_given_up")
                continue
            publishing = self._publishing_of(message, until - now, until)
            publishing.suspicion = int(suspect)
            publishing.times_sent = 1
            expiry = loop.call_at(until, self._expire, publishing)
            publishing.done.add_done_callback(partial(self._resent, message, expiry))
            (self._suspects if suspect else self._waiting).append(publishing)
        self._pump()

    def _resent(
        self, message: Message, expiry: asyncio.TimerHandle, done: asyncio.Future[None]
    ) -> None:
        expiry.cancel()
        error = done.exception()
        if isinstance(error, Unroutable):
            self._on_return(
                Returned(
                    _NO_ROUTE,
                    "NO_ROUTE",
                    message.exchange,
                    message.routing_key,
                    message.properties,
                    message.body,
                )
            )
        elif isinstance(error, BrokerUnavailable | BrokerBlocked):
            self._count_extra("resend_given_up")  # its time is up: nobody waits for it any more
        elif isinstance(error, LinkError):
            self._on_refused(message, error)

    def _count_extra(self, name: str) -> None:
        extra = self._statistics.extra
        extra[name] = extra.get(name, 0) + 1

    # --- with confirms ---

    async def publish(self, message: Message, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        publishing = self._publishing_of(message, timeout, deadline)
        if self._waiting or not self._can_send():
            if len(self._waiting) >= self._max_waiting:
                raise BrokerBlocked(
                    f"{message.target}: not sent, {self._max_waiting} publishings are waiting"
                )
            self._waiting.append(publishing)
            if self._suspects:
                self._pump()  # the one they wait for may have been given up
        else:
            self._send_on_its_channel(publishing)
        expiry = loop.call_at(deadline, self._expire, publishing)
        try:
            await publishing.done
        finally:
            expiry.cancel()

    def _publishing_of(self, message: Message, timeout: float, deadline: float) -> Publishing:
        return Publishing(
            message,
            message.properties.message_id or f"{self._id_prefix}{next(self._ids):x}",
            asyncio.get_running_loop().create_future(),
            timeout,
            deadline,
        )

    def _can_send(self) -> bool:
        """Whether an ordinary publishing may go now."""
        window = self._window
        return (
            self._confirmed is not None
            and self._has_room()
            and window.has_room()
            and not ((self._suspects or self._suspect) and self._tests_alone)
        )

    def _pump(self) -> None:
        waiting = self._waiting
        if self._suspects:
            self._pump_suspects()
            if not self._tests_alone:  # the one that the others waited for was given up
                self._pump_stream_channels()
                self._on_writable()
        while waiting and self._can_send():
            publishing = waiting.popleft()
            if not publishing.done.done():
                self._try_to_send(publishing, self._send_on_its_channel)
        if not self._idle.is_set() and not self.unconfirmed:
            self._idle.set()

    def _pump_suspects(self) -> None:
        """Put the next suspect on the wire, if none is there; alone, if it has been suspected before."""
        suspects = self._suspects
        while suspects and self._suspect is None:
            if suspects[0].done.done():
                suspects.popleft()
                continue
            alone = suspects[0].suspicion > 1
            if (
                self._confirmed is None
                or not self._has_room()
                or (self._is_any_on_wire if alone else not self._window.has_room())
            ):
                return
            self._suspect = suspects.popleft()
            self._try_to_send(self._suspect, self._send)

    @property
    def _is_any_on_wire(self) -> bool:
        channels = (self._stream_channels or {}).values()
        return len(self._window) > 0 or any(one.is_any_on_wire for one in channels)

    def _try_to_send(self, publishing: Publishing, send: Callable[[Publishing], None]) -> None:
        try:
            send(publishing)
        except (ProtocolError, MessageTooLarge, BrokerBlocked) as exc:
            publishing.done.set_exception(exc)
            if publishing is self._suspect:
                self._acquit()

    def _acquit(self) -> None:
        """The suspect on the wire has got an answer."""
        was_alone = self._tests_alone
        self._suspect = None
        if was_alone:
            self._pump_stream_channels()
            self._on_writable()

    def _send(self, publishing: Publishing) -> None:
        assert self._confirmed is not None
        self.write(publishing, self._confirmed, self._window)

    def _send_on_its_channel(self, publishing: Publishing) -> None:
        """Send it, or have it wait for its stream's channel.

        Raises:
            ProtocolError, MessageTooLarge: it cannot be sent.
            BrokerBlocked: too many wait for that channel.
        """
        message = publishing.message
        channel = self._stream_channel_of(message.exchange, message.routing_key)
        if channel is None:
            self._send(publishing)
        elif channel.unconfirmed >= self._max_waiting:
            raise BrokerBlocked(
                f"{message.target}: not sent, {channel.unconfirmed} publishings are waiting"
            )
        else:
            channel.publish(publishing)

    def _stream_channel_of(self, exchange: str, routing_key: str) -> StreamChannel | None:
        """That of the stream to which it goes; `None`: to none, or the broker needs none for that."""
        channels, connection = self._stream_channels, self._connection
        if (
            channels is None
            or connection is None
            or not self._leads_to_stream(exchange, routing_key)
        ):
            return None
        target = (exchange, routing_key)
        channel = channels.get(target)
        if channel is None:
            if not has_room_for_one(channels, connection):
                return None
            channel = StreamChannel(self, connection, self._new_window, self._step_timeout)
            channels[target] = channel
        return channel

    def _pump_stream_channels(self) -> None:
        for channel in list((self._stream_channels or {}).values()):
            channel.pump()

    # --- what a stream's channel asks ---

    @property
    def may_send(self) -> bool:
        """Whether an ordinary publishing may be written now, on some channel."""
        return self._has_room() and not ((self._suspects or self._suspect) and self._tests_alone)

    def write(
        self, publishing: Publishing, encoder: PublishEncoder, window: ConfirmWindow[Publishing]
    ) -> None:
        """Write it to the channel that is encoded for.

        Raises:
            ProtocolError, MessageTooLarge: it cannot be sent.
        """
        assert self._connection is not None
        message = publishing.message
        limit = self._unconfirmed.max_body_bytes
        if limit is not None and len(message.body) > limit:
            raise MessageTooLarge(message.target, len(message.body), limit)
        data = encoder.encode(message, publishing.message_id)
        window.add(publishing, len(data), publishing.message_id if message.mandatory else None)
        self._connection.write(data)
        if publishing.times_sent:
            self._statistics.republished += 1
        else:
            self._statistics.published += 1
        publishing.times_sent += 1

    def _on_confirm(self, delivery_tag: int, multiple: bool, acknowledged: bool) -> None:
        for publishing in self._window.confirm(delivery_tag, multiple):
            if publishing is self._suspect:
                self._acquit()
            self.settle(publishing, acknowledged)
            if publishing.nacks >= _NACKS_OF_A_CHANNEL and not publishing.done.done():
                self._retire()
        if self._retiring is not None and not len(self._window):
            self._renew(self._retiring)
        self._pump()

    def settle(self, publishing: Publishing, acknowledged: bool) -> None:
        """The broker has answered for it."""
        if acknowledged:
            self._statistics.confirmed += 1
        done = publishing.done
        if done.done():
            return
        if not acknowledged:
            self._nacked(publishing)
        elif publishing.is_returned:
            done.set_exception(
                Unroutable(publishing.message.exchange, publishing.message.routing_key)
            )
        else:
            done.set_result(None)

    def answered(self) -> None:
        """A stream's channel has had an answer."""
        if self._waiting or self._suspects or not self._idle.is_set():
            self._pump()

    async def redeclare(self, connection: BrokerConnection) -> None:
        """Declare the remembered topology."""
        await self._redeclare(connection)

    def _on_confirmed_return(self, returned: Returned) -> None:
        self.note_returned(returned, self._window)

    def note_returned(self, returned: Returned, window: ConfirmWindow[Publishing]) -> None:
        """It has come back; the confirm comes behind it."""
        self._statistics.returned += 1
        publishing = window.find_returned(returned.properties.message_id)
        if publishing is not None:
            publishing.is_returned = True

    def _nacked(self, publishing: Publishing) -> None:
        """Try again in a while, as long as that makes sense."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        publishing.nacks += 1
        publishing.is_returned = False
        publishing.suspicion = 0  # whatever was closed, this was not why: the broker has read it
        if publishing.nack_backoff is None:
            publishing.nacked_since = now
            publishing.nack_backoff = Backoff(
                self._random, first=_FIRST_NACK_DELAY_S, cap=_LONGEST_NACK_DELAY_S
            )
        delay = publishing.nack_backoff.next_delay()
        until = min(publishing.deadline, publishing.nacked_since + self._rejected_patience)
        if now + delay >= until:
            self._statistics.rejected += 1
            publishing.done.set_exception(
                publishing_nacked(
                    publishing.message, publishing.nacks, now - publishing.nacked_since
                )
            )
            return
        self._count_extra("nacks_tried_again")
        self._delayed[publishing] = loop.call_later(delay, self._try_nacked_again, publishing)

    def _retire(self) -> None:
        """Put nothing more on the channel that nacks too much; see to another."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._confirmed is None or now < self._renew_at:
            return
        self._renew_at = now + _RENEW_EVERY_S
        self._confirmed = None
        self._retiring = self._channel
        loop.call_later(_DRAIN_S, self._renew, self._channel)

    def _try_nacked_again(self, publishing: Publishing) -> None:
        del self._delayed[publishing]
        self._waiting.append(publishing)
        self._pump()

    def _renew(self, channel: BrokerChannel | None) -> None:
        """Replace the channel that is retiring, if it still is this one. What it holds unconfirmed is sent again."""
        if channel is None or self._retiring is not channel:
            return
        self._retiring = None
        abandon(channel)
        self._take_back()
        self._reopening = asyncio.create_task(
            self._reopen(channel.connection, redeclare=False), name="mycelia:publish:renew"
        )

    def _expire(self, publishing: Publishing) -> None:
        if publishing.done.done():
            return
        what = f"{publishing.message.target}: not confirmed within {publishing.timeout:g} s"
        error: LinkError
        is_renewing = self._confirmed is None and self._connection is not None
        if publishing in self._delayed or (publishing.nacks and is_renewing):
            self._statistics.rejected += 1
            waited_s = asyncio.get_running_loop().time() - publishing.nacked_since
            error = publishing_nacked(publishing.message, publishing.nacks, waited_s)
        elif self._connection is None or self._connection.lost.done():
            error = BrokerUnavailable(f"{what}, no connection to the broker")
        elif self.is_blocked:
            error = BrokerBlocked(f"{what}, the broker takes no publishings")
        else:
            error = BrokerUnavailable(f"{what}; it may or may not have arrived")
        publishing.done.set_exception(error)

    # --- the channel in confirm mode ---

    async def _open_confirmed(self, connection: BrokerConnection) -> None:
        sink = PublishingSink(self._on_confirmed_return, self._on_confirm)
        channel = await open_confirming(connection, sink, self._step_timeout)
        self._channel = channel
        self._confirmed = PublishEncoder(channel.number, connection.frame_max)
        channel.on_closed = lambda reason: self._on_confirmed_closed(connection, reason)

    def stream_channel_closed(self, channel: StreamChannel, reason: ChannelClosed) -> bool:
        """The broker has closed it: see to what was on it. Whether what goes there is to be declared again."""
        self._note_max_bytes(reason)
        culprit = self._blame(channel.take_written(), reason.code, reason.text, None)
        self._log_refusal(culprit, str(reason))
        return reason.code == NOT_FOUND and (culprit is None or not culprit.done.done())

    def _note_max_bytes(self, reason: ChannelClosed) -> None:
        sizes = max_message_bytes(reason.text)
        if sizes is not None:
            self._unconfirmed.max_body_bytes = sizes[1]

    def _on_confirmed_closed(self, connection: BrokerConnection, reason: LinkError) -> None:
        if self._connection is not connection or not isinstance(reason, ChannelClosed):
            return  # the whole connection is going down; detach() takes back what is unconfirmed
        self._note_max_bytes(reason)
        culprit = self._blame(
            self._window.reset(), reason.code, reason.text, self._end_suspicion(alone=True)
        )
        self._log_refusal(culprit, str(reason))
        self._take_back()
        # only if the exchange may have been one of ours: a wrong name must not cost the others a declaration
        redeclare = reason.code == NOT_FOUND and (culprit is None or not culprit.done.done())
        self._reopening = asyncio.create_task(
            self._reopen(connection, redeclare),
            name="mycelia:publish:reopen",
        )

    def _end_suspicion(self, *, alone: bool) -> Publishing | None:
        """The suspect on the wire, if it must be the culprit.

        Args:
            alone: the broker cannot have meant anything outside the confirm window.
        """
        suspect, self._suspect = self._suspect, None
        return suspect if alone and suspect is not None and suspect.suspicion > 1 else None

    def _blame(
        self, on_wire: list[Publishing], code: int, text: str, alone: Publishing | None
    ) -> Publishing | None:
        """Find out over which publishing the channel or connection was closed, and give it the error.

        Where that cannot be known yet, those on the wire become suspects.

        Args:
            on_wire: what was unconfirmed there.
            alone: the one of them that must be it.
        """
        index = find_culprit((one.message for one in on_wire), code, text)
        if index is not None:
            culprit = on_wire.pop(index)
        elif alone is not None:
            culprit = alone
            on_wire.remove(alone)
        else:
            for publishing in on_wire:
                publishing.suspicion += 1
            self._put_back(on_wire)
            return None
        self._put_back(on_wire)
        culprit.times_refused += 1
        if culprit.done.done():
            return culprit
        if (
            code == NOT_FOUND
            and culprit.times_refused == 1
            and self._declares_exchange(culprit.message.exchange)
        ):
            self._waiting.appendleft(
                culprit
            )  # someone has deleted the exchange; it is declared again
        else:
            culprit.done.set_exception(publishing_refused(culprit.message, code, text))
        return culprit

    def _take_back(self) -> None:
        """The channel is gone: everything unconfirmed goes back to the head of the queue."""
        self._confirmed = None
        self._retiring = None
        self._suspect = None
        self._put_back(self._window.reset())

    def _put_back(self, unconfirmed: list[Publishing]) -> None:
        for publishing in reversed(unconfirmed):
            if publishing.done.done():
                continue
            if publishing.suspicion > 1:
                self._suspects.appendleft(publishing)
            elif publishing.suspicion:
                self._suspects.append(publishing)
            else:
                self._waiting.appendleft(publishing)

    def _log_refusal(self, culprit: Publishing | None, reason: str) -> None:
        _log.warning(
            event(
                "publishing_refused",
                confirmed=True,
                exchange=None if culprit is None else culprit.message.exchange,
                routing_key=None if culprit is None else culprit.message.routing_key,
                unconfirmed=self.unconfirmed,
                broker=reason,
            )
        )

    async def _reopen(self, connection: BrokerConnection, redeclare: bool) -> None:
        try:
            if redeclare:  # the exchange may have been deleted
                await self._redeclare(connection)
            await self._open_confirmed(connection)
        except LinkError as exc:
            # Without the channel nobody's publishing would ever be confirmed: start over with a new connection.
            connection.abort(exc)
            return
        self._on_room()  # a suspect was convicted, perhaps: whoever waited for that goes on
