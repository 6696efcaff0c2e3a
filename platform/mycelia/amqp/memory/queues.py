"""A queue of the memory broker: classic, quorum or stream, as RabbitMQ 3.10 to 3.13 behaves. Pure but for its clock.

Rules that shape the code:

- Messages are delivered from the head. On a classic queue a requeued message goes back to where it was. On a quorum
  queue a `nack` sends it to the back; with `x-delivery-limit`, and when a channel closes, returned messages are
  delivered before all others, in the order of their return (RabbitMQ 3.10's quorum queue guide, "Repeated Requeues").
- Messages expire at the head only: one with a short TTL behind one without stays (RabbitMQ's TTL guide, "Caveats").
- A dead letter that no queue takes is gone; where a quorum queue says `x-dead-letter-strategy: at-least-once` (with
  `x-overflow: reject-publish`), it is kept and tried again, unlike in RabbitMQ without bound.
- `x-delivery-count` counts returns on quorum queues; past `x-delivery-limit` the message is dead-lettered.
- An exclusive consumer of a quorum queue keeps nobody out (3.10.8; use `x-single-active-consumer`).
- A stream carries no header that is a list or a table (3.10 drops them on the way into the log).
- A stream keeps everything. Each consumer has a cursor of its own, and settling a delivery is credit for another.
  Retention (`x-max-age`, `x-max-length-bytes`) is accepted and not applied: RabbitMQ drops whole segments of
  500 MB, which no in-memory log reaches.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from mycelia.amqp.fields import decode_properties, encode_properties, encode_short_string
from mycelia.amqp.memory.clock import Clock, ClockTimer
from mycelia.amqp.model import Properties, Queue

__all__ = [
    "BaseQueue",
    "Entry",
    "LogModel",
    "QueueHost",
    "QueueModel",
    "QueueSubscriber",
    "Refused",
    "StoredMessage",
    "make_queue",
]


DEAD_AGAIN_S = 1.0
"""Before another try to dead-letter what nobody has taken, where it is done at least once. RabbitMQ waits longer."""


class Refused(Exception):
    """The broker's "no", as an AMQP reply code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StoredMessage:
    """A message as it was published. Shared by all queues that hold it, and never changed.

    The properties are kept as the bytes that would be on the wire: each receiver gets its own copy, and only what AMQP
    can carry gets in.
    """

    __slots__ = ("_wire", "body", "exchange", "properties", "routing_key")

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: bytes,
        message_id: str | None = None,
    ) -> None:
        """Take a snapshot of `properties`, with `message_id` where they have none.

        Raises:
            ProtocolError: a value that AMQP cannot carry.
        """
        encode_short_string(exchange)
        encode_short_string(routing_key)
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = bytes(body)
        self._wire = encode_properties(properties, message_id)
        self.properties = self.copy_properties()
        """For the broker's own reading."""

    @property
    def persistent(self) -> bool:
        return self.properties.delivery_mode == 2

    def copy_properties(self) -> Properties:
        """The properties for one receiver, who may change them."""
        return decode_properties(self._wire, 0, len(self._wire))

    def without_nested_headers(self) -> StoredMessage:
        """This message without the headers that a stream cannot carry."""
        properties = self.copy_properties()
        if properties.headers:
            properties.headers = {
                name: value
                for name, value in properties.headers.items()
                if not isinstance(value, list | dict)
            }
        return StoredMessage(self.exchange, self.routing_key, properties, self.body)


class Entry:
    """A message's place in one queue."""

    __slots__ = (
        "delivery_count",
        "expires_at",
        "goes_first",
        "message",
        "position",
        "priority",
        "redelivered",
    )

    def __init__(
        self,
        message: StoredMessage,
        position: int,
        priority: int = 0,
        expires_at: float | None = None,
    ) -> None:
        self.message = message
        self.position = position
        self.priority = priority
        self.expires_at = expires_at
        self.goes_first = False
        """Returned to a quorum queue: before all that was not."""
        self.redelivered = False
        self.delivery_count = 0

    def __lt__(self, other: Entry) -> bool:
        if self.priority != other.priority:
            return self.priority > other.priority
        if self.goes_first != other.goes_first:
            return self.goes_first
        return self.position < other.position


class QueueSubscriber:
    """One consumer on its own channel. `deliver` and `cancelled` are called by the queue, synchronously.

    `deliver(tag, entry, extra_headers)` hands out one message; `cancelled()` says that the queue is gone.
    """

    def __init__(
        self,
        tag: str,
        deliver: Callable[[int, Entry, Mapping[str, Any]], None],
        cancelled: Callable[[], None],
        *,
        prefetch: int,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        self.tag = tag
        self.deliver = deliver
        self.cancelled = cancelled
        self.prefetch = prefetch
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.arguments = arguments
        self.priority: int = arguments.get("x-priority", 0)
        self.queue: BaseQueue | None = None
        """Where its deliveries are settled; `None` once the channel or the queue is gone."""
        self.unsettled: dict[int, Entry] = {}
        self.cursor = 0
        """The next offset to read (streams)."""
        self._tags = itertools.count(1)
        self._uncounted: set[int] = set()
        """Of `unsettled`: delivered under an earlier prefetch, which the present one does not count."""

    @property
    def has_room(self) -> bool:
        if self.no_ack or not self.prefetch:
            return True
        return len(self.unsettled) - len(self._uncounted & self.unsettled.keys()) < self.prefetch

    @property
    def is_consuming(self) -> bool:
        """Whether the queue still delivers to it: neither cancelled nor closed."""
        return self.queue is not None and self.queue.has_consumer(self)

    @property
    def is_stream(self) -> bool:
        return isinstance(self.queue, LogModel)

    def begin_anew(self, prefetch: int) -> None:
        """Another consumer on the same channel takes over: what it was not given does not count against its prefetch."""
        self.prefetch = prefetch
        self._uncounted = set(self.unsettled)

    @property
    def resume_offset(self) -> int:
        """Where a stream consumer must go on, so that nothing unsettled is passed over."""
        return min((entry.position for entry in self.unsettled.values()), default=self.cursor)

    def take(self, entry: Entry, extra_headers: Mapping[str, Any]) -> None:
        tag = next(self._tags)
        if not self.no_ack:
            self.unsettled[tag] = entry
        self.deliver(tag, entry, extra_headers)


class QueueHost(Protocol):
    """What a queue asks of its broker."""

    @property
    def clock(self) -> Clock: ...

    def dead_letter(self, queue: QueueModel, message: StoredMessage, reason: str) -> bool:
        """Send a dead message on, where its queue says; return whether it is somewhere, or nowhere to go."""
        ...

    def run_alone(self, action: Callable[[], None]) -> None:
        """Run what a timer has called, with nothing else done to the broker meanwhile."""
        ...

    def queue_unused(self, queue: BaseQueue) -> None:
        """The queue has outlived its last consumer (auto-delete) or its `x-expires`."""
        ...


class _Consumers:
    """The consumers of one queue, in the order in which the next message is offered to them."""

    def __init__(self, declared: Queue) -> None:
        self._single_active = bool(declared.arguments.get("x-single-active-consumer"))
        self._waiting: list[QueueSubscriber] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[QueueSubscriber]:
        return iter(list(self._waiting))

    def add(self, subscriber: QueueSubscriber) -> None:
        self._waiting.append(subscriber)

    def discard(self, subscriber: QueueSubscriber) -> bool:
        if subscriber not in self._waiting:
            return False
        self._waiting.remove(subscriber)
        return True

    def next(self) -> QueueSubscriber | None:
        """Whose turn it is among those with room: highest `x-priority` first, then in rotation."""
        candidates = self._waiting[:1] if self._single_active else self._waiting
        free = [subscriber for subscriber in candidates if subscriber.has_room]
        if not free:
            return None
        chosen = max(free, key=lambda subscriber: subscriber.priority)
        if not self._single_active:
            self._waiting.remove(chosen)
            self._waiting.append(chosen)
        return chosen


class BaseQueue(ABC):
    """What all queue types share: consumers, exclusivity, and the life time of an unused queue."""

    honours_exclusive = True
    """Whether an exclusive consumer keeps others out."""

    def __init__(self, host: QueueHost, declared: Queue, owner: object | None) -> None:
        self.declared = declared
        self.name = declared.name
        self.owner = owner
        self._host = host
        self._consumers = _Consumers(declared)
        self._channels: set[QueueSubscriber] = set()
        """Open channels that may hold unsettled messages of this queue, consuming or cancelled."""
        self._unused_timer: ClockTimer | None = None
        self.touch()

    @property
    def consumer_count(self) -> int:
        return len(self._consumers)

    def has_consumer(self, subscriber: QueueSubscriber) -> bool:
        return any(one is subscriber for one in self._consumers)

    def touch(self) -> None:
        """The queue is in use now: its `x-expires` starts anew."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None
        expires_ms = self.declared.arguments.get("x-expires")
        if expires_ms is not None and not len(self._consumers):
            clock = self._host.clock
            self._unused_timer = clock.call_at(
                clock.monotonic() + expires_ms / 1000, lambda: self._host.queue_unused(self)
            )

    @property
    def is_unused(self) -> bool:
        """Whether `x-expires` has run out, also where the timer died with its event loop."""
        timer = self._unused_timer
        return timer is not None and timer.when <= self._host.clock.monotonic()

    def subscribe(self, subscriber: QueueSubscriber) -> None:
        exclusive = subscriber.exclusive and len(self._consumers)
        if self.honours_exclusive and (exclusive or any(one.exclusive for one in self._consumers)):
            raise Refused(
                403, f"ACCESS_REFUSED - queue '{self.name}' in vhost '/' in exclusive use"
            )
        subscriber.queue = self
        self._channels.add(subscriber)
        self._consumers.add(subscriber)
        self.touch()

    def cancel(self, subscriber: QueueSubscriber) -> None:
        """`basic.cancel`: no more deliveries; what is unsettled stays with the channel."""
        if not self._consumers.discard(subscriber):
            return
        self.touch()
        if self.declared.auto_delete and not len(self._consumers):
            self._host.queue_unused(self)
        else:
            self.drain()

    def cancel_consumers(self) -> None:
        """The broker cancels all consumers, as it does when a queue's leader moves or the queue is deleted."""
        for subscriber in self._consumers:
            self._consumers.discard(subscriber)
            subscriber.cancelled()
        self.touch()

    def dispose(self) -> None:
        """The queue is deleted: stop its timers and cancel its consumers."""
        self.cancel_consumers()
        for subscriber in self._channels:
            subscriber.unsettled.clear()
            subscriber.queue = None
        self._channels.clear()
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None

    def detach_all(self) -> None:
        """The broker stops: every channel is gone before anyone could be given a returned message."""
        for subscriber in self._consumers:
            self._consumers.discard(subscriber)
        for subscriber in list(self._channels):
            self.close(subscriber)

    @property
    @abstractmethod
    def message_count(self) -> int:
        """Messages ready for delivery."""

    @abstractmethod
    def get(self, subscriber: QueueSubscriber) -> bool:
        """Hand one message to `subscriber`, which does not consume; return whether there was one.

        Raises:
            Refused: this kind of queue has no single messages to give.
        """

    @abstractmethod
    def publish(self, message: StoredMessage) -> bool:
        """Take a message; `False` where the queue refuses it."""

    @abstractmethod
    def settle(
        self, subscriber: QueueSubscriber, tag: int, *, accepted: bool, requeue: bool
    ) -> None: ...

    @abstractmethod
    def close(self, subscriber: QueueSubscriber) -> None:
        """The subscriber's channel is gone, and with it what it had not settled."""

    @abstractmethod
    def drain(self) -> None:
        """Deliver what can be delivered."""

    @abstractmethod
    def restart(self) -> None:
        """Keep only what survives a restart of the broker."""


class QueueModel(BaseQueue):
    """A classic or a quorum queue."""

    def __init__(self, host: QueueHost, declared: Queue, owner: object | None) -> None:
        arguments = declared.arguments
        self.is_quorum = arguments.get("x-queue-type") == "quorum"
        self.honours_exclusive = not self.is_quorum
        self._ttl_ms: int | None = arguments.get("x-message-ttl")
        self._max_length: int | None = arguments.get("x-max-length")
        self._max_length_bytes: int | None = arguments.get("x-max-length-bytes")
        self._overflow: str = arguments.get("x-overflow", "drop-head")
        self._keeps_dead = (
            self.is_quorum
            and self._overflow == "reject-publish"
            and arguments.get("x-dead-letter-strategy") == "at-least-once"
        )
        self._max_priority: int = arguments.get("x-max-priority", 0)
        self._delivery_limit: int | None = arguments.get("x-delivery-limit")
        self._ready: list[Entry] = []
        self._ready_bytes = 0
        self._positions = itertools.count()
        self._head_timer: ClockTimer | None = None
        self._dead: list[tuple[StoredMessage, str]] = []
        """Dead-lettered at least once, and nobody has taken them yet."""
        self._dead_timer: ClockTimer | None = None
        super().__init__(host, declared, owner)

    @property
    def message_count(self) -> int:
        self._expire_head()
        return len(self._ready)

    def get(self, subscriber: QueueSubscriber) -> bool:
        self._expire_head()
        if not self._ready:
            return False
        subscriber.queue = self
        self._channels.add(subscriber)
        self._hand_over(self._pop(), subscriber)
        return True

    def publish(self, message: StoredMessage) -> bool:
        """Take a message. `False` where the queue is full and its overflow says reject."""
        self._expire_head()
        if self._overflow != "drop-head" and self._is_full(len(message.body)):
            if self._overflow == "reject-publish-dlx":
                self._bury(message, "maxlen")
            return False
        entry = Entry(
            message,
            next(self._positions),
            min(message.properties.priority or 0, self._max_priority),
            self._expiry(message.properties.expiration),
        )
        self._push(entry)
        self._deliver(fresh=entry)
        while self._is_over_limit():
            self._bury(self._pop().message, "maxlen")
        self._expire_head()
        return True

    def drain(self) -> None:
        """Deliver what can be delivered, and drop what has expired at the head."""
        self._expire_head()
        self._deliver()
        self._expire_head()

    def subscribe(self, subscriber: QueueSubscriber) -> None:
        super().subscribe(subscriber)
        self.drain()

    def settle(
        self, subscriber: QueueSubscriber, tag: int, *, accepted: bool, requeue: bool
    ) -> None:
        entry = subscriber.unsettled.pop(tag, None)
        if entry is None:
            return
        if not accepted:
            if requeue:
                self._return(entry, to_back=self._delivery_limit is None)
            else:
                self._bury(entry.message, "rejected")
        self.drain()

    def close(self, subscriber: QueueSubscriber) -> None:
        """The channel is gone: everything unsettled is back in the queue before anyone gets more."""
        returned = list(subscriber.unsettled.values())
        subscriber.unsettled.clear()
        subscriber.queue = None
        self._channels.discard(subscriber)
        for entry in returned:
            self._return(entry, to_back=False)
        self.cancel(subscriber)
        self.drain()

    def restart(self) -> None:
        """What a restart of the broker leaves: persistent messages, and all of a quorum queue's."""
        if not self.is_quorum:
            self._ready = [entry for entry in self._ready if entry.message.persistent]
            heapq.heapify(self._ready)
            self._ready_bytes = sum(len(entry.message.body) for entry in self._ready)

    def dispose(self) -> None:
        self._ready.clear()
        self._ready_bytes = 0
        self._arm_head_timer()
        self._dead.clear()
        if self._dead_timer is not None:
            self._dead_timer.cancel()
            self._dead_timer = None
        super().dispose()

    def _bury(self, message: StoredMessage, reason: str) -> None:
        """The message is dead: on it goes, or (dead-lettered at least once) it stays until it can."""
        if not self._host.dead_letter(self, message, reason) and self._keeps_dead:
            self._dead.append((message, reason))
            if self._dead_timer is None or not self._dead_timer.alive:
                self._bury_later()

    def _bury_later(self) -> None:
        clock = self._host.clock
        again = partial(self._host.run_alone, self._bury_again)
        self._dead_timer = clock.call_at(clock.monotonic() + DEAD_AGAIN_S, again)

    def _bury_again(self) -> None:
        self._dead_timer = None
        self._dead = [
            (message, reason)
            for message, reason in self._dead
            if not self._host.dead_letter(self, message, reason)
        ]
        if self._dead:
            self._bury_later()

    def _deliver(self, fresh: Entry | None = None) -> None:
        # `fresh` is exempt from expiry once: a message with TTL 0 is delivered if a consumer is ready for it.
        now = self._host.clock.monotonic()
        while self._ready:
            head = self._ready[0]
            if head is not fresh and head.expires_at is not None and head.expires_at <= now:
                self._bury(self._pop().message, "expired")
                continue
            subscriber = self._consumers.next()
            if subscriber is None:
                return
            self._hand_over(self._pop(), subscriber)

    def _hand_over(self, entry: Entry, subscriber: QueueSubscriber) -> None:
        counts = self.is_quorum and entry.delivery_count
        subscriber.take(entry, {"x-delivery-count": entry.delivery_count} if counts else {})

    def _return(self, entry: Entry, *, to_back: bool) -> None:
        entry.redelivered = True
        if self.is_quorum:
            entry.delivery_count += 1
            if self._delivery_limit is not None and entry.delivery_count > self._delivery_limit:
                self._bury(entry.message, "delivery_limit")
                return
            entry.goes_first = not to_back
            entry.position = next(self._positions)
        self._push(entry)

    def _push(self, entry: Entry) -> None:
        heapq.heappush(self._ready, entry)
        self._ready_bytes += len(entry.message.body)

    def _pop(self) -> Entry:
        entry = heapq.heappop(self._ready)
        self._ready_bytes -= len(entry.message.body)
        return entry

    def _is_full(self, extra_bytes: int) -> bool:
        return (self._max_length is not None and len(self._ready) + 1 > self._max_length) or (
            self._max_length_bytes is not None
            and self._ready_bytes + extra_bytes > self._max_length_bytes
        )

    def _is_over_limit(self) -> bool:
        return (self._max_length is not None and len(self._ready) > self._max_length) or (
            self._max_length_bytes is not None and self._ready_bytes > self._max_length_bytes
        )

    def _expiry(self, expiration: str | None) -> float | None:
        limits = [self._ttl_ms, None if expiration is None else int(expiration)]
        ttl_ms = min((limit for limit in limits if limit is not None), default=None)
        return None if ttl_ms is None else self._host.clock.monotonic() + ttl_ms / 1000

    def _expire_head(self) -> None:
        now = self._host.clock.monotonic()
        while self._ready and (due := self._ready[0].expires_at) is not None and due <= now:
            self._bury(self._pop().message, "expired")
        self._arm_head_timer()

    def _arm_head_timer(self) -> None:
        due = self._ready[0].expires_at if self._ready else None
        timer = self._head_timer
        if timer is not None and timer.alive and timer.when == due:
            return
        if timer is not None:
            timer.cancel()
        expire = partial(self._host.run_alone, self._expire_head)
        self._head_timer = None if due is None else self._host.clock.call_at(due, expire)


class LogModel(BaseQueue):
    """A stream: an append-only log that each consumer reads with a cursor of its own."""

    def __init__(self, host: QueueHost, declared: Queue, owner: object | None) -> None:
        self._log: list[Entry] = []
        self._written_at: list[float] = []
        super().__init__(host, declared, owner)

    @property
    def message_count(self) -> int:
        return len(self._log)

    def get(self, subscriber: QueueSubscriber) -> bool:
        raise Refused(
            540, f"NOT_IMPLEMENTED - basic.get not supported by stream queues '{self.name}'"
        )

    def publish(self, message: StoredMessage) -> bool:
        self._log.append(Entry(message.without_nested_headers(), len(self._log)))
        self._written_at.append(self._host.clock.wall())
        self.drain()
        return True

    def subscribe(self, subscriber: QueueSubscriber) -> None:
        if subscriber.no_ack or not subscriber.prefetch:
            raise Refused(
                540,
                f"NOT_IMPLEMENTED - consuming the stream '{self.name}' needs acks and a prefetch above 0",
            )
        subscriber.cursor = self._first_offset(subscriber.arguments.get("x-stream-offset", "next"))
        super().subscribe(subscriber)
        self.drain()

    def drain(self) -> None:
        for subscriber in self._consumers:
            while subscriber.has_room and subscriber.cursor < len(self._log):
                entry = self._log[subscriber.cursor]
                subscriber.cursor += 1
                subscriber.take(entry, {"x-stream-offset": entry.position})

    def settle(
        self, subscriber: QueueSubscriber, tag: int, *, accepted: bool, requeue: bool
    ) -> None:
        """Ack and nack are the same to a stream: credit for one more."""
        if subscriber.unsettled.pop(tag, None) is not None:
            self.drain()

    def close(self, subscriber: QueueSubscriber) -> None:
        subscriber.cursor = subscriber.resume_offset
        subscriber.unsettled.clear()
        subscriber.queue = None
        self._channels.discard(subscriber)
        self.cancel(subscriber)

    def restart(self) -> None:
        """A stream is on disk: nothing is lost."""

    def _first_offset(self, wanted: object) -> int:
        if isinstance(wanted, bool):
            raise self._bad_offset(wanted)
        if isinstance(wanted, int):
            return wanted
        if isinstance(wanted, datetime):
            # Naive means UTC, as AMQP's timestamps are.
            aware = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
            since = int(aware.timestamp())
            return next(
                (at for at, written in enumerate(self._written_at) if written >= since),
                len(self._log),
            )
        named = {"first": 0, "last": max(0, len(self._log) - 1), "next": len(self._log)}
        if not isinstance(wanted, str) or wanted not in named:
            raise self._bad_offset(wanted)
        return named[wanted]

    def _bad_offset(self, wanted: object) -> Refused:
        return Refused(
            406,
            f"PRECONDITION_FAILED - x-stream-offset {wanted!r} for the stream '{self.name}' is none of "
            "first, last, next, an offset or a timestamp",
        )


def make_queue(host: QueueHost, declared: Queue, owner: object | None) -> BaseQueue:
    """Make the queue that `x-queue-type` names.

    Raises:
        Refused: the type does not allow these properties or arguments.
    """
    kind = declared.arguments.get("x-queue-type", "classic")
    if kind not in ("classic", "quorum", "stream"):
        raise Refused(
            406,
            f"PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue '{declared.name}' in vhost '/': "
            f"unsupported queue type '{kind}'",
        )
    if kind != "classic":
        wrong = (
            "non-durable"
            if not declared.durable
            else "exclusive-owner"
            if declared.exclusive
            else "auto-delete"
            if declared.auto_delete
            else None
        )
        if wrong:
            raise Refused(
                406,
                f"PRECONDITION_FAILED - invalid property '{wrong}' for queue '{declared.name}' in vhost '/'",
            )
    for argument in _UNSUPPORTED[kind]:
        if argument in declared.arguments:
            raise Refused(
                406,
                f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{declared.name}' in vhost '/' "
                f"of queue type {kind}",
            )
    if (
        "x-dead-letter-routing-key" in declared.arguments
        and "x-dead-letter-exchange" not in declared.arguments
    ):
        raise Refused(
            406,
            "PRECONDITION_FAILED - invalid arg 'x-dead-letter-routing-key' for queue "
            f"'{declared.name}' in vhost '/': routing_key_but_no_dlx_defined",
        )
    if kind == "stream":
        return LogModel(host, declared, owner)
    return QueueModel(host, declared, owner)


_UNSUPPORTED: dict[str, tuple[str, ...]] = {
    "classic": ("x-delivery-limit", "x-max-age"),
    "quorum": ("x-max-age", "x-max-priority", "x-queue-mode"),
    "stream": (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-delivery-limit",
        "x-expires",
        "x-max-length",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-mode",
        "x-single-active-consumer",
    ),
}
"""Arguments that RabbitMQ 3.10 refuses, by queue type."""
