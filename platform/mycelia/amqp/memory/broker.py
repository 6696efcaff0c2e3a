"""A broker in this process that behaves as RabbitMQ does: exchanges, bindings, queues, connections. Pure.

Nothing here awaits: every operation is done when it returns, and deliveries are told to the subscriber's callback.
`MemoryLink` gives it AMQP's asynchronous manners. Where RabbitMQ would close the channel, it raises `Refused`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from mycelia.amqp.fields import decode_table, encode_table
from mycelia.amqp.memory.clock import Clock, LoopClock
from mycelia.amqp.memory.queues import (
    BaseQueue,
    QueueModel,
    QueueSubscriber,
    Refused,
    StoredMessage,
    make_queue,
)
from mycelia.amqp.memory.routing import EXCHANGE_TYPES, matches
from mycelia.amqp.model import Binding, Exchange, ExchangeBinding, Message, Queue

__all__ = ["MemoryBroker", "Peer", "PublishOutcome", "QueueSubscriber", "Refused", "broker_at"]


class Peer(Protocol):
    """A connection, as the broker sees it. All are called synchronously and must not raise."""

    @property
    def is_alive(self) -> bool:
        """Whether its event loop still runs."""
        ...

    def on_lost(self) -> None:
        """The connection is gone: the broker stopped or dropped it. Its subscribers are closed already."""
        ...

    def on_restored(self) -> None:
        """The broker takes connections again."""
        ...

    def on_blocked(self) -> None:
        """`broker.is_blocked` has changed."""
        ...


class PublishOutcome(Enum):
    """What became of a publishing. `UNROUTABLE` is confirmed too, after the return."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding as routing reads it."""

    queue: str
    """Or the exchange, of what is bound exchange to exchange."""
    routing_key: str
    arguments: dict[str, Any]


P = ParamSpec("P")
R = TypeVar("R")


def _alone(
    method: Callable[Concatenate[MemoryBroker, P], R],
) -> Callable[Concatenate[MemoryBroker, P], R]:
    """The method, with nothing else done to the broker meanwhile."""

    @wraps(method)
    def alone(self: MemoryBroker, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return alone


class MemoryBroker:
    """One broker, shared by all links of its name, in whatever threads their loops run: one operation at a time.

    Args:
        clock: where TTL, expiry and timestamps take their time from. Default: real time; give a `ManualClock`
            to drive it by hand.

    Attributes:
        max_message_bytes: a larger body is refused (RabbitMQ's `max_message_size`; its own limit in version 3).
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.max_message_bytes = 128 * 1024 * 1024
        self.clock: Clock = clock or LoopClock()
        self.is_running = True
        self.is_blocked = False
        self._exchanges: dict[str, Exchange] = dict(_PREDECLARED)
        self._bindings: dict[str, list[_Bound]] = {}
        self._chains: dict[str, list[_Bound]] = {}
        """Exchanges bound to an exchange; each as a `_Bound` of the name it leads to."""
        self._queues: dict[str, BaseQueue] = {}
        self._peers: dict[Peer, list[QueueSubscriber]] = {}
        self._attached: list[Peer] = []
        self._lock = threading.RLock()
        """Operations bring about others: a delivery an acknowledgement, a rejection a dead letter."""

    # --- for tests: what an operator or a fault does ---------------------------------------------

    @_alone
    def stop(self) -> None:
        """Stop, as a node does: connections are lost, and what is not durable is gone."""
        if not self.is_running:
            return
        self.is_running = False
        peers = list(self._peers)
        self._peers.clear()
        for queue in list(self._queues.values()):
            queue.detach_all()
            if queue.declared.durable and not queue.declared.exclusive:
                queue.restart()
            else:
                self._remove_queue(queue)
        for exchange in [one for one in self._exchanges.values() if not one.durable]:
            self._remove_exchange(exchange.name)
        for peer in peers:
            peer.on_lost()

    @_alone
    def start(self) -> None:
        """Start again with what `stop()` has left. Links reconnect with the next turn of their loop."""
        if self.is_running:
            return
        self.is_running = True
        self._restore()

    @_alone
    def drop_connections(self) -> None:
        """Cut every connection, as a network does. The broker keeps running: messages stay."""
        peers = list(self._peers)
        for peer in peers:
            self.disconnect(peer)
        for peer in peers:
            peer.on_lost()
        if self.is_running:
            self._restore()

    @_alone
    def block(self) -> None:
        """Take no publishings, as under a memory or disk alarm (`connection.blocked`)."""
        self._set_blocked(True)

    @_alone
    def unblock(self) -> None:
        self._set_blocked(False)

    @_alone
    def cancel_consumers(self, queue: str) -> None:
        """Cancel every consumer of `queue` from the broker's side (`basic.cancel`).

        Raises:
            Refused: no such queue (404).
        """
        self._find_queue(queue).cancel_consumers()

    @_alone
    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings, as an operator does. Nothing happens if it does not exist.

        Raises:
            Refused: 403, one of the broker's own.
        """
        if not name or name.startswith("amq."):
            raise Refused(
                403, f"ACCESS_REFUSED - exchange name '{name}' contains reserved prefix 'amq.*'"
            )
        self._remove_exchange(name)

    @_alone
    def unbind(self, binding: Binding) -> None:
        """Delete a binding, as an operator does. Nothing happens if it does not exist."""
        bindings = self._bindings.get(binding.exchange, [])
        bound = _Bound(binding.queue, binding.routing_key, _as_sent(binding.arguments))
        if bound in bindings:
            bindings.remove(bound)

    @property
    @_alone
    def queue_names(self) -> list[str]:
        """Of all queues that exist now."""
        return list(self._queues)

    # --- connections -----------------------------------------------------------------------------

    @_alone
    def attach(self, peer: Peer) -> None:
        """Tell `peer` of starts until it detaches, connected or not."""
        if peer not in self._attached:
            self._attached.append(peer)

    @_alone
    def detach(self, peer: Peer) -> None:
        if peer in self._attached:
            self._attached.remove(peer)

    @_alone
    def forget_dead(self) -> None:
        """Close the connections whose event loop has ended, as a server does with those of a process that died."""
        for peer in [one for one in self._attached if not one.is_alive]:
            self.detach(peer)
            self.disconnect(peer)

    @_alone
    def connect(self, peer: Peer) -> None:
        """Open a connection.

        Raises:
            Refused: the broker is stopped.
        """
        if not self.is_running:
            raise Refused(320, "CONNECTION_FORCED - the broker is stopped")
        self._peers.setdefault(peer, [])

    @_alone
    def disconnect(self, peer: Peer) -> None:
        """Close a connection: its consumers stop, its unsettled messages return, its exclusive queues go."""
        subscribers = self._peers.pop(peer, [])
        # Exclusive queues go first, so that nothing is returned to them and dead-lettered from there.
        for queue in [one for one in self._queues.values() if one.owner is peer]:
            self._remove_queue(queue)
        for subscriber in subscribers:
            self.cancel(subscriber)
        for subscriber in subscribers:
            self.close(subscriber)

    # --- topology --------------------------------------------------------------------------------

    @_alone
    def declare_exchange(self, wanted: Exchange) -> None:
        """Declare an exchange, or check that it exists as it is wanted.

        Raises:
            Refused: 404 passive and absent, 406 it exists otherwise, 403 reserved name, 503 unknown type.
        """
        existing = self._exchanges.get(wanted.name)
        if wanted.passive:
            self._find_exchange(wanted.name)
            return
        if wanted.type not in EXCHANGE_TYPES:
            raise Refused(503, f"COMMAND_INVALID - unknown exchange type '{wanted.type}'")
        if existing is None:
            if wanted.name.startswith("amq."):
                raise Refused(
                    403,
                    f"ACCESS_REFUSED - exchange name '{wanted.name}' contains reserved prefix 'amq.*'",
                )
            self._exchanges[wanted.name] = replace(wanted, arguments=_as_sent(wanted.arguments))
            return
        for name in ("type", "durable", "auto_delete", "internal"):
            self._check_same(
                "exchange", wanted.name, name, getattr(wanted, name), getattr(existing, name)
            )
        self._check_same(
            "exchange",
            wanted.name,
            "alternate-exchange",
            wanted.arguments.get("alternate-exchange"),
            existing.arguments.get("alternate-exchange"),
        )

    @_alone
    def declare_queue(self, peer: Peer, wanted: Queue) -> None:
        """Declare a queue, or check that it exists as it is wanted.

        Raises:
            Refused: 404 passive and absent, 405 another connection's exclusive queue, 406 it exists otherwise or
                its arguments do not fit together, 403 reserved name.
        """
        existing = self._queue(wanted.name)
        if existing is not None:
            self._check_access(peer, existing)
            if not wanted.passive:
                self._check_same_queue(wanted, existing.declared)
            existing.touch()
            return
        if wanted.passive:
            raise _no_queue(wanted.name)
        if wanted.name.startswith("amq."):
            raise Refused(
                403, f"ACCESS_REFUSED - queue name '{wanted.name}' contains reserved prefix 'amq.*'"
            )
        declared = replace(wanted, arguments=_as_sent(wanted.arguments))
        self._queues[wanted.name] = make_queue(self, declared, peer if wanted.exclusive else None)

    @_alone
    def bind(self, peer: Peer, binding: Binding) -> None:
        """Bind a queue to an exchange; binding twice is binding once.

        Raises:
            Refused: 404 no such queue or exchange, 405 another connection's queue, 403 the default exchange.
        """
        if not binding.exchange:
            raise Refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange")
        self._check_access(peer, self._find_queue(binding.queue))
        self._find_exchange(binding.exchange)
        bound = _Bound(binding.queue, binding.routing_key, _as_sent(binding.arguments))
        bindings = self._bindings.setdefault(binding.exchange, [])
        if bound not in bindings:
            bindings.append(bound)

    @_alone
    def bind_exchange(self, binding: ExchangeBinding) -> None:
        """Bind an exchange to another; binding twice is binding once.

        Raises:
            Refused: 404 no such exchange, 403 the default exchange.
        """
        if not binding.exchange or not binding.destination:
            raise Refused(403, "ACCESS_REFUSED - operation not permitted on the default exchange")
        self._find_exchange(binding.destination)
        self._find_exchange(binding.exchange)
        bound = _Bound(binding.destination, binding.routing_key, _as_sent(binding.arguments))
        chains = self._chains.setdefault(binding.exchange, [])
        if bound not in chains:
            chains.append(bound)

    @_alone
    def message_count(self, peer: Peer, name: str) -> int:
        queue = self._find_queue(name)
        self._check_access(peer, queue)
        queue.touch()
        return queue.message_count

    @_alone
    def consumer_count(self, peer: Peer, name: str) -> int:
        queue = self._find_queue(name)
        self._check_access(peer, queue)
        queue.touch()
        return queue.consumer_count

    @_alone
    def delete_queue(self, peer: Peer, name: str) -> None:
        """Delete a queue with its messages, which are not dead-lettered. Nothing happens if it does not exist."""
        queue = self._queue(name)
        if queue is not None:
            self._check_access(peer, queue)
            self._remove_queue(queue)

    # --- messages --------------------------------------------------------------------------------

    @_alone
    def publish(
        self,
        message: Message,
        message_id: str | None = None,
    ) -> PublishOutcome:
        """Route a message into its queues.

        The properties are copied, with `message_id` where they have none: what the caller changes later does not
        reach the queues.

        Raises:
            Refused: 404 no such exchange, 403 an internal one, 406 `expiration` is not milliseconds as text, or the body
                is too large.
            ProtocolError: something that AMQP cannot carry.
        """
        exchange, routing_key, properties = (
            message.exchange,
            message.routing_key,
            message.properties,
        )
        size = len(message.body)
        if size > self.max_message_bytes:
            limit = self.max_message_bytes
            raise Refused(
                406,
                f"PRECONDITION_FAILED - message size {size} is larger than configured max size {limit}",
            )
        if self._find_exchange(exchange).internal:
            raise Refused(
                403,
                f"ACCESS_REFUSED - cannot publish to internal exchange '{exchange}' in vhost '/'",
            )
        expiration = properties.expiration
        if expiration is not None and not (expiration.isascii() and expiration.isdigit()):
            raise Refused(406, f"PRECONDITION_FAILED - invalid expiration '{expiration}'")
        stored = StoredMessage(exchange, routing_key, properties, message.body, message_id)
        queues = self._route(exchange, routing_key, stored.properties.headers or {})
        if not queues:
            return PublishOutcome.UNROUTABLE
        taken = [queue.publish(stored) for queue in queues]
        return PublishOutcome.CONFIRMED if all(taken) else PublishOutcome.REJECTED

    @_alone
    def consume(self, peer: Peer, queue: str, subscriber: QueueSubscriber) -> None:
        """Start a consumer.

        Raises:
            Refused: 404 no such queue, 403 exclusive use, 405 another connection's queue, 540 or 406 not possible on
                a stream.
        """
        found = self._find_queue(queue)
        self._check_access(peer, found)
        # Known before it gets its first delivery, which `subscribe()` already brings.
        self._peers[peer].append(subscriber)
        try:
            found.subscribe(subscriber)
        except Refused:
            self._peers[peer].remove(subscriber)
            raise

    @_alone
    def get(self, peer: Peer, queue: str, subscriber: QueueSubscriber) -> bool:
        """Hand one message of `queue` to `subscriber`; return whether there was one.

        Raises:
            Refused: 404 no such queue, 405 another connection's queue, 540 a stream.
        """
        found = self._find_queue(queue)
        self._check_access(peer, found)
        found.touch()
        self._peers[peer].append(subscriber)
        try:
            has_taken = found.get(subscriber)
        except Refused:
            self.close(subscriber)
            raise
        if not has_taken:
            self.close(subscriber)
        return has_taken

    @_alone
    def begin_anew(self, subscriber: QueueSubscriber, prefetch: int) -> None:
        """Another prefetch, as of a second consumer on the channel that takes over from the first."""
        subscriber.begin_anew(prefetch)
        if subscriber.queue is not None:
            subscriber.queue.drain()

    @_alone
    def consume_again(self, subscriber: QueueSubscriber, prefetch: int) -> bool:
        """Start a cancelled consumer on its channel again; return whether the queue is still there for it.

        Raises:
            Refused: as `consume()`.
        """
        queue = subscriber.queue
        if queue is None or self._queue(queue.name) is not queue:
            return False
        subscriber.arguments = {**subscriber.arguments, "x-stream-offset": subscriber.cursor}
        subscriber.begin_anew(prefetch)
        queue.subscribe(subscriber)
        return True

    @_alone
    def cancel(self, subscriber: QueueSubscriber) -> None:
        """No more deliveries; what is unsettled can still be settled."""
        if subscriber.queue is not None:
            subscriber.queue.cancel(subscriber)

    @_alone
    def close(self, subscriber: QueueSubscriber) -> None:
        """Close the consumer's channel: what is unsettled returns to the queue."""
        for subscribers in self._peers.values():
            if subscriber in subscribers:
                subscribers.remove(subscriber)
        if subscriber.queue is not None:
            subscriber.queue.close(subscriber)

    @_alone
    def settle(
        self, subscriber: QueueSubscriber, tag: int, *, accepted: bool, requeue: bool = False
    ) -> None:
        """Tell a delivery's fate. Nothing happens for an unknown tag or a closed channel."""
        if subscriber.queue is not None:
            subscriber.queue.settle(subscriber, tag, accepted=accepted, requeue=requeue)

    # --- what the queues ask (QueueHost) ---------------------------------------------------------

    @_alone
    def dead_letter(self, queue: QueueModel, message: StoredMessage, reason: str) -> bool:
        arguments = queue.declared.arguments
        exchange = arguments.get("x-dead-letter-exchange")
        if exchange is None:
            return True
        if exchange not in self._exchanges:
            return False
        routing_key = arguments.get("x-dead-letter-routing-key", message.routing_key)
        properties = message.copy_properties()
        properties.headers = _with_death(message, queue.name, reason, int(self.clock.wall()))
        properties.expiration = None
        dead = StoredMessage(exchange, routing_key, properties, message.body)
        targets = self._route(exchange, routing_key, properties.headers)
        deaths = properties.headers["x-death"]
        fitting = [
            target
            for target in targets
            if reason == "rejected" or not _is_automatic_cycle(target.name, deaths)
        ]
        taken = [target.publish(dead) for target in fitting]
        return (bool(taken) and all(taken)) or len(fitting) < len(targets)

    @_alone
    def run_alone(self, action: Callable[[], None]) -> None:
        action()

    @_alone
    def queue_unused(self, queue: BaseQueue) -> None:
        if self._queues.get(queue.name) is queue:
            self._remove_queue(queue)

    # --- inside ----------------------------------------------------------------------------------

    def _route(self, exchange: str, routing_key: str, headers: dict[str, Any]) -> list[BaseQueue]:
        """The queues a message goes to, each once, in binding order."""
        names: dict[str, None] = {}
        seen: set[str] = set()
        ahead = [exchange]
        while ahead:
            exchange = ahead.pop(0)
            if exchange in seen or exchange not in self._exchanges:
                continue
            seen.add(exchange)
            queues = self._matching(self._bindings, exchange, routing_key, headers)
            chained = self._matching(self._chains, exchange, routing_key, headers)
            names.update(dict.fromkeys(queues))
            ahead.extend(chained)
            alternate = self._exchanges[exchange].arguments.get("alternate-exchange")
            # Where it has led on to another exchange, what that one makes of it is no concern of the alternate.
            if alternate is not None and not queues and not chained:
                ahead.append(alternate)
        return [queue for name in names if (queue := self._queue(name)) is not None]

    def _matching(
        self,
        bindings: Mapping[str, list[_Bound]],
        exchange: str,
        routing_key: str,
        headers: dict[str, Any],
    ) -> list[str]:
        """What `exchange` leads to, by these bindings."""
        if not exchange:
            return [routing_key] if bindings is self._bindings else []
        kind = self._exchanges[exchange].type
        return [
            bound.queue
            for bound in bindings.get(exchange, ())
            if matches(kind, bound.routing_key, bound.arguments, routing_key, headers)
        ]

    def _queue(self, name: str) -> BaseQueue | None:
        queue = self._queues.get(name)
        if queue is not None and queue.is_unused:
            self._remove_queue(queue)
            return None
        return queue

    def _find_queue(self, name: str) -> BaseQueue:
        queue = self._queue(name)
        if queue is None:
            raise _no_queue(name)
        return queue

    def _find_exchange(self, name: str) -> Exchange:
        exchange = self._exchanges.get(name)
        if exchange is None:
            raise Refused(404, f"NOT_FOUND - no exchange '{name}' in vhost '/'")
        return exchange

    def _check_access(self, peer: Peer, queue: BaseQueue) -> None:
        if queue.owner is not None and queue.owner is not peer:
            raise Refused(
                405,
                f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue.name}' in vhost '/'. "
                "It could be originally declared on another connection or the exclusive property value does not "
                "match that of the original declaration.",
            )

    def _check_same_queue(self, wanted: Queue, existing: Queue) -> None:
        if wanted.exclusive != existing.exclusive:
            raise Refused(
                405,
                f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{wanted.name}' in vhost '/'. "
                "It could be originally declared on another connection or the exclusive property value does not "
                "match that of the original declaration.",
            )
        for name in ("durable", "auto_delete"):
            self._check_same(
                "queue", wanted.name, name, getattr(wanted, name), getattr(existing, name)
            )
        ours = {"x-queue-type": "classic", **existing.arguments}
        theirs = {"x-queue-type": "classic", **_as_sent(wanted.arguments)}
        for name in _COMPARED_ARGUMENTS:
            self._check_same("queue", wanted.name, name, theirs.get(name), ours.get(name))

    def _check_same(self, kind: str, name: str, what: str, received: Any, current: Any) -> None:
        if received != current:
            raise Refused(
                406,
                f"PRECONDITION_FAILED - inequivalent arg '{what}' for {kind} '{name}' in vhost '/': "
                f"received {_shown(received)} but current is {_shown(current)}",
            )

    def _remove_queue(self, queue: BaseQueue) -> None:
        self._queues.pop(queue.name, None)
        for exchange, bindings in list(self._bindings.items()):
            kept = [bound for bound in bindings if bound.queue != queue.name]
            self._bindings[exchange] = kept
            if bindings and not kept:
                self._exchange_unused(exchange)
        queue.dispose()

    def _exchange_unused(self, name: str) -> None:
        """An auto-delete exchange goes with the last of what was bound to it."""
        exchange = self._exchanges.get(name)
        if (
            exchange is not None
            and exchange.auto_delete
            and not self._bindings.get(name)
            and not self._chains.get(name)
        ):
            self._remove_exchange(name)

    def _remove_exchange(self, name: str) -> None:
        self._exchanges.pop(name, None)
        self._bindings.pop(name, None)
        self._chains.pop(name, None)
        for exchange, chains in list(self._chains.items()):
            kept = [bound for bound in chains if bound.queue != name]
            if len(kept) < len(chains):
                self._chains[exchange] = kept
                self._exchange_unused(exchange)

    def _set_blocked(self, blocked: bool) -> None:
        if self.is_blocked != blocked:
            self.is_blocked = blocked
            for peer in list(self._peers):
                peer.on_blocked()

    def _restore(self) -> None:
        for peer in list(self._attached):
            peer.on_restored()


def broker_at(uri: str, make: Callable[[], MemoryBroker] = MemoryBroker) -> MemoryBroker:
    """The broker that every `memory://name` link of this process shares, made by `make` at first sight of its name.

    Give `make` to put a broker with its own clock under a name: ``broker_at("memory://t1", lambda: MemoryBroker(clock))``.
    """
    if uri not in _BROKERS:
        _BROKERS[uri] = make()
    return _BROKERS[uri]


_COMPARED_ARGUMENTS = (
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-delivery-limit",
    "x-expires",
    "x-max-age",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-message-ttl",
    "x-overflow",
    "x-queue-mode",
    "x-queue-type",
    "x-single-active-consumer",
)
"""What a redeclaration must agree on; RabbitMQ passes over arguments that it does not know."""

_BROKERS: dict[str, MemoryBroker] = {}

_PREDECLARED = {
    name: Exchange(name, type_)
    for name, type_ in {
        "": "direct",
        "amq.direct": "direct",
        "amq.fanout": "fanout",
        "amq.headers": "headers",
        "amq.match": "headers",
        "amq.topic": "topic",
    }.items()
}


def _as_sent(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they come out of the wire: a copy, of types that AMQP has."""
    return decode_table(encode_table(arguments))[0]


def _no_queue(name: str) -> Refused:
    return Refused(404, f"NOT_FOUND - no queue '{name}' in vhost '/'")


def _shown(value: object) -> str:
    return "none" if value is None else f"the value '{value}'"


def _with_death(message: StoredMessage, queue: str, reason: str, now: int) -> dict[str, Any]:
    """The message's headers with one more death in `x-death`, as `rabbit_dead_letter.erl` writes them.

    A death of the same queue and reason is counted up and moved to the front; `time` stays that of the first.
    """
    headers = message.copy_properties().headers or {}
    deaths: list[dict[str, Any]] = list(headers.get("x-death", ()))
    same = [one for one in deaths if one["queue"] == queue and one["reason"] == reason]
    if same:
        deaths.remove(same[0])
        death = {**same[0], "count": same[0]["count"] + 1}
    else:
        death = {
            "count": 1,
            "reason": reason,
            "queue": queue,
            "time": datetime.fromtimestamp(now, UTC),
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
        }
        if message.properties.expiration is not None:
            death["original-expiration"] = message.properties.expiration
    headers["x-death"] = [death, *deaths]
    if "x-first-death-reason" not in headers:
        headers["x-first-death-reason"] = reason
        headers["x-first-death-queue"] = queue
        headers["x-first-death-exchange"] = message.exchange
    return headers


def _is_automatic_cycle(queue: str, deaths: list[dict[str, Any]]) -> bool:
    """Whether the message has been in `queue` before and came round with nobody rejecting it: RabbitMQ drops it."""
    for at, death in enumerate(deaths):
        if death["queue"] == queue:
            return all(one["reason"] != "rejected" for one in deaths[: at + 1])
    return False
