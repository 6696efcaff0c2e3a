"""Nameko's `QueueConsumer` over Mycelia's link: extensions that work on kombu's messages run as they are.

Consumers, RPC consumers and reply listeners of Nameko's, and what packages derive from them, register with it and are
handed each message, in a thread of its own, as kombu would hand it over; acknowledging and requeueing go back to the link. What
they publish goes over kombu's own connections, as in Nameko.

| a message | becomes |
|---|---|
| that cannot be decoded | a dead letter |
| whose `handle_message()` or `handle_result()` raises | a dead letter; Nameko's container dies of it |
| that nobody settles | stays with this process until it ends, as in Nameko: some settle late |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from inspect import getattr_static
from typing import Any

from mycelia.amqp import ConsumeOptions, Delivery, LinkConsumer
from mycelia.entrypoints.dead_letters import DeadLetters
from mycelia.entrypoints.received import decode_body, stop_deliveries
from mycelia.errors import ConfigError, UndecodableMessage, describe
from mycelia.log_event import event
from mycelia.nameko.managed_thread import run_in_daemon_thread
from mycelia.nameko.recognise import dotted_name
from mycelia.runtime import Container, Extension
from mycelia.runtime.topology import queue_topology
from mycelia.wire.encodings import BINARY, body_text, codec_of

__all__ = ["QueueConsumerCounterpart", "bury_unhandled", "py_amqp_body"]

log = logging.getLogger("mycelia.nameko")

SERVED = frozenset({"prefetch_count", "ack_message", "requeue_message", "register_provider"})
"""What of Nameko's class a subclass may override, because it is asked for here too."""

STOCK = "nameko.messaging.QueueConsumer"


class _Channel:
    """As much of a kombu channel as a message needs to settle itself, from any thread."""

    no_ack_consumers = None

    def __init__(self, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        self._delivery = delivery
        self._loop = loop

    @property
    def connection(self) -> object:
        """False where the broker has taken the message back, which Nameko asks before it settles one."""
        return not self._delivery.is_lost

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        self._call(self._delivery.ack)

    def basic_reject(self, delivery_tag: int, requeue: bool = True) -> None:
        self._call(lambda: self._delivery.nack(requeue=requeue))

    def _call(self, settle: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(settle)


class QueueConsumerCounterpart(Extension):
    """Does the work of one bound `QueueConsumer`.

    Args:
        held: it; what registers with it is served from `start()` on.
    """

    needs_broker = True
    container: Container
    dead_letters = DeadLetters()

    def __init__(self, held: Any) -> None:
        self.held = held
        self._consumers: dict[Any, LinkConsumer] = {}
        self._threads: set[asyncio.Task[None]] = set()

    def bind(self, container: Any) -> Any:
        _refuse_what_would_be_passed_over(self.held)
        bound = super().bind(container)
        self.held.unregister_provider = bound.unregister
        return bound

    async def start(self) -> None:
        link = self.container.host.link
        for provider in list(self.held._providers):
            queue, parts = queue_topology(provider.queue, called=self.container.service_name)
            await link.declare(*parts)
            self._consumers[provider] = await link.consume(
                queue.name,
                partial(self._on_deliveries, provider, queue.name),
                ConsumeOptions(prefetch=self.held.prefetch_count),
            )

    def unregister(self, provider: Any) -> None:
        """`QueueConsumer.unregister_provider()`: no more messages for `provider`. Blocks; in threads beside the loop."""
        consumer = self._consumers.pop(provider, None)
        if consumer is not None:
            asyncio.run_coroutine_threadsafe(
                stop_deliveries(consumer), self.container.loop
            ).result()
        # Past the stock class's own, which waits for its consume loop.
        stock = _class_named(self.held, STOCK)
        super(stock, self.held).unregister_provider(provider)  # type: ignore[misc]  # it is Nameko's

    def _on_deliveries(self, provider: Any, queue: str, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            task = asyncio.create_task(
                self._hand_over(provider, queue, delivery), name=f"mycelia:kombu:{queue}"
            )
            self._threads.add(task)
            task.add_done_callback(self._threads.discard)

    async def _hand_over(self, provider: Any, queue: str, delivery: Delivery) -> None:
        message = _as_kombu_s(delivery, self.container)
        message.bury = lambda error: self.container.loop.call_soon_threadsafe(
            self._bury, provider, queue, delivery, error
        )

        def handle() -> None:
            body = decode_body(delivery, self.container.host.serializers)
            provider.handle_message(body, message)

        try:
            name = f"{type(provider).__name__}.handle_message[{delivery.routing_key}]"
            await run_in_daemon_thread(handle, name)
        except Exception as exc:  # noqa: BLE001  the worker boundary: it becomes a dead letter
            self._bury(provider, queue, delivery, exc)

    def _bury(self, provider: Any, queue: str, delivery: Delivery, error: BaseException) -> None:
        log.error(
            event("message_not_handled", queue=queue, by=repr(provider), error=describe(error)),
            exc_info=error,
        )
        self.dead_letters.bury(
            delivery,
            queue=queue,
            method=str(getattr(provider, "method_name", type(provider).__name__)),
            reason="undecodable" if isinstance(error, UndecodableMessage) else "handler_error",
            attempts=1,
            error=error,
        )


def bury_unhandled(handle_result: Any, error: BaseException) -> None:
    """Where `handle_result(message, …)` of an entrypoint raised: put the message aside, if it is one from here."""
    for given in getattr(handle_result, "args", ()):
        bury = getattr(given, "bury", None)
        if bury is not None and not given.acknowledged:
            bury(error)


def _as_kombu_s(delivery: Delivery, container: Container) -> Any:
    """The message as kombu's consumers get it."""
    from kombu.message import Message

    told = delivery.properties
    headers = dict(told.headers or {})
    properties = {
        name: value
        for name in told.__struct_fields__
        # Without the time to live, which callers of Nameko's never give: nameko-amqp-retry publishes a message again with
        # all of its properties and an expiration of its own.
        if name not in ("headers", "expiration") and (value := getattr(told, name)) is not None
    }
    make: Any = Message
    message = make(
        body=py_amqp_body(delivery.body, told.content_encoding),
        delivery_tag=delivery.delivery_tag,
        content_type=told.content_type,
        content_encoding=told.content_encoding,
        delivery_info={
            "consumer_tag": delivery.consumer_tag,
            "delivery_tag": delivery.delivery_tag,
            "redelivered": delivery.redelivered,
            "exchange": delivery.exchange,
            "routing_key": delivery.routing_key,
        },
        properties={**properties, "application_headers": headers},
        accept=container.host.serializers.accepted_content_types,
        channel=_Channel(delivery, container.loop),
    )
    message.headers = headers  # the same ones: what is put in is in both
    return message


def py_amqp_body(body: bytes, encoding: str | None) -> str | bytes:
    """Text where it can be (amqp/abstract_channel.py, `auto_decode`); of the encodings that are read here, no others."""
    try:
        codec = codec_of(encoding or BINARY)
        return body if codec == BINARY else body_text(body, codec)
    except UndecodableMessage:
        return body


def _class_named(held: Any, name: str) -> Any:
    return next(cls for cls in type(held).__mro__ if dotted_name(cls) == name)


def _refuse_what_would_be_passed_over(held: Any) -> None:
    stock = _class_named(held, STOCK)
    known = {name for cls in stock.__mro__[:-1] for name in vars(cls)} - SERVED
    ignored = sorted(
        name
        for name in known
        if not name.startswith("__")
        and getattr_static(type(held), name) is not getattr_static(stock, name)
    )
    if ignored:
        raise ConfigError(
            f"{dotted_name(type(held))} overrides {', '.join(ignored)} of Nameko's QueueConsumer, which is not asked for "
            "here: messages come over Mycelia's own link. Run this service on stock Nameko beside the others."
        )
