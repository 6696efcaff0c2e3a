"""Delays: exact statistics of what is delayed, kept up to the event.

nameko run --config services/config.yaml services.flights.delays
n.rpc.delays.worst(5)             # in nameko shell
"""

from __future__ import annotations

import time
from typing import Any

from mycelia import SharedDependency, event_handler, rpc
from services.flights.delay_book import Books
from services.flights.messages import Enriched

__all__ = ["Delays", "Ledger"]


class Ledger(SharedDependency):
    """The books, shared by all workers. They live in memory: a restarted service starts with empty ones."""

    def __init__(self) -> None:
        self.books = Books()


class Delays:
    """Counts every enriched event once, whatever the order and however often it is delivered.

    Every query takes a `run`, by default the newest. Delays are minutes, hours are UTC and those of the scheduled departure.
    """

    name = "delays"
    ledger = Ledger()

    @event_handler("enrich", "flight_enriched", concurrency=256)
    async def count(self, event: Enriched) -> None:
        """Counts one event."""
        self.ledger.books.count(event, time.time())

    @rpc
    async def summary(self, run: str | None = None) -> dict[str, Any]:
        """Totals by carrier, origin and visibility; how many events were counted, and how long they took to arrive."""
        return self.ledger.books.get(run).summary() | {"stale": self.ledger.books.stale}

    @rpc
    async def hourly(
        self, origin: str | None = None, carrier: str | None = None, run: str | None = None
    ) -> list[dict[str, Any]]:
        """The figures of each hour, origin and carrier, of those asked for."""
        return self.ledger.books.get(run).hourly(origin, carrier)

    @rpc
    async def worst(self, n: int = 5, run: str | None = None) -> list[dict[str, Any]]:
        """The `n` (at most 100) longest departure delays."""
        return self.ledger.books.get(run).worst(n)

    @rpc
    async def aircraft(self, tail_number: str, run: str | None = None) -> dict[str, Any]:
        """An aircraft's legs, and the delay it gathered through each day."""
        return self.ledger.books.get(run).aircraft(tail_number)

    @rpc
    async def changes(self, since: int = 0, run: str | None = None) -> dict[str, Any]:
        """The summary, the worst and newest delays, and the hours that changed after version `since`."""
        return self.ledger.books.get(run).changes(since)

    @rpc
    async def snapshot(
        self, offset: int = 0, limit: int = 2000, run: str | None = None
    ) -> dict[str, Any]:
        """Everything, in pages: rows `offset` to `offset + limit` of `hourly` and of `legs` (all aircraft's).

        `next` is the offset of the next page, or `None`. Pages belong together if their `version` is the same.
        """
        book = self.ledger.books.get(run)
        hourly, legs, end = book.hourly(), book.legs(), offset + limit
        return {
            "run": book.run,
            "version": book.version,
            "hourly": hourly[offset:end],
            "legs": legs[offset:end],
            "next": end if end < max(len(hourly), len(legs)) else None,
        }
