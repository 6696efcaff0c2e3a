"""What `feed`, `registry` and `enrich` make of tables, without a broker: for tests of what comes after."""

from __future__ import annotations

from services.flights.dataset import Tables, flights_of
from services.flights.messages import Enriched, due_events, flight_event
from services.flights.registry import airports_of, carriers_of, planes_of, weather_of

__all__ = ["enriched_events"]


def enriched_events(
    tables: Tables, run: str = "run-1", emitted_at: float = 100.0
) -> list[Enriched]:
    """All enriched events of the flights of `tables`, in event-time order."""
    planes, airports = planes_of(tables), airports_of(tables)
    carriers, weather = carriers_of(tables), weather_of(tables)
    events: list[Enriched] = []
    for due in due_events(flights_of(tables)):
        event = flight_event(due, run, emitted_at)
        hour = event["scheduled_departure"][:13] + ":00:00Z"
        events.append(
            {
                **event,
                "carrier_name": carriers.get(event["carrier"]),
                "plane": planes.get(event["tail_number"] or ""),
                "origin_airport": airports.get(event["origin"]),
                "dest_airport": airports.get(event["dest"]),
                "weather": weather.get((event["origin"], hour)),
                "enriched_at": emitted_at,
            }
        )
    return events
