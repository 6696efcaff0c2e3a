"""What travels between the services: the payloads of the events, and how a flight becomes events.

Instants are UTC in ISO 8601 with `Z`, delays are minutes, `…_at` stamps of this process's clock are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, NotRequired, TypedDict

from services.flights.clock import after, iso
from services.flights.dataset import Flight

__all__ = [
    "ANNOUNCED_BEFORE",
    "KINDS",
    "Airport",
    "Due",
    "Enriched",
    "FlightEvent",
    "Kind",
    "Plane",
    "Weather",
    "due_events",
    "event_id",
    "flight_event",
]

Kind = Literal["scheduled", "departed", "arrived", "cancelled"]
KINDS: tuple[Kind, ...] = ("scheduled", "departed", "arrived", "cancelled")

ANNOUNCED_BEFORE = timedelta(hours=2)
"""The data do not say when a flight was announced. Two hours ahead is ours: no flight left earlier than 43 minutes early."""


class FlightEvent(TypedDict):
    """`feed` says that something happened to a flight. The event type is its `kind`."""

    event_id: str
    """The same on every redelivery: `{run}/{flight_id}/{kind}`."""
    run: str
    flight_id: str
    kind: Kind
    event_time: str
    emitted_at: float
    date: str
    """The day of the scheduled departure in New York."""
    carrier: str
    number: int
    tail_number: str | None
    origin: str
    dest: str
    scheduled_departure: str
    scheduled_arrival: str
    distance: int
    dep_delay: NotRequired[int]
    """With `departed` and `arrived`."""
    arr_delay: NotRequired[int]
    """With `arrived`."""
    air_time: NotRequired[int]
    """With `arrived`."""


class Plane(TypedDict):
    """An aircraft of the FAA registry."""

    tail_number: str
    year: int | None
    type: str
    manufacturer: str
    model: str
    engines: int
    seats: int


class Airport(TypedDict):
    """An airport; `zone` is its IANA time zone."""

    code: str
    name: str
    lat: float
    lon: float
    zone: str


class Weather(TypedDict):
    """One hour's observation at an airport: °F, miles an hour, inches, miles."""

    temperature_f: float | None
    wind_mph: float | None
    precipitation_in: float | None
    visibility_mi: float | None


class Enriched(FlightEvent):
    """A `FlightEvent` with what the registry knows. `None`: the registry knows nothing."""

    carrier_name: str | None
    plane: Plane | None
    origin_airport: Airport | None
    dest_airport: Airport | None
    weather: Weather | None
    """At the origin, in the hour of the scheduled departure."""
    enriched_at: float


class Due(NamedTuple):
    """One event of a replay: when it happened, and to which flight. Sorts in the order of the replay."""

    time: datetime
    order: int
    """The place of the kind in `KINDS`, so that what happens to one flight in one minute keeps its order."""
    flight_id: str
    flight: Flight

    @property
    def kind(self) -> Kind:
        """What happened."""
        return KINDS[self.order]


def event_id(run: str, flight_id: str, kind: str) -> str:
    """The id under which an event is counted once, however often it is delivered."""
    return f"{run}/{flight_id}/{kind}"


def due_events(flights: Iterable[Flight]) -> list[Due]:
    """All events of `flights`, in event-time order.

    A flight is `scheduled` two hours ahead, then `cancelled` at its scheduled departure (the data do not say when), or
    `departed` and, unless it was diverted, `arrived`.
    """
    return sorted(due for flight in flights for due in _events_of(flight))


def _events_of(flight: Flight) -> Iterator[Due]:
    yield Due(flight.scheduled_departure - ANNOUNCED_BEFORE, 0, flight.flight_id, flight)
    if flight.dep_delay is None:
        yield Due(flight.scheduled_departure, 3, flight.flight_id, flight)
        return
    yield Due(after(flight.scheduled_departure, flight.dep_delay), 1, flight.flight_id, flight)
    if flight.arr_delay is not None:
        yield Due(after(flight.scheduled_arrival, flight.arr_delay), 2, flight.flight_id, flight)


def flight_event(due: Due, run: str, emitted_at: float) -> FlightEvent:
    """The payload of `due` in the replay `run`."""
    flight, kind = due.flight, due.kind
    event: FlightEvent = {
        "event_id": event_id(run, flight.flight_id, kind),
        "run": run,
        "flight_id": flight.flight_id,
        "kind": kind,
        "event_time": iso(due.time),
        "emitted_at": emitted_at,
        "date": flight.date,
        "carrier": flight.carrier,
        "number": flight.number,
        "tail_number": flight.tail_number,
        "origin": flight.origin,
        "dest": flight.dest,
        "scheduled_departure": iso(flight.scheduled_departure),
        "scheduled_arrival": iso(flight.scheduled_arrival),
        "distance": flight.distance,
    }
    if kind in ("departed", "arrived") and flight.dep_delay is not None:
        event["dep_delay"] = flight.dep_delay
    if kind == "arrived" and flight.arr_delay is not None:
        event["arr_delay"] = flight.arr_delay
        if flight.air_time is not None:
            event["air_time"] = flight.air_time
    return event
