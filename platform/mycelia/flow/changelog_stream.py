"""A changelog at the broker: a stream for each partition of a stage, written and read by its owner. Lives on the event loop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import msgspec

from mycelia.amqp import (
    CLOSE_TIMEOUT,
    STREAM_OFFSET,
    ConsumeOptions,
    Delivery,
    Link,
    LinkConsumer,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import BrokerUnavailable
from mycelia.flow.changelog_format import ChangeHead, heads_of, read_head
from mycelia.flow.partition_state import StatePlace
from mycelia.logs.layout import SEGMENT_BYTES, queue_exists
from mycelia.logs.partition_lease import group_queue_name

__all__ = ["ChangelogEnd", "ChangelogReader", "ChangelogStream", "LoggedEntry"]

PATIENCE: Final = 30.0
"""Seconds without an answer of the broker."""

_LAST_S: Final = 2.0
"""For the last messages of a stream that has some."""

_CREDIT: Final = 32
"""Messages ahead, of a megabyte at most."""


class LoggedEntry(NamedTuple):
    """A message of the stream, as far as it is one of ours."""

    offset: int
    head: ChangeHead | None
    """`None`: somebody else has written it."""
    body: bytes


class ChangelogEnd(NamedTuple):
    """Where the log ended when it was looked."""

    offset: int
    """Of the mark that was set there."""
    last: list[LoggedEntry]
    """Some of what lies before it."""


class ChangelogReader:
    """Reads on and on, from some entry.

    Args:
        start: an offset, `"first"` or `"last"`.
        credit: messages that are on their way at most.
    """

    def __init__(self, link: Link, stream: str, start: int | str, credit: int = _CREDIT) -> None:
        self._link = link
        self._stream = stream
        self._start = start
        self._credit = credit
        self._consumer: LinkConsumer | None = None
        self._arrived = asyncio.Event()
        self._waiting: list[Delivery] = []
        self._next = start if isinstance(start, int) else None

    async def open(self) -> None:
        self._consumer = await self._link.consume(
            self._stream,
            self._on_deliveries,
            ConsumeOptions(
                prefetch=self._credit,
                arguments={STREAM_OFFSET: self._start},
                resume_from=lambda: self._next,
            ),
            timeout=PATIENCE,
        )

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            offset = delivery.offset
            if offset is None or (self._next is not None and offset < self._next):
                delivery.ack()  # of the chunk in which we began, or come twice over a reconnect
                continue
            self._next = offset + 1
            self._waiting.append(delivery)
        if self._waiting:
            self._arrived.set()

    async def take(self, timeout: float | None = None) -> list[LoggedEntry]:
        """What has come since the last time; at least one.

        Raises:
            BrokerUnavailable: nothing came for long.
        """
        timeout = PATIENCE if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            raise BrokerUnavailable(
                f'stream "{self._stream}": the broker sent nothing of it for {timeout:.0f} s.'
            ) from None
        self._arrived.clear()
        taken, self._waiting = self._waiting, []
        entries = []
        for delivery in taken:
            delivery.ack()
            head = None if delivery.fault is not None else read_head(delivery.properties.headers)
            entries.append(LoggedEntry(delivery.offset or 0, head, delivery.body))
        return entries

    async def aclose(self) -> None:
        """Idempotent; works with the broker down."""
        consumer, self._consumer = self._consumer, None
        self._waiting.clear()
        if consumer is not None:
            await consumer.aclose(CLOSE_TIMEOUT)


class ChangelogStream:
    """One partition's log.

    Args:
        retain_bytes: what it keeps at most; the oldest goes, in whole files.
    """

    def __init__(self, link: Link, place: StatePlace, retain_bytes: int) -> None:
        self.link = link
        self.name = changelog_name(place)
        self._queue = Queue(
            self.name,
            arguments={
                "x-queue-type": "stream",
                "x-max-length-bytes": retain_bytes,
                "x-stream-max-segment-size-bytes": min(SEGMENT_BYTES, max(retain_bytes // 8, 1)),
            },
        )

    async def declare(self) -> None:
        """Make it, if it is not there.

        Raises:
            TopologyError, BrokerUnavailable: see `Link.declare()`.
        """
        await self.link.declare(self._queue, timeout=PATIENCE)

    async def exists(self) -> bool:
        return await queue_exists(self.link, self.name, PATIENCE)

    def forget(self) -> None:
        """It is not looked after any more: who owns the partition next does it."""
        self.link.forget(self._queue)

    async def append(self, head: ChangeHead, body: bytes = b"") -> int:
        """Write an entry, piece after piece: each has been confirmed before the next, so that a repetition lies beside what it repeats. Returns
        how many bytes that were.

        Raises:
            LinkError: not all of it was confirmed; all of it may be there all the same, now or later.
        """
        for one, part in heads_of(head, body):
            properties = Properties(
                headers={**msgspec.structs.asdict(one)},
                delivery_mode=2,
                content_type="application/x-msgpack",
            )
            await self.link.publish(
                Message("", self.name, part, properties, mandatory=True), timeout=PATIENCE
            )
        return len(body)

    @asynccontextmanager
    async def reading(
        self, start: int | str, credit: int = _CREDIT
    ) -> AsyncIterator[ChangelogReader]:
        reader = ChangelogReader(self.link, self.name, start, credit)
        try:
            await reader.open()
            yield reader
        finally:
            await reader.aclose()

    async def look(self) -> ChangelogEnd:
        """Find the end, by setting a mark there.

        Raises:
            LinkError: the broker does not answer.
        """
        last: list[LoggedEntry] = []
        async with self.reading("last") as reader:
            if await self.link.message_count(self.name):
                with suppress(BrokerUnavailable):  # the count may be of before
                    last += await reader.take(_LAST_S)
            while True:
                # The next one may find nothing but this: it says where to begin as well.
                begin, snapshot = newest_snapshot(last) or (0, "")
                looker = uuid.uuid4().hex
                look = ChangeHead(kind="look", claim=looker, begin=begin, snapshot=snapshot)
                await self.append(look)
                end = await _read_to(reader, looker, last)
                if newest_snapshot(last) in (None, (begin, snapshot)):
                    return ChangelogEnd(end, last)

    async def first(self) -> int:
        """The offset of the first entry that it still holds. One has been written."""
        async with self.reading("first", credit=1) as reader:
            return (await reader.take())[0].offset


async def _read_to(reader: ChangelogReader, looker: str, last: list[LoggedEntry]) -> int:
    """The offset of a mark; what lies before it goes to `last`."""
    end: int | None = None
    while end is None:
        for entry in await reader.take():
            if entry.head is not None and entry.head.claim == looker:
                end = entry.offset
            elif end is None:
                last.append(entry)
    return end


def changelog_name(place: StatePlace) -> str:
    """The stream's."""
    return f"{group_queue_name(place.source, place.group)}.changelog-{place.partition}"


def newest_snapshot(entries: Iterable[LoggedEntry]) -> tuple[int, str] | None:
    """Where to begin, as far as these entries say it: an offset, and the snapshot that begins behind it.

    What a former owner says counts too: it has seen that the snapshot is whole, and of which commit it is. Not so what `anew` says, which counts
    only if it is followed itself.
    """
    told = (
        (entry.head.begin, entry.head.snapshot)
        for entry in entries
        if entry.head is not None
        and entry.head.kind in ("claim", "commit", "look")
        and entry.head.snapshot
        and entry.head.begin <= entry.offset  # else it is of a stream that was there before
    )
    return max(told, default=None)
