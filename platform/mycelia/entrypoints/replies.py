"""The replies of one service: sent without waiting, and not lost on the way.

A request is acknowledged on one connection as soon as its reply has been handed to the other. So a reply is kept until the
broker has provably taken it, and sent again after a reconnect for as long as its caller waits (`resend_until`); one that cannot
be handed over at all, because the broker is away or blocked, waits with its request unacknowledged. A reply that the broker
refuses, for instance over its size, becomes an error reply that says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from mycelia.amqp import TRANSIENT, Delivery, Link, Message, Properties
from mycelia.amqp.fields import encode_table
from mycelia.call import Call, Outcome
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    LinkError,
    MessageTooLarge,
    MyceliaError,
    UnserializableValueError,
    describe,
)
from mycelia.log_event import event
from mycelia.wire import (
    DEADLINE_HEADER,
    Serializer,
    SerializerRegistry,
    encode_error,
    encode_reply_context,
    encode_result,
    serialize_exception,
)

__all__ = ["REPLY_TIMEOUT", "Replies"]

log = logging.getLogger("mycelia.entrypoints")

REPLY_TIMEOUT = 30.0
"""Seconds a reply without a deadline waits for a broker that is away, before it is given up."""

SMALL_BYTES = 64 * 1024
"""An error reply above this may be refused for its size alone; then a smaller one says so."""


def _size_of(name: str, value: Any) -> int | None:
    try:
        return len(encode_table({name: value}))
    except Exception:  # noqa: BLE001  ProtocolError, or what a strange value does when it is looked at
        return None


class ReplyMessage(Message, frozen=True, gc=False):
    """A reply on its way, and whose it is: a refused one is answered for by its sender alone."""

    sender: Any = None
    is_error: bool = False


class Replies:
    """Makes and sends the replies of one service.

    Args:
        link: an open link.
        exchange: the exchange of requests and replies.
        queue: the service's request queue, for log lines.
        tracebacks: whether errors tell their tracebacks, to callers that are Mycelia's.
    """

    def __init__(
        self,
        link: Link,
        exchange: str,
        serializers: SerializerRegistry,
        *,
        queue: str,
        tracebacks: bool,
    ) -> None:
        self._link = link
        self._exchange = exchange
        self._serializers = serializers
        self._queue = queue
        self.tracebacks = tracebacks
        """May be changed at any time."""
        self._late: dict[asyncio.Task[None], Delivery | None] = {}
        """Replies that wait for the broker, and their requests, unless those are acknowledged already."""
        self._stop_listening: Callable[[], None] = link.on_refused(self._on_refused)

    @property
    def waiting(self) -> list[Delivery]:
        """Requests whose replies wait for the broker."""
        return [delivery for delivery in self._late.values() if delivery is not None]

    def send(self, call: Call, delivery: Delivery, outcome: Outcome) -> None:
        """Answer, then acknowledge the request. Neither waits nor raises."""
        request = delivery.properties
        reply_to = request.reply_to
        if reply_to is None:  # a one-way request: done is done
            delivery.ack()
            return
        serializer = call.serializer or self._serializers.default
        error = outcome.error
        body = outcome.body if error is None else self._error_body(call, error, serializer)
        if body is None:  # a middleware answered in the method's place
            try:
                body = encode_result(outcome.value, serializer)
            except Exception as exc:  # noqa: BLE001  a serializer of the user's may raise anything
                error = exc
                body = self._error_body(call, exc, serializer)
        back = call.reply_context
        properties = Properties(
            serializer.content_type,
            serializer.content_encoding,
            None if back is None else self._headers(call, back),
            TRANSIENT,
            None,
            request.correlation_id,
        )
        reply = ReplyMessage(
            self._exchange, reply_to, body, properties, False, self, error is not None
        )
        deadline = call.deadline
        try:
            self._link.publish_nowait(
                reply,
                resend_until=time.monotonic() + REPLY_TIMEOUT if deadline is None else deadline,
            )
        except (BrokerUnavailable, BrokerBlocked):
            self._send_late(delivery, reply, deadline)
        except LinkError as exc:
            self._on_refused(reply, exc)
            delivery.ack()
        else:
            delivery.ack()

    def _headers(self, call: Call, back: Mapping[Any, Any]) -> dict[str, Any] | None:
        """Context data that travels back; what cannot costs the caller not its answer."""
        left_out: list[str] = []
        try:
            headers = encode_reply_context(
                back.copy() if type(back) is dict else back, _size_of, left_out
            )
        except Exception as exc:  # noqa: BLE001  whatever a middleware has put there
            headers = {}
            left_out.append(describe(exc))
        if left_out:
            log.warning(
                event(
                    "reply_context_left_out",
                    call=call.target.name,
                    call_id=call.call_id,
                    left_out=", ".join(left_out),
                )
            )
        return headers or None

    def _error_body(self, call: Call, error: BaseException, serializer: Serializer) -> bytes:
        """The error as a reply's body; never fails for what the error holds, nor for a serializer that cannot carry it."""
        headers = call.headers
        # Stock Nameko's callers do nothing with a traceback; a Mycelia caller is known by the deadline it sends.
        traceback = self.tracebacks and headers is not None and DEADLINE_HEADER in headers
        try:
            return encode_error(serialize_exception(error, traceback=traceback), serializer)
        except Exception as exc:  # noqa: BLE001  a serializer of the user's may raise anything
            log.warning(event("error_unserializable", call=call.target.name, error=describe(exc)))
            return self._plain_error_body(describe(error), serializer)

    def _plain_error_body(self, text: str, serializer: Serializer) -> bytes:
        plain = serialize_exception(UnserializableValueError(text), traceback=False)
        try:
            return encode_error(plain, serializer)
        except Exception:  # noqa: BLE001  it cannot even carry text; whoever reads the reply has a chance with the default
            return encode_error(plain, self._serializers.default)

    # --- the broker is away ---------------------------------------------------------------------

    def _send_late(
        self, delivery: Delivery | None, reply: ReplyMessage, deadline: float | None
    ) -> None:
        task = asyncio.create_task(
            self._wait_and_send(delivery, reply, deadline), name="mycelia:late-reply"
        )
        self._late[task] = delivery
        task.add_done_callback(self._late.pop)

    async def _wait_and_send(
        self, delivery: Delivery | None, reply: ReplyMessage, deadline: float | None
    ) -> None:
        """The broker is away or blocked: keep the reply for as long as somebody waits for it."""
        timeout = REPLY_TIMEOUT if deadline is None else max(deadline - time.monotonic(), 0.0)
        try:
            await self._link.publish(reply, timeout=timeout)
        except (BrokerUnavailable, BrokerBlocked) as exc:
            self._log_lost(reply, exc)
        except MyceliaError as exc:
            self._on_refused(reply, exc)
        if delivery is not None:
            delivery.ack()

    # --- the broker refuses a reply -------------------------------------------------------------

    def _on_refused(self, message: Message, error: MyceliaError) -> None:
        if type(message) is not ReplyMessage or message.sender is not self:
            return
        if message.is_error and not (
            isinstance(error, MessageTooLarge) and len(message.body) > SMALL_BYTES
        ):
            self._log_lost(message, error)
            return
        content_type = message.properties.content_type
        serializer = self._serializers.for_reply(content_type)
        body = encode_error(serialize_exception(error, traceback=False), serializer)
        log.warning(
            event(
                "reply_refused",
                queue=self._queue,
                reply_to=message.routing_key,
                size_bytes=len(message.body),
                error=error,
                detail="answered with an error instead",
            )
        )
        # Without context data: it may be what was too large.
        properties = message.properties.republished(headers=None)
        instead = ReplyMessage(
            self._exchange, message.routing_key, body, properties, False, self, True
        )
        self._send_late(None, instead, None)  # the channel is about to be opened again

    def _log_lost(self, reply: ReplyMessage, error: MyceliaError) -> None:
        log.error(event("reply_lost", queue=self._queue, reply_to=reply.routing_key, error=error))

    # --- the end --------------------------------------------------------------------------------

    async def stop(self, timeout: float) -> None:
        """Let replies that wait for the broker leave, for `timeout` seconds."""
        self._stop_listening()
        if self._late:
            _, pending = await asyncio.wait(list(self._late), timeout=timeout)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
