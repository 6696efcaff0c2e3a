"""The log that these tests append to and read from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mycelia.amqp import Link
from mycelia.logs.layout import LogLayout, declare_log, log_layout
from mycelia.logs.position import StartAt
from mycelia.logs.reader import LogEntry, LogReader
from mycelia.logs.record import Record
from mycelia.logs.record_shape import RecordShape
from mycelia.logs.writer import AppendOptions, LogWriter

__all__ = ["Departed", "layout", "read", "records_of", "shape", "writing"]


@dataclass
class Departed:
    origin: str
    number: int
    at_ms: int = 0


def layout(partitions: int = 4) -> LogLayout:
    return log_layout("flights.departed", partitions, "7d", None)


def shape() -> RecordShape[Departed]:
    return RecordShape('log "flights.departed"', Departed, "origin", "at_ms")


@asynccontextmanager
async def writing(link: Link, of: LogLayout, **options: Any) -> AsyncIterator[LogWriter[Departed]]:
    """A writer, while the block runs."""
    await declare_log(link, of, 30)
    writer = LogWriter(link, of, shape(), AppendOptions(**options))
    try:
        yield writer
    finally:
        await writer.aclose()


async def read(
    link: Link, of: LogLayout, partition: int, count: int, start: StartAt = "first"
) -> list[LogEntry[Departed]]:
    """The entries of a partition up to so many records and faults."""
    entries: list[LogEntry[Departed]] = []
    async with LogReader(link, of, shape(), partition, start) as reader:
        while sum(len(entry.records) + len(entry.faults) for entry in entries) < count:
            entry = await reader.take(timeout=15)
            assert entry is not None, f"{entries} and nothing more"
            entries.append(entry)
    return entries


def records_of(entries: list[LogEntry[Departed]]) -> list[Record[Departed]]:
    return [record for entry in entries for record in entry.records]
