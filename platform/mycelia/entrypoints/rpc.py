"""`@rpc`: a method that other services call. Exchange, queue and binding are exactly Nameko's.

All `@rpc` methods of a service share the queue `rpc-{service}`, bound with `{service}.*`; a request is dispatched by
its routing key. The reply goes to the request's `reply_to`, a routing key on the same exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from mycelia.amqp import (
    TRANSIENT,
    Binding,
    ConsumeOptions,
    Consumer,
    Delivery,
    Exchange,
    Message,
    Properties,
    Queue,
)
from mycelia.call import Call, CallKind, Outcome, Settle, deadline_from_wire
from mycelia.entrypoints.dead_letters import DeadLetters, attempt_of
from mycelia.entrypoints.subscription import stop_deliveries
from mycelia.errors import (
    LinkError,
    MalformedRequest,
    MethodNotFound,
    MyceliaError,
    UndecodableMessage,
)
from mycelia.runtime import (
    Container,
    Entrypoint,
    Lane,
    SharedExtension,
    SignatureCheck,
)
from mycelia.wire import (
    COMPRESSION_HEADER,
    Serializer,
    decode_request,
    decompress,
    encode_error,
    encode_result,
    read_deadline_ms,
    serialize_exception,
    service_binding_key,
    service_queue_name,
)

__all__ = ["Rpc", "RpcConsumer", "rpc"]

log = logging.getLogger("mycelia.entrypoints")


REPLY_TIMEOUT = 30.0
"""Seconds a reply without a deadline waits for a broker that is away, before it is given up."""


class _Method:
    """One `@rpc` method, ready to run."""

    __slots__ = ("entrypoint", "lane", "name", "signature")

    def __init__(self, entrypoint: Rpc, lane: Lane) -> None:
        self.entrypoint = entrypoint
        self.lane = lane
        self.name = entrypoint.method_name
        self.signature = SignatureCheck(entrypoint.method)


class RpcConsumer(SharedExtension):
    """Consumes a service's request queue and dispatches to its `@rpc` methods."""

    needs_broker = True
    container: Container
    dead_letters = DeadLetters()

    def __init__(self) -> None:
        self.expired = 0
        self._entrypoints: list[Rpc] = []
        self._methods: dict[str, _Method] = {}
        self._consumer: Consumer | None = None
        self._late_replies: set[asyncio.Task[None]] = set()

    def register(self, entrypoint: Rpc) -> None:
        self._entrypoints.append(entrypoint)

    async def setup(self) -> None:
        container = self.container
        self._host = container.host
        self._link = container.host.link
        self._exchange = container.settings.rpc_exchange
        self._service = container.service_name
        self._serializers = container.host.serializers
        self._parent_calls_tracked = container.settings.parent_calls_tracked
        self.queue = service_queue_name(self._service)
        await self._link.declare(
            Exchange(self._exchange),
            Queue(self.queue),
            Binding(self.queue, self._exchange, service_binding_key(self._service)),
        )

    async def start(self) -> None:
        container = self.container
        for entrypoint in self._entrypoints:
            lane = container.make_lane(entrypoint, self._settle, self._skip_expired)
            key = f"{self._service}.{entrypoint.method_name}"
            self._methods[key] = _Method(entrypoint, lane)
        self._consumer = await self._link.consume(
            self.queue,
            self._on_deliveries,
            ConsumeOptions(prefetch=container.shared_prefetch_of(self._entrypoints)),
        )

    async def stop_consuming(self) -> None:
        """Take no more requests; those that wait here go back to the queue. Idempotent."""
        if self._consumer is not None:
            await stop_deliveries(self._consumer)
        for method in self._methods.values():
            for call in method.lane.take_backlog():
                call.message.nack(requeue=True)

    async def stop(self) -> None:
        """Let replies that wait for the broker leave. The last worker has ended."""
        if self._late_replies:
            _, pending = await asyncio.wait(self._late_replies, timeout=5.0)
            for task in pending:
                task.cancel()

    # --- a request comes in -------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._accept(delivery)
            except MyceliaError as exc:
                log.warning(
                    "request_refused queue=%s routing_key=%s error=%s",
                    self.queue,
                    delivery.routing_key,
                    exc,
                )
                self._reply_with_error(delivery, exc)
            except Exception as exc:
                # Whatever a message holds, it must not end the consumer.
                log.exception("request_failed queue=%s", self.queue)
                self._reply_with_error(delivery, exc)

    def _accept(self, delivery: Delivery) -> None:
        properties = delivery.properties
        headers = properties.headers
        body = delivery.body
        try:
            if headers is not None and COMPRESSION_HEADER in headers:
                body = decompress(body, headers, self._serializers.max_body_bytes)
            value = self._serializers.decode(
                body, properties.content_type, properties.content_encoding
            )
        except UndecodableMessage as exc:
            raise MalformedRequest(str(exc)) from exc
        args, kwargs = decode_request(value)
        method = self._methods.get(delivery.routing_key)
        if method is None:
            raise MethodNotFound(delivery.routing_key.partition(".")[2])
        method.signature.check(args, kwargs)
        deadline = None
        deadline_ms = read_deadline_ms(headers)
        if deadline_ms is not None:
            deadline = deadline_from_wire(deadline_ms, monotonic=time.monotonic(), wall=time.time())
        method.lane.submit(
            Call(
                CallKind.RPC,
                self._service,
                method.name,
                args,
                kwargs,
                headers=headers,
                deadline=deadline,
                attempt=1 if not delivery.redelivered else attempt_of(delivery) + 1,
                message=delivery,
                parent_calls_tracked=self._parent_calls_tracked,
            )
        )

    def _skip_expired(self, call: Call) -> None:
        """Nobody waits for the answer any more: do not do the work."""
        self.expired += 1
        log.info("request_expired call=%s", call.target)
        call.message.ack()

    # --- an outcome goes out ------------------------------------------------------------------

    def _settle(self, call: Call, outcome: Outcome) -> None:
        delivery: Delivery = call.message
        error = outcome.error
        if outcome.settle is Settle.REQUEUE:
            delivery.nack(requeue=True)
        elif error is None:
            body = outcome.body
            if body is None:  # a middleware answered in the method's place
                try:
                    body = encode_result(outcome.value, self._serializer_of(delivery))
                except MyceliaError as exc:
                    self._reply_with_error(delivery, exc)
                    return
            self._reply(delivery, body, call.deadline)
        else:
            self._log_error(call, error)
            self._reply_with_error(delivery, error, call.deadline)

    def _log_error(self, call: Call, error: BaseException) -> None:
        method = self._methods[f"{self._service}.{call.method}"]
        if isinstance(error, method.entrypoint.expected_exceptions):
            log.warning(
                "worker_raised call=%s error=%s: %s", call.target, type(error).__name__, error
            )
        else:
            log.error("worker_failed call=%s", call.target, exc_info=error)

    def _serializer_of(self, delivery: Delivery) -> Serializer:
        """That of the request, so that the caller can read the answer; the default for an unknown one."""
        return self._serializers.for_reply(delivery.properties.content_type)

    def _reply_with_error(
        self, delivery: Delivery, error: BaseException, deadline: float | None = None
    ) -> None:
        described = serialize_exception(error, traceback=True)
        self._reply(delivery, encode_error(described, self._serializer_of(delivery)), deadline)

    def _reply(self, delivery: Delivery, body: bytes, deadline: float | None) -> None:
        """Answer, then acknowledge the request; neither waits."""
        request = delivery.properties
        reply_to = request.reply_to
        if reply_to is None:  # a one-way request: done is done
            delivery.ack()
            return
        serializer = self._serializer_of(delivery)
        properties = Properties(
            serializer.content_type,
            serializer.content_encoding,
            None,
            TRANSIENT,
            None,
            request.correlation_id,
        )
        try:
            self._link.publish_nowait(Message(self._exchange, reply_to, body, properties))
        except LinkError:
            task = asyncio.create_task(
                self._reply_late(delivery, reply_to, body, properties, deadline),
                name="mycelia:late-reply",
            )
            self._late_replies.add(task)
            task.add_done_callback(self._late_replies.discard)
        else:
            delivery.ack()

    async def _reply_late(
        self,
        delivery: Delivery,
        reply_to: str,
        body: bytes,
        properties: Properties,
        deadline: float | None,
    ) -> None:
        """The broker is away or blocked: keep the reply for as long as somebody waits for it."""
        timeout = REPLY_TIMEOUT if deadline is None else max(deadline - time.monotonic(), 0.0)
        try:
            await self._link.publish(
                Message(self._exchange, reply_to, body, properties), timeout=timeout
            )
        except LinkError as exc:
            log.error("reply_lost queue=%s reply_to=%s error=%s", self.queue, reply_to, exc)
        delivery.ack()


class Rpc(Entrypoint):
    """The entrypoint behind `@rpc`."""

    needs_broker = True
    container: Container
    consumer = RpcConsumer()

    def setup(self) -> None:
        self.consumer.register(self)

    async def stop(self) -> None:
        await self.consumer.stop_consuming()

    def encode_result(self, call: Call, value: Any) -> bytes:
        """The reply's body, made in the worker, so that an unserializable result is the worker's error."""
        serializer = self.container.host.serializers.for_reply(call.message.properties.content_type)
        return encode_result(value, serializer)


rpc = Rpc.decorator
"""Make a method callable by other services: `@rpc` or `@rpc(concurrency=…, expected_exceptions=…)`."""
