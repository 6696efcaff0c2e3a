"""Events and messages that leave: what is inherited, the outbound chain, then the link.

One publishing is one message, however often middleware sends it: its `message_id` is made before the chain, so that
whoever receives it twice can tell. A middleware that means another message gives it another id.
"""

from __future__ import annotations

import time
from asyncio import to_thread
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from mycelia.amqp import Link, Message, Properties
from mycelia.amqp.delays import Delays
from mycelia.amqp.topology import Part
from mycelia.call import (
    DEFAULT_PUBLISH_OPTIONS,
    DELIVERY_MODES,
    Call,
    CallKind,
    Direction,
    Next,
    Outcome,
    PublishOptions,
    Target,
    get_current_call,
    tighter,
)
from mycelia.clients.chains import MiddlewareFor, OutboundChains
from mycelia.clients.inheritance import deadline_of, event_headers
from mycelia.durations import seconds_of
from mycelia.wire import (
    COMPRESSION_HEADER,
    OFF_LOOP_BYTES,
    SerializerRegistry,
    compressor_of,
    encode_context,
    event_exchange_name,
    new_uuid,
    raw_body,
)

__all__ = ["Outlet"]


class Outlet:
    """Where the events or the messages of one caller process leave.

    Args:
        kind: `EVENT`, whose targets are the service that an event is of and its type; or `MESSAGE`, whose targets are
            exchange and routing key.
        link: an open link.
        serializers: what payloads are written with.
        caller: the caller's name, used in call ids outside a worker.
        timeout: seconds to wait for the broker, where options say nothing.
        middleware_for: what stands around a target's calls; asked once for each service or exchange, with `*` for the
            event type or routing key, of which there may be any number.
        prepare: makes sure, by a deadline, that an exchange is there; `None` where all have been declared.
        context: context data of every publishing.
    """

    def __init__(
        self,
        kind: CallKind,
        link: Link,
        serializers: SerializerRegistry,
        *,
        caller: str,
        timeout: float,
        middleware_for: MiddlewareFor,
        prepare: Callable[[str, float], Awaitable[None]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._context = encode_context(context or {}) or None
        self.timeout = timeout
        self._kind = kind
        self._link = link
        self._serializers = serializers
        self._caller = caller
        self._prepare = prepare
        self._chains = OutboundChains(kind, middleware_for, self._send)
        self._declared: set[Part] = set()
        self._delays: Delays | None = None
        """What publishes for later; made when that is first asked for."""

    def publish(
        self, source: str, name: str, payload: Any, options: PublishOptions
    ) -> Coroutine[Any, Any, None]:
        """Publish `payload` with the context of the call being handled; await what this returns.

        Args:
            source: the service that the event is of, or the exchange.
            name: the event's type, or the routing key.

        Raises:
            BrokerUnavailable, BrokerBlocked: the broker did not take it in time; it may or may not have arrived.
            PublishRejected, Unroutable: the broker said no.
            UnserializableValueError: the payload cannot be carried.
            ConfigError: an unknown serializer or compression.
        """
        parent = get_current_call()
        timeout = options.timeout
        deadline = deadline_of(parent, self.timeout if timeout is None else timeout)
        headers = self.headers_of(options)
        return self.publish_with(source, name, payload, headers, deadline, options)

    def headers_of(self, options: PublishOptions) -> dict[str, Any]:
        """The headers of a message that is published here and now: of the call being handled, and those that `options` name."""
        headers = event_headers(get_current_call(), self._caller)
        if self._context is not None:
            headers |= self._context
        if options.headers or options.extra_headers or options.context:
            _add(headers, options)
        return headers

    def publish_with(
        self,
        source: str,
        name: str,
        payload: Any,
        headers: dict[str, Any],
        deadline: float,
        options: PublishOptions,
    ) -> Coroutine[Any, Any, None]:
        """Publish with these headers, which are all: nothing is inherited. For what is published later than it was meant."""
        chain = self._chains.of(source)
        if chain is None:
            return self._publish(source, name, payload, headers, deadline, options)
        call = Call(
            Target(Direction.OUTBOUND, self._kind, source, name),
            ((payload,), {}),
            headers=headers,
            deadline=deadline,
            options=_of_one_message(options),
        )
        return _publish_through(chain, call)

    async def _send(self, call: Call) -> Outcome:
        """The end of the outbound chain: whatever middleware has made of `call` is what is published."""
        try:
            options = call.options
            if not isinstance(options, PublishOptions):
                options = DEFAULT_PUBLISH_OPTIONS
            deadline = tighter(call.deadline, time.monotonic() + self.timeout_of(options))
            assert deadline is not None
            headers = call.outbound_headers()
            _add(headers, options)
            (payload,) = call.args
            target = call.target
            await self._publish(target.service, target.method, payload, headers, deadline, options)
        except Exception as exc:  # noqa: BLE001  the end of a chain never raises: the error is the outcome
            return Outcome(error=exc)
        return Outcome()

    async def _publish(
        self,
        source: str,
        name: str,
        payload: Any,
        headers: dict[str, Any],
        deadline: float,
        options: PublishOptions,
    ) -> None:
        content_type, content_encoding, body = self.written(payload, options)
        if options.compression is not None:
            headers[COMPRESSION_HEADER], compress = compressor_of(options.compression)
            body = compress(body) if len(body) < OFF_LOOP_BYTES else await to_thread(compress, body)
        expiration = options.expiration
        properties = Properties(
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
            delivery_mode=DELIVERY_MODES[options.delivery_mode],
            priority=options.priority,
            correlation_id=options.correlation_id,
            reply_to=options.reply_to,
            expiration=None if expiration is None else str(int(expiration * 1000)),
            message_id=options.message_id or new_uuid(),
            timestamp=int(time.time() if options.timestamp is None else options.timestamp),
            type=options.type,
            user_id=options.user_id,
            app_id=options.app_id,
            cluster_id=options.cluster_id,
        )
        exchange = event_exchange_name(source) if self._kind is CallKind.EVENT else source
        message = Message(exchange, name, body, properties, mandatory=options.mandatory)
        if self._prepare is not None:
            await self._prepare(exchange, deadline)
        link = self._link
        if options.after:
            await self._publish_later(message, options.after, deadline)
            return
        if options.use_confirms:
            await link.publish(message, timeout=max(deadline - time.monotonic(), 0.0))
            return
        if not link.writable:
            await link.ready(max(deadline - time.monotonic(), 0.0))
        link.publish_nowait(message)

    async def _publish_later(self, message: Message, after: float | str, deadline: float) -> None:
        delays = self._delays
        if delays is None:
            delays = self._delays = Delays(self._link)
        left = max(deadline - time.monotonic(), 0.0)
        await delays.publish(message, seconds_of(after, "after="), timeout=left)

    def written(self, payload: Any, options: PublishOptions) -> tuple[str, str, bytes]:
        """Content type, content encoding and body of a payload; not compressed."""
        if options.content_type is not None:
            return raw_body(payload, options.content_type, options.content_encoding)
        serializer = self._serializers.by_name(options.serializer)
        return serializer.content_type, serializer.content_encoding, serializer.encode(payload)

    async def declare(self, parts: Iterable[Part], timeout: float) -> None:
        """Make sure that `parts` are there, each once: the link declares them again after it was away."""
        missing = [part for part in parts if part not in self._declared]
        if missing:
            await self._link.declare(*missing, timeout=timeout)
            self._declared.update(missing)

    def timeout_of(self, options: PublishOptions) -> float:
        """Seconds that a publishing with `options` may wait for the broker."""
        return self.timeout if options.timeout is None else options.timeout


def _add(headers: dict[str, Any], options: PublishOptions) -> None:
    """Put the headers that `options` name among `headers`, and those of their context data."""
    if options.context:
        headers |= encode_context(options.context)
    if options.headers:
        headers |= options.headers
    if options.extra_headers:
        headers |= options.extra_headers


def _of_one_message(options: PublishOptions) -> PublishOptions:
    """`options` for one call: with the message's id, without headers, which the call has as its own by now."""
    changes: Mapping[str, Any] = {
        "headers": None,
        "extra_headers": None,
        "context": None,
        "message_id": options.message_id or new_uuid(),
    }
    return msgspec.structs.replace(options, **changes)


async def _publish_through(chain: Next, call: Call) -> None:
    (await chain(call)).unwrap()
