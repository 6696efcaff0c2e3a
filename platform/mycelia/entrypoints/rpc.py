"""`@rpc`: a method that other services call. Exchange, queue and binding are exactly Nameko's.

All `@rpc` methods of a service share the queue `rpc-{service}`, bound with `{service}.*`; a request is dispatched by
its routing key. The reply goes to the request's `reply_to`, a routing key on the same exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
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
from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    Direction,
    GiveBack,
    Outcome,
    Reply,
    Requeue,
    Retry,
    Settlement,
    Target,
    deadline_from_wire,
)
from mycelia.entrypoints.put_back import PutBack
from mycelia.entrypoints.received import (
    attempt_of,
    decode_body,
    requeue_delay,
    stop_deliveries,
)
from mycelia.entrypoints.shared_prefetch import SharedPrefetch
from mycelia.errors import (
    DeadlinePassed,
    LinkError,
    MalformedRequest,
    MethodNotFound,
    MyceliaError,
    UndecodableMessage,
)
from mycelia.log_event import event
from mycelia.runtime import (
    Container,
    Entrypoint,
    Lane,
    SharedExtension,
    SignatureCheck,
)
from mycelia.wire import (
    decode_request,
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

REPLY = Reply()
ACK = Ack()


class RpcConsumer(SharedExtension):
    """Consumes a service's request queue, dispatches to its `@rpc` methods, and answers."""

    needs_broker = True
    container: Container

    def __init__(self) -> None:
        self._entrypoints: list[Rpc] = []
        self._methods: dict[str, Rpc] = {}
        """By routing key."""
        self._consumer: Consumer | None = None
        self._late_replies: set[asyncio.Task[None]] = set()
        self._window: SharedPrefetch | None = None
        self._resizing: asyncio.Task[None] | None = None
        self._stop_looking: Callable[[], None] = lambda: None

    def register(self, entrypoint: Rpc) -> None:
        self._entrypoints.append(entrypoint)

    async def setup(self) -> None:
        container = self.container
        self._link = container.host.link
        self._exchange = container.settings.rpc_exchange
        self._service = container.service_name
        self._serializers = container.host.serializers
        self._parent_calls_tracked = container.settings.parent_calls_tracked
        self._put_back = PutBack(
            self._link, publish_timeout=container.settings.mycelia.publish_timeout
        )
        self.queue = service_queue_name(self._service)
        await self._link.declare(
            Exchange(self._exchange),
            Queue(self.queue),
            Binding(self.queue, self._exchange, service_binding_key(self._service)),
        )

    async def start(self) -> None:
        container = self.container
        for entrypoint in self._entrypoints:
            entrypoint.lane = container.make_lane(entrypoint)
            self._methods[f"{self._service}.{entrypoint.method_name}"] = entrypoint
        # Requests for methods that do not exist are calls like any other, up to the point where they are refused.
        stray = Target(Direction.INBOUND, CallKind.RPC, self._service, "*")
        self._stray_lane = container.make_lane(self._entrypoints[0], stray)
        prefetch = container.shared_prefetch_of(self._entrypoints)
        self._consumer = await self._link.consume(
            self.queue, self._on_deliveries, ConsumeOptions(prefetch=prefetch)
        )
        if len(self._entrypoints) > 1 and all(e.prefetch is None for e in self._entrypoints):
            self._window = SharedPrefetch(prefetch, container.settings.mycelia.rpc_prefetch_max)
            watch = container.host.watch(asyncio.get_running_loop())
            self._stop_looking = watch.each_look(self._look_at_window)

    def _look_at_window(self) -> None:
        """Let a method that has nothing to do get requests, though another's fill the window."""
        consumer, window = self._consumer, self._window
        if consumer is None or window is None or self._resizing is not None:
            return
        lanes = [entrypoint.lane for entrypoint in self._entrypoints]
        is_full = consumer.unsettled >= window.now
        if window.look(
            unsettled=consumer.unsettled,
            has_idle_method=any(lane.has_room for lane in lanes),
            waiting_bytes=sum(lane.waiting_bytes for lane in lanes) if is_full else 0,
        ):
            log.debug(event("prefetch_changed", queue=self.queue, prefetch=window.now))
            self._resizing = asyncio.create_task(
                self._resize(consumer, window.now), name=f"mycelia:prefetch:{self.queue}"
            )

    async def _resize(self, consumer: Consumer, prefetch: int) -> None:
        try:
            await consumer.set_prefetch(prefetch)
        except MyceliaError as exc:
            log.debug(event("prefetch_unchanged", queue=self.queue, error=exc))
        finally:
            self._resizing = None

    async def stop_consuming(self) -> None:
        """Take no more requests; those that wait here go back to the queue. Idempotent."""
        self._stop_looking()
        if self._resizing is not None:
            self._resizing.cancel()
        if self._consumer is not None:
            await stop_deliveries(self._consumer)
        for entrypoint in self._methods.values():
            entrypoint.lane.give_back_backlog()

    async def stop(self) -> None:
        """Let replies that wait for the broker leave. The last worker has ended."""
        self._put_back.stop()
        if self._late_replies:
            _, pending = await asyncio.wait(self._late_replies, timeout=5.0)
            for task in pending:
                task.cancel()

    # --- a request comes in -------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        arrived_at = time.monotonic()
        for delivery in deliveries:
            properties = delivery.properties
            headers = properties.headers
            entrypoint = self._methods.get(delivery.routing_key)
            deadline_ms = read_deadline_ms(headers)
            call = Call(
                self._stray_target(delivery) if entrypoint is None else entrypoint.target,
                headers=headers,
                deadline=None
                if deadline_ms is None
                else deadline_from_wire(deadline_ms, monotonic=arrived_at, wall=time.time()),
                attempt=attempt_of(delivery),
                arrived_at=arrived_at,
                message=delivery,
                serializer=self._serializers.for_reply(properties.content_type),
                decode=None if entrypoint is None else entrypoint.decode_arguments,
                parent_calls_tracked=self._parent_calls_tracked,
            )
            if entrypoint is None:
                self._stray_lane.refuse(call, MethodNotFound(call.method))
            else:
                entrypoint.lane.submit(call)

    def _stray_target(self, delivery: Delivery) -> Target:
        method = delivery.routing_key.partition(".")[2]
        return Target(Direction.INBOUND, CallKind.RPC, self._service, method)

    # --- an outcome goes out ------------------------------------------------------------------

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        delivery = call.message
        assert delivery is not None
        match settlement:
            case Reply():
                self._reply(call, delivery, self._body(call, outcome))
            case GiveBack():
                delivery.nack(requeue=True)
            case Requeue():
                self._again(call, delivery, requeue_delay(call.attempt))
            case Retry(after):
                self._again(call, delivery, after)
            case _:
                delivery.ack()

    def _again(self, call: Call, delivery: Delivery, after: float) -> None:
        """Another attempt, by the way that the request came, so that it finds its method again."""
        self._put_back.later(
            delivery, self._exchange, delivery.routing_key, after, attempt=call.attempt + 1
        )

    def _body(self, call: Call, outcome: Outcome) -> bytes:
        error = outcome.error
        serializer = call.serializer or self._serializers.default
        if error is None:
            if outcome.body is not None:
                return outcome.body
            try:  # a middleware answered in the method's place
                return encode_result(outcome.value, serializer)
            except MyceliaError as exc:
                error = exc
        return encode_error(serialize_exception(error, traceback=True), serializer)

    def _reply(self, call: Call, delivery: Delivery, body: bytes) -> None:
        """Answer, then acknowledge the request; neither waits."""
        request = delivery.properties
        reply_to = request.reply_to
        if reply_to is None:  # a one-way request: done is done
            delivery.ack()
            return
        serializer = call.serializer or self._serializers.default
        properties = Properties(
            serializer.content_type,
            serializer.content_encoding,
            None,
            TRANSIENT,
            None,
            request.correlation_id,
        )
        reply = Message(self._exchange, reply_to, body, properties)
        try:
            self._link.publish_nowait(reply)
        except LinkError:
            task = asyncio.create_task(
                self._reply_late(delivery, reply, call.deadline), name="mycelia:late-reply"
            )
            self._late_replies.add(task)
            task.add_done_callback(self._late_replies.discard)
        else:
            delivery.ack()

    async def _reply_late(self, delivery: Delivery, reply: Message, deadline: float | None) -> None:
        """The broker is away or blocked: keep the reply for as long as somebody waits for it."""
        timeout = REPLY_TIMEOUT if deadline is None else max(deadline - time.monotonic(), 0.0)
        try:
            await self._link.publish(reply, timeout=timeout)
        except LinkError as exc:
            log.error(event("reply_lost", queue=self.queue, reply_to=reply.routing_key, error=exc))
        delivery.ack()


class Rpc(Entrypoint):
    """The entrypoint behind `@rpc`."""

    needs_broker = True
    kind = CallKind.RPC
    settlements = frozenset({Reply, Requeue, Retry})
    sheds_overload = True
    container: Container
    consumer = RpcConsumer()
    lane: Lane
    """Where its workers run, once it has started."""

    def setup(self) -> None:
        self._serializers = self.container.host.serializers
        self._signature = SignatureCheck(self.method)
        self.consumer.register(self)

    async def stop(self) -> None:
        await self.consumer.stop_consuming()

    def decode_arguments(self, call: Call) -> Arguments:
        """The request's arguments, once they fit the method.

        Raises:
            MalformedRequest, IncorrectSignature: said to the caller; the method does not run.
        """
        assert call.message is not None
        try:
            value = decode_body(call.message, self._serializers)
        except UndecodableMessage as exc:
            raise MalformedRequest(str(exc)) from exc
        args, kwargs = decode_request(value)
        self._signature.check(args, kwargs)
        return args, kwargs

    def encode_result(self, call: Call, value: Any) -> bytes:
        """The reply's body, made in the worker, so that an unserializable result is the worker's error."""
        return encode_result(value, call.serializer or self._serializers.default)

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        if outcome.is_refused and isinstance(outcome.error, DeadlinePassed):
            return ACK  # nobody waits for the answer any more
        return REPLY

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        self.consumer.settle(call, outcome, settlement)


rpc = Rpc.decorator
"""Make a method callable by other services: `@rpc` or `@rpc(concurrency=…, expected_exceptions=…)`."""
