"""Who writes down what was confirmed, and what was read: the two must be the same, key by key."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from tests.logs.shapes import Departed, shape
from tests.progress import until

from mycelia.amqp import Link
from mycelia.errors import MyceliaError
from mycelia.logs.layout import LogLayout
from mycelia.logs.reader import LogReader
from mycelia.logs.writer import LogWriter

__all__ = ["Ledger"]

KEYS = 23


class Ledger:
    """Appends with several tasks, each with keys of its own, and reads all partitions at the same time."""

    def __init__(self, of: LogLayout) -> None:
        self.of = of
        self.confirmed: dict[str, list[int]] = defaultdict(list)
        self.read: dict[Any, list[int]] = defaultdict(list)
        self.readers: list[LogReader[Departed]] = []
        self._following: list[asyncio.Future[None]] = []
        self.repeated = 0
        self._stop = False

    @property
    def confirmed_count(self) -> int:
        return sum(map(len, self.confirmed.values()))

    @property
    def read_count(self) -> int:
        return sum(map(len, self.read.values()))

    @asynccontextmanager
    async def appending(self, writer: LogWriter[Departed], tasks: int = 4) -> AsyncIterator[None]:
        """Append while the block runs; one task one at a time, the others many."""
        self._stop = False
        running = [asyncio.ensure_future(self._append(writer, task)) for task in range(tasks)]
        try:
            yield
        finally:
            self._stop = True
            await asyncio.gather(*running)

    async def _append(self, writer: LogWriter[Departed], task: int) -> None:
        size = 1 if task == 0 else 20 * task
        keys = [f"{task}-{key}" for key in range(KEYS)]
        for begin in count(0, size):
            if self._stop:
                return
            records = [Departed(keys[n % KEYS], n) for n in range(begin, begin + size)]
            if size == 1:
                await writer.append(records[0])
            else:
                await writer.append_many(records)
            for record in records:
                self.confirmed[record.origin].append(record.number)

    @asynccontextmanager
    async def reading(self, link: Link) -> AsyncIterator[None]:
        """Read all partitions while the block runs."""
        self.readers = [
            LogReader(link, self.of, shape(), partition) for partition in range(self.of.partitions)
        ]
        for reader in self.readers:
            await reader.open()
        tasks = [asyncio.ensure_future(self._follow(reader)) for reader in self.readers]
        self._following = tasks
        try:
            yield
            self._check_readers()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.repeated += sum(reader.statistics().repeated for reader in self.readers)
            for reader in self.readers:
                await reader.aclose()

    def _check_readers(self) -> None:
        """
        Raises:
            MyceliaError: a reader has ended with it.
        """
        for task in self._following:
            if task.done():
                task.result()

    async def _follow(self, reader: LogReader[Departed]) -> None:
        while True:
            entry = await reader.take()
            assert entry is not None
            assert entry.faults == []
            for record in entry.records:
                self.read[record.key].append(record.value.number)

    async def settle(self) -> None:
        """Wait until all that was confirmed has been read, and hold one against the other."""

        def all_read() -> bool:
            self._check_readers()
            return self.read_count >= self.confirmed_count

        await until(
            all_read,
            lambda: self.read_count,
            what="all that was confirmed is read",
        )
        assert self.read == self.confirmed


async def failing(appends: Any) -> MyceliaError | None:
    """The error of an append, if it has one."""
    try:
        await appends
    except MyceliaError as exc:
        return exc
    return None
