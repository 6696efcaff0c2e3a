"""Publishing without confirms: one plain channel, and what happens to its publishings when it ends.

Each message goes out as it comes. The ledger keeps it until the broker has answered a mark: a `basic.qos`, written at most every
50 ms while anything is unproven. (Of the synchronous methods `basic.qos` costs RabbitMQ least: it sets a number on a channel that never
consumes. A passive declare would ask a queue, and need a permission.) So a publishing costs one entry in a deque, and 20 round
trips a second are paid only while there is traffic.

The broker closes the channel over a publishing that it does not like. It has processed what came before that one and thrown away
what came after, and its text mostly tells which one it was. So the culprit is reported, and the others go out again on
a new channel, none twice. Where the culprit went to an exchange that this link has declared, somebody has deleted the exchange:
it is declared again first, and the culprit gets a second chance.

When the whole connection is lost, or the text does not tell, what was unproven may or may not have arrived. What carries a
`resend_until` is handed on to be published with a confirm; the rest was sent at most once, as promised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mycelia.amqp.link import LinkStatistics
from mycelia.amqp.model import Message, Returned
from mycelia.amqp.rabbit.connection import BrokerChannel, BrokerConnection, ChannelClosed
from mycelia.amqp.rabbit.frames import PublishEncoder
from mycelia.amqp.rabbit.publishing_sink import PublishingSink
from mycelia.amqp.rabbit.resend_ledger import ResendLedger, Written
from mycelia.amqp.refusals import NOT_FOUND, find_culprit, max_message_bytes, publishing_refused
from mycelia.errors import BrokerUnavailable, LinkError, MessageTooLarge, ProtocolError
from mycelia.log_event import event

__all__ = ["UnconfirmedPublisher"]

_log = logging.getLogger("mycelia.amqp")

_MARK_EVERY_S: Final = 0.05
"""Bounds what a lost connection leaves in doubt, and so what is sent twice. Twenty small frames a second cost nothing."""
_LEDGER_MESSAGES: Final = 65536
_LEDGER_BYTES: Final = 64 * 1024 * 1024


class UnconfirmedPublisher:
    """The plain channel of a publishing connection.

    Args:
        on_return: takes mandatory publishings that came back.
        on_refused: takes publishings over which the broker closed the channel, with the error.
        resend: publishes with a confirm what may not have arrived and may be sent twice. Its second argument says whether the
            broker may have closed the channel or connection over one of them.
        on_ready: called when there is a channel again after a repair.
        redeclare: declares the remembered topology on a connection.
        declares_exchange: whether the remembered topology holds the exchange of that name.

    Attributes:
        is_open: whether there is a channel to write to.
        max_body_bytes: what the broker takes at most, as far as it has said so.
    """

    def __init__(
        self,
        statistics: LinkStatistics,
        *,
        on_return: Callable[[Returned], None],
        on_refused: Callable[[Message, LinkError], None],
        resend: Callable[[list[Written], bool], None],
        on_ready: Callable[[], None],
        redeclare: Callable[[BrokerConnection], Awaitable[None]],
        declares_exchange: Callable[[str], bool],
    ) -> None:
        self.max_body_bytes: int | None = None
        self._statistics = statistics
        self._on_return = on_return
        self._on_refused = on_refused
        self._resend = resend
        self._on_ready = on_ready
        self._redeclare = redeclare
        self._declares_exchange = declares_exchange
        self._ledger = ResendLedger(_LEDGER_MESSAGES, _LEDGER_BYTES)
        self._connection: BrokerConnection | None = None
        self._channel: BrokerChannel | None = None
        self._encoder: PublishEncoder | None = None
        self.is_open = False
        self._mark_due = False
        self._mark: int | None = None
        """Written and not answered yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._repair: asyncio.Task[None] | None = None
        self._second_chance: Message | None = None
        self._hopeless_until = 0.0

    @property
    def unproven(self) -> int:
        """Publishings of which nobody knows yet whether the broker has processed them."""
        return len(self._ledger)

    def publish(self, message: Message, resend_until: float | None) -> None:
        """Write `message`; the caller has seen that there is room.

        Raises:
            ProtocolError: it cannot be written.
            MessageTooLarge: the broker has said that it does not take that much.
        """
        connection, encoder = self._connection, self._encoder
        assert connection is not None
        assert encoder is not None
        limit = self.max_body_bytes
        if limit is not None and len(message.body) > limit:
            raise MessageTooLarge(message.target, len(message.body), limit)
        connection.write(encoder.encode(message))
        self._ledger.add((message, resend_until))
        if not self._mark_due:
            self._mark_soon(connection)

    # --- the channel ---

    def attach(self, connection: BrokerConnection) -> None:
        """Write to `connection` from now on.

        Raises:
            LinkError: no channel can be opened.
        """
        self.max_body_bytes = (
            None  # another broker, perhaps, or the same one with another configuration
        )
        self._connection = connection
        self._open(connection)

    def detach(self, suspect: bool = False) -> None:
        """The connection is gone. What may be sent twice is sent again.

        Args:
            suspect: the broker closed it over something it was sent.
        """
        self._connection = None
        self._channel = self._encoder = None
        self.is_open = False
        self._stop_marks()
        self._send_again_if_allowed(self._ledger.take(), suspect)

    async def aclose(self) -> None:
        """Forget what is unproven: it leaves with what is written before the connection is closed."""
        self._ledger.take()
        self.detach()
        repair, self._repair = self._repair, None
        if repair is not None:
            repair.cancel()
            await asyncio.wait([repair])

    def _open(self, connection: BrokerConnection) -> None:
        # Without waiting for the answer: what is written to the channel arrives behind its opening.
        channel = connection.open_channel_nowait()
        connection.set_sink(channel.number, PublishingSink(self._returned, _no_confirm))
        channel.on_closed = lambda reason: self._closed(connection, reason)
        self._channel = channel
        self._encoder = PublishEncoder(channel.number, connection.frame_max)
        self.is_open = True

    def _returned(self, returned: Returned) -> None:
        self._statistics.returned += 1
        self._on_return(returned)

    # --- marks: what the broker has processed ---

    def _mark_soon(self, connection: BrokerConnection) -> None:
        self._mark_due = True
        self._timer = connection.loop.call_later(_MARK_EVERY_S, self._write_mark)

    def _write_mark(self) -> None:
        self._timer = None
        connection, channel = self._connection, self._channel
        if connection is None or channel is None or not channel.is_open:
            self._mark_due = False
            return
        if not channel.opened.done():
            self._mark_soon(connection)  # the channel's own opening is not answered yet
            return
        if self._mark is None:
            mark = self._mark = self._ledger.mark()
            channel.call_nowait("basic_qos", lambda: self._answered(channel, mark))
        else:
            self._ledger.trim()  # the last mark is not answered yet
            if self._ledger.dropped:
                self._statistics.extra["forgotten_unproven"] = self._ledger.dropped
        self._mark_soon(connection)

    def _answered(self, channel: BrokerChannel, mark: int) -> None:
        if self._channel is not channel:
            return
        self._ledger.prove(mark)
        self._mark = None
        if not len(self._ledger):
            self._stop_marks()

    def _stop_marks(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._mark_due = False
        self._mark = None

    # --- refusals ---

    def _closed(self, connection: BrokerConnection, reason: LinkError) -> None:
        if self._connection is not connection or not isinstance(reason, ChannelClosed):
            return  # the whole connection is going down
        self._channel = self._encoder = None
        self.is_open = False
        self._stop_marks()
        unproven = self._ledger.take()
        sizes = max_message_bytes(reason.text)
        if sizes is not None:
            self.max_body_bytes = sizes[1]
        index = find_culprit((message for message, _ in unproven), reason.code, reason.text)
        culprit = None if index is None else unproven[index][0]
        self._log_refusal(reason, culprit, unproven)
        if index is None or culprit is None:  # which ones were processed, nobody knows
            self._reopen_and_write(connection, [])
            self._send_again_if_allowed(unproven, True)
        elif self._may_try_again(culprit, reason.code):
            self._second_chance = culprit
            self._repair = asyncio.create_task(
                self._repair_and_write(connection, unproven[index:]),
                name="mycelia:publish:redeclare",
            )
        else:
            self._on_refused(culprit, publishing_refused(culprit, reason.code, reason.text))
            self._reopen_and_write(connection, unproven[index + 1 :])

    def _may_try_again(self, culprit: Message, code: int) -> bool:
        """Whether it went to an exchange of ours that somebody has deleted.

        Once only, and after a declaration that did not help not for a second, lest we declare without end.
        """
        if code != NOT_FOUND or not self._declares_exchange(culprit.exchange):
            return False
        now = asyncio.get_running_loop().time()
        if culprit is self._second_chance:
            self._hopeless_until = now + 1.0
        return now >= self._hopeless_until

    def _log_refusal(
        self, reason: ChannelClosed, culprit: Message | None, unproven: list[Written]
    ) -> None:
        lost = 0 if culprit is not None else sum(until is None for _, until in unproven)
        _log.warning(
            event(
                "publishing_refused",
                confirmed=False,
                exchange=None if culprit is None else culprit.exchange,
                routing_key=None if culprit is None else culprit.routing_key,
                may_be_lost=lost,
                broker=str(reason),
            )
        )

    async def _repair_and_write(self, connection: BrokerConnection, again: list[Written]) -> None:
        try:
            await self._redeclare(connection)
        except LinkError as exc:
            connection.abort(exc)  # start over with a new connection, which declares everything
        if self._connection is connection and not connection.lost.done():
            self._reopen_and_write(connection, again)
        else:
            self._give_back(again)

    def _reopen_and_write(self, connection: BrokerConnection, again: list[Written]) -> None:
        try:
            self._open(connection)
        except LinkError as exc:
            connection.abort(exc)
            self._give_back(again)
            return
        for message, resend_until in again:
            try:
                self.publish(message, resend_until)
            except (MessageTooLarge, ProtocolError) as exc:
                self._on_refused(message, exc)
        self._on_ready()

    def _send_again_if_allowed(self, unproven: list[Written], suspect: bool) -> None:
        allowed = [one for one in unproven if one[1] is not None]
        if allowed:
            self._resend(allowed, suspect)

    def _give_back(self, unsent: list[Written]) -> None:
        """The connection went before these, which the broker has certainly not taken, could be written again."""
        self._send_again_if_allowed(unsent, False)
        for message, resend_until in unsent:
            if resend_until is None:
                text = f"{message.target}: not sent, the connection to the broker is lost"
                self._on_refused(message, BrokerUnavailable(text))


def _no_confirm(_delivery_tag: int, _multiple: bool, _acknowledged: bool) -> None:
    raise ProtocolError("a confirm on a channel that is not in confirm mode")
