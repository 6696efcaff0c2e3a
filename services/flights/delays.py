"""Delays: exact statistics of what is delayed, kept up to the event.

nameko run --config services/config.yaml services.flights.delays
n.rpc.delays.worst(5)             # in nameko shell
"""

from __future__ import annotations

import time
from typing import Any

from mycelia import Logger, RpcProxy, SharedDependency, event_handler, rpc
from mycelia.errors import CallError
from mycelia.runtime import Container
from services.flights.delay_book import Books
from services.flights.messages import Enriched
from services.flights.results import Results

__all__ = ["Delays", "Ledger"]


class Ledger(SharedDependency):
    """The books, shared by all workers. A restarted service reads those of the flows again; what it counted of events is gone."""

    container: Container

    def __init__(self) -> None:
        self.books = Books()
        self.names: dict[str, str] = {}
        """Of the carriers, by code."""
        self._results = Results(self.books)

    async def start(self) -> None:
        """Begins to read what the flows give."""
        await self._results.start(self.container.host.link)

    async def stop(self) -> None:
        """Reads no further."""
        await self._results.stop()


class Delays:
    """Answers for the figures: those that the flows give, and those of enriched events, each of which it counts once, in whatever order.

    Every query takes a `run`, by default the newest. Delays are minutes, hours are UTC and those of the scheduled departure.
    """

    name = "delays"
    ledger = Ledger()
    registry = RpcProxy("registry", timeout=5)
    log = Logger()

    @event_handler("enrich", "flight_enriched", concurrency=256)
    async def count(self, event: Enriched) -> None:
        """Counts one event."""
        self.ledger.books.count(event, time.time())

    @rpc
    async def summary(self, run: str | None = None) -> dict[str, Any]:
        """Totals by carrier, origin and visibility; how many events were counted, and how long they took to arrive."""
        summary = self.ledger.books.get(run).summary()
        return await self._named(summary) | {"stale": self.ledger.books.stale}

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
        found = self.ledger.books.get(run).aircraft(tail_number)
        if found["legs"] and found["plane"] is None:
            found["plane"] = await self.registry.plane(tail_number)
        return found

    @rpc
    async def changes(self, since: int = 0, run: str | None = None) -> dict[str, Any]:
        """The summary, the worst and newest delays, and the hours that changed after version `since`."""
        return await self._named(self.ledger.books.get(run).changes(since))

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

    async def _named(self, figures: dict[str, Any]) -> dict[str, Any]:
        """With the carriers' names, which the flows do not know; without those, if the registry is away."""
        names = self.ledger.names
        carriers = figures["carriers"]
        unknown = [code for code, one in carriers.items() if not (one["name"] or code in names)]
        if unknown:
            try:
                names.update(await self.registry.carriers(unknown))
            except CallError:
                self.log.info("names_unavailable", carriers=len(unknown))
        for code, one in carriers.items():
            one["name"] = one["name"] or names.get(code)
        return figures
