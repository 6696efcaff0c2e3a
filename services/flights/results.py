"""Reads what the flows give into the books: all of it at the start, and then what comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from mycelia import Log
from mycelia.amqp import Link
from mycelia.errors import MyceliaError
from mycelia.log_event import event
from services.flights.delay_book import Books
from services.flights.flow_book import FlowBook
from services.flights.records import AIRCRAFT_DAYS, ALERTS, HOURLY, NOTABLE, SEATS

__all__ = ["Results"]

log = logging.getLogger(__name__)

AGAIN_S = 1.0


class Results:
    """Follows the result logs. Each record replaces what was known before it, or is one more of what came once: the logs say nothing twice."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, link: Link) -> None:
        """Declares the logs, so that it matters not who comes first, and begins to read them."""
        for source, take in (
            (HOURLY, lambda book, one: book.take_hour(one, time.time())),
            (SEATS, FlowBook.take_seats),
            (AIRCRAFT_DAYS, FlowBook.take_day),
            (NOTABLE, FlowBook.take_notable),
            (ALERTS, FlowBook.take_alert),
        ):
            await source.declare(link)
            self._tasks += [
                asyncio.create_task(
                    self._follow(link, source, partition, take),
                    name=f"flights:{source.name}-{partition}",
                )
                for partition in range(source.partitions)
            ]

    async def stop(self) -> None:
        """Ends the reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(
        self, link: Link, source: Log[Any], partition: int, take: Callable[[FlowBook, Any], None]
    ) -> None:
        position: Any = "first"
        while True:
            try:
                async with source.reader(link, partition, position) as reader:
                    async for entry in reader:
                        for one in entry.values:
                            book = self._books.of(one.run, FlowBook)
                            if book is not None:
                                take(book, one)
                        position = reader.position or position
            except MyceliaError as exc:
                log.warning(event("results_unavailable", log=source.name, reason=exc))
                await asyncio.sleep(AGAIN_S)
