"""Reads one partition of a log: its entries in their order, each once, from wherever one likes.

What a reader has is `buffer_bytes` at most: the broker delivers as many messages ahead as its credit says, an acknowledgement is credit
for one more, and given when an entry that was handed out is done with. How many that are goes by how large they are.

The event loop has its turn after each quarter of a megabyte, and what is large is read beside it.

When the connection is lost, what is buffered stays good, for a stream does not change; the reader goes on behind the last
entry that it has got. It has that one sent once more: if it is another now, the stream has been deleted and made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar
from zlib import crc32

import msgspec

from mycelia.amqp import CLOSE_TIMEOUT, STREAM_OFFSET, ConsumeOptions, Delivery, Link, LinkConsumer
from mycelia.errors import BrokerUnavailable, ConfigError, LinkError, OffsetGone, RuntimeStateError
from mycelia.log_event import event
from mycelia.logs.batch_format import (
    DecodedEntry,
    decode_entry,
    decode_entry_if_small,
    producer_of,
)
from mycelia.logs.layout import LogLayout, stream_name
from mycelia.logs.position import LogPosition, StartAt, checked_start
from mycelia.logs.record import FaultyRecord
from mycelia.logs.record_shape import RecordShape
from mycelia.logs.sequences import SeenSequences
from mycelia.logs.stream_ends import first_offset, last_offset
from mycelia.wire import COMPRESSION_HEADER, OFF_LOOP_BYTES

__all__ = ["LogEntry", "LogReader", "ReadStatistics"]

log = logging.getLogger("mycelia.logs")

T = TypeVar("T")

DEFAULT_BUFFER_BYTES: Final = 8 * 1024 * 1024

_FIRST_CREDIT: Final = 16
"""Messages ahead, until it is known how large they are: 4 MiB of the batches that writers make by default."""
_LEAST_CREDIT: Final = 2
_MOST_CREDIT: Final = 2048
_TOO_MUCH: Final = 1.5
_WORTH_A_RAISE: Final = 4
"""By how much the credit must be wrong before it is changed: for that the stream is left, and entered again."""
_TRY_AGAIN_S: Final = 0.5
_LOOK_AFTER_S: Final = 3.0
"""Of silence after the connection was lost: is the stream still the one that was read?"""
_MADE_ANEW: Final = "it has been deleted and made anew"
_MARK_BYTES: Final = 64


@dataclass(slots=True, kw_only=True)
class LogEntry(DecodedEntry[T]):
    """One message of a partition, as it was read: `records`, or the columns that they are made of.

    `faults` are what could not be read. Whoever handles the entry says what becomes of them. With the offset, a record's index is
    its own place.
    """

    partition: int
    offset: int
    """Its place in the partition."""
    delivery: Delivery
    """The message that it was. Settling it is the reader's."""

    @property
    def size(self) -> int:
        """Bytes, as it came."""
        return len(self.delivery.body)


def mark_of(delivery: Delivery) -> int:
    """What tells an entry from another that has its place: a CRC-32 of its message id, its size, and how its body begins and ends."""
    body = delivery.body
    mark = crc32(f"{delivery.properties.message_id} {len(body)} ".encode(errors="replace"))
    return crc32(body[-_MARK_BYTES:], crc32(body[:_MARK_BYTES], mark))


class ReadStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader has done."""

    entries: int
    records: int
    faults: int
    repeated: int
    """Entries dropped, because they had come before."""
    buffered: int
    buffered_bytes: int


class LogReader(Generic[T]):
    """Reads one partition. `async with reader: async for entry in reader: …`

    Handing out the next entry means that those before are done with. Lives on one event loop; one task at a time reads.

    Args:
        link: an open link, where the log has been declared.
        start: where to begin: see `StartAt`.
        buffer_bytes: what may have come and not been done with.
    """

    def __init__(
        self,
        link: Link,
        layout: LogLayout,
        shape: RecordShape[T],
        partition: int,
        start: StartAt = "first",
        *,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        if not 0 <= partition < layout.partitions:
            raise ConfigError(
                f'log "{layout.name}" has the partitions 0 to {layout.partitions - 1}, and no {partition}.'
            )
        self.partition = partition
        self._link = link
        self._stream = stream_name(layout.name, partition)
        self._shape = shape
        self._start = checked_start(start, f'log "{layout.name}"')
        self._buffer_bytes = buffer_bytes
        self._consumer: LinkConsumer | None = None
        self._buffer: deque[Delivery] = deque()
        self._handed_out: list[Delivery] = []
        self._arrived = asyncio.Event()
        self._received: int | None = None
        """The offset behind the last message that came."""
        self._next: int | None = None
        """The offset behind the last entry that was handed out."""
        self._seen = SeenSequences()
        self._last: int | None = None
        """What the last message that came is known by."""
        self._last_taken: int | None = None
        """The same of the last that was handed out."""
        self._gone: OffsetGone | None = None
        """The stream is another than it was."""
        self._look_at: float | None = None
        """When to look whether the stream is still the one that was read, unless it goes on before."""
        self._is_closed = False
        self._buffered_bytes = 0
        self._average_bytes = 0.0
        self._decoded_bytes = 0
        """On the loop, since others had their turn."""
        self._entries = self._records = self._faults = self._repeated = 0

    @property
    def position(self) -> LogPosition | None:
        """Behind the last entry that was handed out; `None`: nothing was, and where it began is not known."""
        if self._next is None:
            return None
        return LogPosition(offset=self._next, seen=self._seen.to_plain(), last=self._last_taken)

    @property
    def offset(self) -> int | None:
        """The position's offset alone."""
        return self._next

    def statistics(self) -> ReadStatistics:
        return ReadStatistics(
            entries=self._entries,
            records=self._records,
            faults=self._faults,
            repeated=self._repeated,
            buffered=len(self._buffer),
            buffered_bytes=self._buffered_bytes,
        )

    # --- life ------------------------------------------------------------------------------------

    async def open(self, timeout: float | None = 30.0) -> None:
        """Begin to read.

        Raises:
            OffsetGone: the log does not hold the offset to begin from, any more or yet.
            TopologyError, AccessRefused: no such stream; not allowed.
            BrokerUnavailable: not within `timeout` seconds.
        """
        if self._consumer is not None:
            return
        try:
            async with asyncio.timeout(timeout):
                start = await self._resolved_patiently()
        except TimeoutError:
            raise BrokerUnavailable(
                f'stream "{self._stream}": the broker did not say within {timeout} s where it begins and ends.'
            ) from None
        self._consumer = await self._link.consume(
            self._stream,
            self._on_deliveries,
            ConsumeOptions(
                prefetch=_FIRST_CREDIT,
                arguments={STREAM_OFFSET: self._from_the_last(start)},
                on_lost=self._on_lost,
                resume_from=lambda: self._from_the_last(self._received),
            ),
            timeout=timeout,
        )

    def _from_the_last(self, start: Any) -> Any:
        """Where the broker is to begin, so that the entry before is seen as well."""
        return start - 1 if type(start) is int and start else start

    async def _resolved_patiently(self) -> Any:
        while True:
            try:
                return await self._resolved(self._start)
            except BrokerUnavailable as exc:  # while it restarts; `open()` bounds it
                log.info(event("log_reader_waiting", stream=self._stream, reason=exc))
                await asyncio.sleep(_TRY_AGAIN_S)

    async def _resolved(self, start: StartAt) -> Any:
        """Where to begin, as the broker takes it. An offset wherever one is known: from there a reader can go on after an outage
        that comes before the first entry."""
        if isinstance(start, LogPosition):
            self._seen = SeenSequences.from_plain(start.seen)
            self._last = self._last_taken = start.last
            start = start.offset
        if isinstance(start, int):
            await self._check_offset(start)
            self._received = self._next = start
        elif start == "first":
            self._received = await first_offset(self._link, self._stream) or 0
            self._next = self._received
        elif start == "next":
            last = await last_offset(self._link, self._stream)
            self._received = self._next = 0 if last is None else last + 1
        else:
            return start
        return self._received

    async def end(self) -> int:
        """The offset that the next entry of the partition will have, as of now.

        Raises:
            LinkError: the broker does not answer.
        """
        last = await last_offset(self._link, self._stream)
        return 0 if last is None else last + 1

    def committed(self, position: LogPosition) -> None:
        """What was taken has been written down by who reads: of a log nothing follows from it, as the position says where to go on."""

    async def aclose(self) -> None:
        """Read no more. Idempotent; works with the broker down, and where it does not answer."""
        self._is_closed = True
        self._arrived.set()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.aclose(CLOSE_TIMEOUT)
        self._buffer.clear()
        self._handed_out.clear()
        self._buffered_bytes = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- what comes ------------------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            offset = delivery.offset
            received = self._received
            if offset is None or self._gone or (received is not None and offset < received):
                delivery.ack()  # of the chunk in which we began, or come twice over a reconnect
                if received is not None and offset == received - 1:
                    self._compare(mark_of(delivery), received)
                continue
            self._received = offset + 1
            self._look_at = None
            self._buffered_bytes += len(delivery.body)
            self._buffer.append(delivery)
        if self._buffer:
            self._arrived.set()
            self._last = mark_of(self._buffer[-1])

    def _compare(self, mark: int, received: int) -> None:
        """The last entry has come once more."""
        if self._last is None:  # it is before the beginning
            self._last = mark
            if self._next == received:
                self._last_taken = mark
        elif self._last != mark:
            found = f"the log has another entry {received - 1} now"
            self._gone = OffsetGone(self._stream, received, f"{found}: {_MADE_ANEW}")
            self._arrived.set()

    def _on_lost(self) -> None:
        self._look_at = asyncio.get_running_loop().time() + _LOOK_AFTER_S
        self._arrived.set()  # who waits already, waits for that as well

    async def take(self, timeout: float | None = None) -> LogEntry[T] | None:
        """The next entry; what was handed out before is done with. `None`: nothing came within `timeout` seconds.

        Raises:
            OffsetGone: the log does not hold what comes next any more.
            RuntimeStateError: the reader is closed, or not open.
        """
        self._give_credit()
        if (credit := self._wanted_credit()) is not None:
            await self._adapt_credit(credit)
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            while self._buffer:
                entry = await self._next_entry()
                if entry is not None:
                    return entry
            if self._gone is not None:
                raise self._gone
            if self._consumer is None:
                state = "closed" if self._is_closed else "not open: async with reader:"
                raise RuntimeStateError(f'the reader of stream "{self._stream}" is {state}.')
            if not await self._wait(until):
                return None

    async def __aiter__(self) -> AsyncIterator[LogEntry[T]]:
        while (entry := await self.take()) is not None:
            yield entry

    async def _wait(self, until: float | None) -> bool:
        """Wait for something to come; whether there is a point in looking."""
        loop = asyncio.get_running_loop()
        self._arrived.clear()
        if self._buffer or self._is_closed or self._gone:
            return True
        now, look_at = loop.time(), self._look_at
        if look_at is not None and look_at <= now:
            await self._look_again()
            return True
        if until is not None and until <= now:  # what is here already is wanted, and no timer
            await asyncio.sleep(0)
            return bool(self._buffer)
        moments = [moment for moment in (until, look_at) if moment is not None]
        try:
            async with asyncio.timeout_at(min(moments, default=None)):
                await self._arrived.wait()
        except TimeoutError:
            return until is None or (look_at is not None and look_at < until)
        return True

    async def _next_entry(self) -> LogEntry[T] | None:
        """The next of the buffer; `None` if it had come before."""
        if self._is_jump(self._buffer[0]):
            expected, found = self._next, self._buffer[0].offset
            first = await first_offset(self._link, self._stream)
            if not self._buffer:  # closed meanwhile
                return None
            if expected is not None and first is not None and first > expected:
                raise OffsetGone(self._stream, expected, f"the log begins at {first} now")
            # Streams skip offsets where a client of their own protocol has stored one.
            log.debug(
                event("log_offsets_skipped", stream=self._stream, expected=expected, found=found)
            )
        delivery = self._buffer[0]
        if self._decoded_bytes > OFF_LOOP_BYTES:  # for whoever else has something to do
            self._decoded_bytes = 0
            await asyncio.sleep(0)
        decoded = await self._decoded(delivery)
        if not self._buffer:  # closed meanwhile
            return None
        return self._taken(self._popped(), decoded)

    def _is_jump(self, delivery: Delivery) -> bool:
        """Whether entries may have gone between the last one and this."""
        return self._next is not None and delivery.offset != self._next

    def _popped(self) -> Delivery:
        delivery = self._buffer.popleft()
        size = len(delivery.body)
        self._buffered_bytes -= size
        self._average_bytes += (size - self._average_bytes) / 8
        self._handed_out.append(delivery)
        return delivery

    async def _decoded(self, delivery: Delivery) -> DecodedEntry[T]:
        """What the message holds. A large one is read beside the loop; cancelled, nothing has been taken."""
        if delivery.fault is not None:
            reason = f"the message's headers cannot be read: {delivery.fault}"
            return DecodedEntry(faults=[FaultyRecord(None, reason, body=delivery.body)])
        shape = self._shape
        arguments = (
            delivery.properties,
            delivery.body,
            shape.codec,
            shape.key_of if shape.has_key else None,
            shape.time_of if shape.has_time else None,
        )
        decoded = decode_entry_if_small(*arguments)
        if decoded is None:
            return await asyncio.to_thread(lambda: decode_entry(*arguments))
        # What a body becomes counts, and a compressed one becomes more: it is taken for four times as much.
        is_packed = COMPRESSION_HEADER in (delivery.properties.headers or {})
        self._decoded_bytes += len(delivery.body) * (4 if is_packed else 1)
        return decoded

    def _taken(self, delivery: Delivery, decoded: DecodedEntry[T]) -> LogEntry[T] | None:
        """The entry; `None` if it had come before."""
        offset = delivery.offset
        assert offset is not None
        self._next = offset + 1
        self._last_taken = mark_of(delivery)
        told = None if delivery.fault is not None else producer_of(delivery.properties.headers)
        if told is not None and not self._seen.is_new(*told):
            self._repeated += 1
            log.info(
                event(
                    "log_entry_repeated",
                    stream=self._stream,
                    offset=offset,
                    producer=told[0],
                    sequence=told[1],
                )
            )
            return None
        self._entries += 1
        self._records += len(decoded.values)
        self._faults += len(decoded.faults)
        return LogEntry(
            keys=decoded.keys,
            times=decoded.times,
            headers=decoded.headers,
            values=decoded.values,
            indexes=decoded.indexes,
            faults=decoded.faults,
            partition=self.partition,
            offset=offset,
            delivery=delivery,
        )

    # --- credit ----------------------------------------------------------------------------------

    def _give_credit(self) -> None:
        for delivery in self._handed_out:
            delivery.ack()
        self._handed_out.clear()

    def _wanted_credit(self) -> int | None:
        """How many messages may be on their way, if that is to change."""
        if not self._average_bytes or self._consumer is None:
            return None
        has = self._consumer.prefetch
        fitting = int(self._buffer_bytes / self._average_bytes)
        wanted = min(max(fitting, _LEAST_CREDIT), _MOST_CREDIT)
        if wanted * _TOO_MUCH < has or wanted > has * _WORTH_A_RAISE:
            return wanted
        return None

    async def _adapt_credit(self, credit: int) -> None:
        consumer = self._consumer
        if consumer is None or not consumer.is_consuming:
            return
        try:
            await consumer.set_prefetch(credit)
        except LinkError as exc:  # it goes on with the one before
            log.debug(event("log_credit_unchanged", stream=self._stream, reason=exc))

    # --- whether it is still the same stream -----------------------------------------------------

    async def _check_offset(self, offset: int) -> None:
        """
        Raises:
            OffsetGone: the stream does not hold `offset`, and the next one will not have it.
        """
        if not offset:
            first = await first_offset(self._link, self._stream)
            if first:
                raise OffsetGone(self._stream, offset, f"the log begins at {first} now")
            return
        last = await last_offset(self._link, self._stream, offset - 1)
        if last is None or last < offset - 1:
            end = "is empty" if last is None else f"ends at {last}"
            raise OffsetGone(self._stream, offset, f"the log {end}: {_MADE_ANEW}")
        first = await first_offset(self._link, self._stream)
        if first is not None and first > offset:
            raise OffsetGone(self._stream, offset, f"the log begins at {first} now")

    async def _look_again(self) -> None:
        """Nothing has come since the connection was lost: perhaps there is nothing, perhaps the stream is another.

        Raises:
            OffsetGone: it is.
        """
        received = self._received
        if not received:
            self._look_at = None
            return
        if self._consumer is not None and not self._consumer.is_consuming:
            self._on_lost()
            return
        try:
            last = await last_offset(self._link, self._stream, received - 1)
        except LinkError:
            self._on_lost()
            return
        if self._received != received:  # it has gone on meanwhile, and what was found is of before
            return
        self._look_at = None
        if last is None or last < received - 1:
            end = "is empty" if last is None else f"ends at {last}"
            raise OffsetGone(self._stream, received, f"the log {end}: {_MADE_ANEW}")
