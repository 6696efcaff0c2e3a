"""Enrich: joins what the registry knows to what the feed says.

nameko run --config services/config.yaml services.flights.enrich
"""

from __future__ import annotations

import time
from typing import Any

from mycelia import (
    EventDispatcher,
    Retry,
    RpcProxy,
    SharedDependency,
    event_handler,
    exponential,
    rpc,
)
from services.flights.messages import Enriched, FlightEvent
from services.flights.single_flight import SingleFlightCache

__all__ = ["Cache", "Enrich"]

CONCURRENCY = 128

AGAIN = Retry(attempts=20, backoff=exponential("250ms", max="30s"))
"""For a registry that is away for a while: some minutes in all, before an event is a dead letter."""


class Cache(SharedDependency):
    """One cache of registry answers for all workers of the service."""

    def __init__(self) -> None:
        self.answers: SingleFlightCache[Any] = SingleFlightCache(max_entries=20_000)


class Enrich:
    """Emits a `flight_enriched` event for each event of the feed."""

    name = "enrich"
    registry = RpcProxy("registry", timeout=10)
    cache = Cache()
    emit = EventDispatcher(mandatory=True)

    @event_handler("feed", "scheduled", concurrency=CONCURRENCY, retry=AGAIN)
    async def scheduled(self, event: FlightEvent) -> None:
        """A flight was announced."""
        await self._enrich(event)

    @event_handler("feed", "departed", concurrency=CONCURRENCY, retry=AGAIN)
    async def departed(self, event: FlightEvent) -> None:
        """A flight left the gate."""
        await self._enrich(event)

    @event_handler("feed", "arrived", concurrency=CONCURRENCY, retry=AGAIN)
    async def arrived(self, event: FlightEvent) -> None:
        """A flight reached its gate."""
        await self._enrich(event)

    @event_handler("feed", "cancelled", concurrency=CONCURRENCY, retry=AGAIN)
    async def cancelled(self, event: FlightEvent) -> None:
        """A flight will not leave."""
        await self._enrich(event)

    @rpc
    async def cache_statistics(self) -> dict[str, int]:
        """How the cache has served: hits, shared misses, calls to the registry."""
        counts = self.cache.answers.statistics
        return {
            "entries": len(self.cache.answers),
            "hits": counts.hits,
            "shared": counts.shared,
            "loads": counts.loads,
            "failures": counts.failures,
        }

    async def _enrich(self, event: FlightEvent) -> None:
        """Joins and emits. What fails here is tried again by the runtime; the event's id keeps it from counting twice."""
        tail, hour = event["tail_number"], event["scheduled_departure"][:13] + ":00:00Z"
        enriched: Enriched = {
            **event,
            "carrier_name": await self._known("carrier", event["carrier"]),
            "plane": await self._known("plane", tail) if tail else None,
            "origin_airport": await self._known("airport", event["origin"]),
            "dest_airport": await self._known("airport", event["dest"]),
            "weather": await self._known("weather", event["origin"], hour),
            "enriched_at": time.time(),
        }
        await self.emit("flight_enriched", enriched)

    async def _known(self, what: str, *key: str) -> Any:
        """The registry's answer, which is asked for once for each key."""
        return await self.cache.answers.get(
            (what, *key), lambda: getattr(self.registry, what)(*key)
        )
