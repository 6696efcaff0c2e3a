"""Queues of events and messages as a source: acknowledged after the commit, and what comes again is known by its `message_id`.

The ids of the last messages are part of the position, as 8 bytes each, and so of the checkpoint. A broker delivers again what was not acknowledged, which is at
most what it had handed out at once, and a publisher what it had no confirm of: both lie within the window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final, TypeVar

from mycelia.amqp import Binding, ConsumeOptions, Delivery, Exchange, Link, LinkConsumer, Queue
from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.flow.sources.single import SingleSource
from mycelia.logs import FaultyRecord, LogEntry, LogPosition
from mycelia.logs.batch_format import decode_entry
from mycelia.logs.position import StartAt
from mycelia.logs.record_shape import Extractor, RecordShape
from mycelia.wire import event_exchange_name

__all__ = ["QueueReader", "QueueSource", "SeenIds", "events", "queue"]

T = TypeVar("T")

PREFETCH: Final = 2000
"""Messages that are handed out and not acknowledged at most. A commit comes after them at the latest."""

_IDS: Final = "ids"
_SIZE: Final = 8


class SeenIds:
    """Which of the last messages have come. Pure.

    Args:
        window: how many are remembered.
    """

    def __init__(self, window: int, kept: bytes = b"") -> None:
        self._window = window
        self._order: deque[bytes] = deque(
            (kept[at : at + _SIZE] for at in range(0, len(kept), _SIZE)), maxlen=window
        )
        self._all = set(self._order)

    def is_new(self, message_id: str) -> bool:
        """Whether it comes for the first time; it is remembered from now on."""
        mark = blake2b(message_id.encode("utf-8", "surrogateescape"), digest_size=_SIZE).digest()
        if mark in self._all:
            return False
        if len(self._order) == self._window:
            self._all.discard(self._order[0])
        self._order.append(mark)
        self._all.add(mark)
        return True

    def to_bytes(self) -> bytes:
        return b"".join(self._order)


class QueueSource(SingleSource[T]):
    """Made by `events()` and `queue()`: a source of one partition for `@flow(…)`."""

    def __init__(
        self,
        name: str,
        shape: RecordShape[T],
        window: int,
        declared: Queue | None,
        exchange: Exchange | None = None,
        routing_key: str = "",
    ) -> None:
        if type(window) is not int or window < PREFETCH:
            raise ConfigError(
                f"{shape.what}: window={window!r:.60}; expected a number from {PREFETCH}, which may be on their way."
            )
        super().__init__(name, shape)
        self.window = window
        """How many ids are remembered."""
        self._queue = declared
        self._exchange = exchange
        self._routing_key = routing_key

    @property
    def is_of_events(self) -> bool:
        """Of a service's events of a type, `<service>.<type>`; not of a queue."""
        return self._exchange is not None

    def for_flow(self, group: str) -> QueueSource[T]:
        """As one flow reads it: with a queue of its own, where it was given none."""
        if self._queue is not None:
            return self
        own = Queue(f"flow-{self.name}--{group}", arguments={"x-queue-type": "quorum"})
        return QueueSource(
            self.name, self.shape, self.window, own, self._exchange, self._routing_key
        )

    async def declare(self, link: Link, timeout: float | None = None) -> None:
        assert self._queue is not None
        declared: list[Exchange | Queue | Binding] = [self._queue]
        if self._exchange is not None:
            binding = Binding(self._queue.name, self._exchange.name, self._routing_key)
            declared = [self._exchange, self._queue, binding]
        await link.declare(*declared, timeout=timeout)

    def reader(self, link: Link, partition: int, start: StartAt = "first") -> QueueReader:
        assert self._queue is not None
        return QueueReader(link, self._queue.name, self.name, self.shape, self.window, start)


class QueueReader:
    """Reads a queue; see `SourceReader`. One entry a message."""

    def __init__(
        self,
        link: Link,
        queue_name: str,
        name: str,
        shape: RecordShape[Any],
        window: int,
        start: StartAt,
    ) -> None:
        self._link = link
        self._queue_name = queue_name
        self._name = name
        self._shape = shape
        kept = b""
        self._count = 0
        if isinstance(start, LogPosition):
            self._count = start.offset
            kept = (start.seen.get(_IDS) or [b""])[0]
        self._seen = SeenIds(window, kept)
        self._buffer: deque[Delivery] = deque()
        self._committed = self._count
        """The offset before which all is committed."""
        self._taken: deque[tuple[int, Delivery]] = deque()
        """Those whose commit is yet to come, with the offset up to which it must have come."""
        self._arrived = asyncio.Event()
        self._consumer: LinkConsumer | None = None
        self._is_closed = False
        self.repeated = 0
        """Messages that had come before."""

    @property
    def position(self) -> LogPosition | None:
        if not self._count:
            return None
        return LogPosition(offset=self._count, seen={_IDS: [self._seen.to_bytes()]})

    async def open(self) -> None:
        if self._consumer is None:
            options = ConsumeOptions(prefetch=PREFETCH, on_lost=self._buffer.clear)
            self._consumer = await self._link.consume(
                self._queue_name, self._on_deliveries, options, timeout=30.0
            )

    def _on_deliveries(self, deliveries: Iterable[Delivery]) -> None:
        self._buffer.extend(deliveries)
        self._arrived.set()

    async def take(self, timeout: float | None = None) -> LogEntry[Any] | None:
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            while self._buffer:
                entry = self._entry(self._buffer.popleft())
                if entry is not None:
                    return entry
            if self._is_closed or self._consumer is None:
                raise RuntimeStateError(f'the reader of queue "{self._queue_name}" is not open.')
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
            except TimeoutError:
                return None

    def _entry(self, delivery: Delivery) -> LogEntry[Any] | None:
        """The message as an entry; `None` if it had come before."""
        properties = delivery.properties
        message_id = properties.message_id
        if message_id is not None and not self._seen.is_new(str(message_id)):
            self.repeated += 1
            if self._count > self._committed:  # it may be one of those
                self._taken.append((self._count, delivery))
            else:
                delivery.ack()
            return None
        offset = self._count
        self._count += 1
        self._taken.append((self._count, delivery))
        if delivery.fault is not None:
            reason = f"the message's headers cannot be read: {delivery.fault}"
            faults = [FaultyRecord(None, reason, body=delivery.body)]
            return LogEntry(faults=faults, partition=0, offset=offset, delivery=delivery)
        shape = self._shape
        decoded = decode_entry(
            properties,
            delivery.body,
            shape.codec,
            shape.key_of if shape.has_key else None,
            shape.time_of if shape.has_time else None,
        )
        times = decoded.times
        stamp = properties.timestamp
        if isinstance(stamp, int) and None in times:
            times = [stamp * 1000 if one is None else one for one in times]
        return LogEntry(
            keys=decoded.keys,
            times=times,
            headers=decoded.headers,
            values=decoded.values,
            indexes=decoded.indexes,
            faults=decoded.faults,
            partition=0,
            offset=offset,
            delivery=delivery,
        )

    async def end(self) -> None:
        """It cannot be said."""

    def committed(self, position: LogPosition) -> None:
        self._committed = position.offset
        while self._taken and self._taken[0][0] <= position.offset:
            _, delivery = self._taken.popleft()
            delivery.ack()

    async def aclose(self) -> None:
        """What was not committed goes back to the queue."""
        self._is_closed = True
        self._arrived.set()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.aclose()
        self._buffer.clear()
        self._taken.clear()


def events(
    service: str,
    event_type: str,
    *,
    of: type[T] | None = None,
    key: Extractor | None = None,
    time: Extractor | None = None,
    window: int = 10_000,
) -> QueueSource[T]:
    """A service's events of a type, as a source: `@flow(events("tower", "departed", of=Departed))`.

    They wait in a queue of the flow's own, `flow-<service>.<type>--<group>`, from the flow's first start on. Acknowledged after the commit; one that comes again, with the same
    `message_id`, is counted once. One instance reads it at a time.

    Args:
        of: the type of an event; a message that is no such one is a dead letter.
        key: where its key is: a field's name or a function.
        time: where its event time is; by default when it was published, to the second, where it says so.
        window: how many message ids are remembered, in the checkpoint.
    """
    name = f"{service}.{event_type}"
    exchange = Exchange(event_exchange_name(service))
    shape: RecordShape[T] = RecordShape(f"events {name}", of, key, time)
    return QueueSource(name, shape, window, None, exchange, event_type)


def queue(
    declared: Queue | str,
    *,
    of: type[T] | None = None,
    key: Extractor | None = None,
    time: Extractor | None = None,
    window: int = 10_000,
) -> QueueSource[T]:
    """A queue as a source: `@flow(queue("orders", of=Order))`. As `events()`.

    Args:
        declared: the queue, or the name of a quorum queue. Nobody else should consume from it.
    """
    of_name = (
        Queue(declared, arguments={"x-queue-type": "quorum"})
        if isinstance(declared, str)
        else declared
    )
    if not of_name.name:
        raise ConfigError(f"queue({declared!r:.60}): expected a Queue, or a name.")
    shape: RecordShape[T] = RecordShape(f"queue {of_name.name}", of, key, time)
    return QueueSource(of_name.name, shape, window, of_name)
