"""What one partition of a stage reads: a reader for each of its sources, taken from in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from mycelia.amqp import Link
from mycelia.logs import LogEntry, LogPosition
from mycelia.logs.position import StartAt

__all__ = ["FlowSource", "Inflow", "SourceReader", "Taken"]

BATCH_RECORDS: Final = 2000
MOST_RECORDS: Final = 25_000
"""Records that the engine is given at once, at least and at most where there are as many: a batch costs the same for each key and step however many
records it has. It runs in a thread, so this bounds how soon a stop is seen, not how long the loop waits."""

BATCH_TAKES: Final = 0.1
"""Seconds of the engine that a larger batch may take."""

BATCH_BYTES: Final = 8 * 2**20
"""Bytes of a batch, as they came, from which on nothing more is put to it."""

Taken = dict[str, list[LogEntry[Any]]]
"""Entries by source, in their order."""


class SourceReader(Protocol):
    """Reads one partition of a source, as `LogReader` does."""

    @property
    def position(self) -> LogPosition | None:
        """Behind the last entry that was taken; None where nothing was, and where it began is not known."""

    async def open(self) -> None: ...

    async def end(self) -> int | None:
        """The offset at which the next entry will be written, as of now; None where a source cannot say.

        Raises:
            LinkError: the broker does not answer.
        """

    async def take(self, timeout: float | None = None) -> LogEntry[Any] | None:
        """The next entry; None if none came in time. Cancelled, it has taken nothing."""

    def committed(self, position: LogPosition) -> None:
        """All before this position has been committed: it need not come again. Does not wait."""

    async def aclose(self) -> None: ...


class FlowSource(Protocol):
    """What a flow reads, in partitions: a `Log`, or another of `mycelia.flow.sources`.

    Attributes:
        name: what the flow's state and leases know it by.
    """

    name: str

    @property
    def partitions(self) -> int: ...

    @property
    def split_by(self) -> Any:
        """What its records are split by: a field's name, a function; None where it cannot be said."""

    async def declare(self, link: Link, timeout: float | None = None) -> None: ...

    def reader(self, link: Link, partition: int, start: StartAt = "first") -> SourceReader: ...


class Inflow:
    """Reads one partition of each of several sources.

    Args:
        readers: by source.
        tables: those of them that are read first, up to where they end when they are opened.
    """

    def __init__(
        self, readers: Mapping[str, SourceReader], tables: Collection[str] = frozenset()
    ) -> None:
        self._readers = dict(readers)
        self._order = list(readers)
        self._tables = [name for name in readers if name in tables]
        self._ends: dict[str, int] = {}
        """Of the tables that have not been read up to there."""
        self._batch = BATCH_RECORDS
        self.is_behind = False
        """Whether there was much of a batch the last time: more is there, or will be soon."""

    async def open(self) -> None:
        """Begin to read; what was opened is closed by `aclose()`, whether or not it succeeds."""
        await asyncio.gather(*(reader.open() for reader in self._readers.values()))
        for name in self._tables:
            end = await self._readers[name].end()
            if end and not _is_behind(self._readers[name], end):
                self._ends[name] = end

    async def aclose(self) -> None:
        """Idempotent."""
        await asyncio.gather(*(reader.aclose() for reader in self._readers.values()))

    def positions(self) -> dict[str, LogPosition]:
        """Behind what has been taken, of each source of which it is known."""
        return {
            name: position
            for name, reader in self._readers.items()
            if (position := reader.position) is not None
        }

    def committed(self, positions: Mapping[str, LogPosition]) -> None:
        """All before these positions has been committed."""
        for name, position in positions.items():
            self._readers[name].committed(position)

    def paced(self, records: int, seconds: float) -> None:
        """A batch of `records` took the engine as long: the next may be larger, or is to be smaller."""
        if records:
            fitting = int(records * BATCH_TAKES / max(seconds, 1e-6))
            self._batch = min(max(fitting, BATCH_RECORDS), 2 * self._batch, MOST_RECORDS)

    async def gather(self, timeout: float) -> Taken:
        """What is there, up to the records of a batch; if nothing is, what comes first within `timeout` seconds.

        Each source gives its share, and they take turns at being the first. Tables are read alone, until they are read up to where they ended.
        """
        taken = await self._gathered(timeout)
        records = sum(len(entry.values) for entries in taken.values() for entry in entries)
        self.is_behind = 2 * records >= self._batch
        return taken

    async def _gathered(self, timeout: float) -> Taken:
        if self._ends:
            return await self._gather_table(timeout)
        if len(self._order) == 1:
            (name,) = self._order
            entries = await _gather(self._readers[name], timeout, self._batch)
            return {name: entries} if entries else {}
        self._order.append(self._order.pop(0))
        taken: Taken = {}
        share = max(self._batch // len(self._order), 1)
        for name in self._order:
            entries = await _gather(self._readers[name], 0, share)
            if entries:
                taken[name] = entries
        return taken or await self._first(timeout)

    async def _gather_table(self, timeout: float) -> Taken:
        name, end = next(iter(self._ends.items()))
        reader = self._readers[name]
        entries = await _gather(reader, timeout, self._batch)
        if _is_behind(reader, end):
            del self._ends[name]
        return {name: entries} if entries else {}

    async def _first(self, timeout: float) -> Taken:
        """An entry of whichever source has one first."""
        tasks = {
            name: asyncio.ensure_future(reader.take(timeout))
            for name, reader in self._readers.items()
        }
        try:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks.values():
                task.cancel()
            results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        taken: Taken = {}
        for name, result in zip(tasks, results, strict=True):
            if isinstance(result, asyncio.CancelledError):
                continue
            if isinstance(result, BaseException):
                raise result
            if result is not None:
                taken[name] = [result]
        return taken


def _is_behind(reader: SourceReader, end: int) -> bool:
    return reader.position is not None and reader.position.offset >= end


async def _gather(reader: SourceReader, timeout: float, records: int) -> list[LogEntry[Any]]:
    """The next entry, and what else is there already."""
    entries: list[LogEntry[Any]] = []
    room = BATCH_BYTES
    entry = await reader.take(timeout)
    while entry is not None:
        entries.append(entry)
        records -= len(entry.values)
        room -= entry.size
        if records <= 0 or room <= 0:
            break
        entry = await reader.take(0)
    return entries
