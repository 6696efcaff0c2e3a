"""What stands in the logs: what happened, and what the flows of `delays` make of it; and the logs themselves.

**Times are of the log, not of 2013.** A log goes forward: a replay that began with the first of February again would be late in all its
records. So each replay is moved by whole days behind what the log has already (`shift_ms`), and what is shown is moved back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from mycelia import Log
from services.flights.clock import iso
from services.flights.dataset import Row
from services.flights.messages import Due

__all__ = [
    "AIRCRAFT_DAYS",
    "ALERTS",
    "ALERT_DELAY_MIN",
    "CLOSES_AFTER_MS",
    "HAPPENED",
    "HOURLY",
    "LATE_MIN",
    "NOTABLE",
    "NOTABLE_DELAY_MIN",
    "OBSERVED",
    "PLANES",
    "SEATS",
    "AircraftDay",
    "Alert",
    "Happening",
    "HourFigures",
    "Leg",
    "Notable",
    "Observation",
    "PlaneRow",
    "SeatFigures",
    "closing",
    "greater",
    "happening",
    "iso_of",
    "observation",
    "plane_row",
    "visibility_band",
]

LATE_MIN: Final = 15
"""Late is what is more than 15 minutes behind schedule."""
NOTABLE_DELAY_MIN: Final = 90
ALERT_DELAY_MIN: Final = 60

HOUR_MS: Final = 3_600_000
FORECAST_MS: Final = 3 * HOUR_MS
"""The data have one observation for each hour and do not say when it was known. Three hours before is ours: before any flight of that hour."""
CLOSES_AFTER_MS: Final = 12 * HOUR_MS
"""How far event time comes after the last record of a replay, so that all windows and sessions close."""


class Happening(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something happened to a flight; or, without a flight, nothing more will, in that partition: see `closing()`."""

    run: str
    kind: str
    """`scheduled`, `departed`, `arrived`, `cancelled`; or `closed`."""
    at_ms: int
    scheduled_ms: int
    """The scheduled departure."""
    shift_ms: int
    emitted_at: float
    """Seconds since 1970, of the feed's clock."""
    origin: str
    flight_id: str = ""
    date: str = ""
    carrier: str = ""
    number: int = 0
    dest: str = ""
    tail_number: str | None = None
    dep_delay: int | None = None
    """Minutes; with `departed` and `arrived`."""
    arr_delay: int | None = None


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The weather at an airport in an hour."""

    origin: str
    at_ms: int
    visibility_mi: float | None = None


class PlaneRow(msgspec.Struct, frozen=True, kw_only=True):
    """An aircraft, as far as the flows ask."""

    tail_number: str
    seats: int


class HourFigures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is counted of the flights of an hour, an origin and a carrier, so far. Delays are minutes."""

    run: str
    start_ms: int = 0
    shift_ms: int = 0
    origin: str = ""
    carrier: str = ""
    visibility: str = ""
    scheduled: int = 0
    departed: int = 0
    cancelled: int = 0
    arrived: int = 0
    dep_total: int = 0
    dep_max: int | None = None
    dep_late: int = 0
    arr_total: int = 0
    arr_max: int | None = None
    arr_late: int = 0
    first_emitted_at: float = 0.0
    last_emitted_at: float = 0.0
    """Of what happened, which an announcement does not."""
    last_at_ms: int = 0


class SeatFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The seats of the cancelled flights of an hour, an origin and a carrier, so far; of aircraft that are known."""

    run: str
    start_ms: int
    shift_ms: int
    origin: str
    carrier: str
    seats: int


class Leg(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A flight of an aircraft's day, as far as it is known."""

    flight_id: str
    date: str
    carrier: str
    origin: str
    dest: str
    scheduled_ms: int
    dep_delay: int | None = None
    arr_delay: int | None = None
    cancelled: bool = False


class AircraftDay(msgspec.Struct, frozen=True, kw_only=True):
    """What an aircraft flew without a pause of six hours."""

    run: str
    tail_number: str
    shift_ms: int
    legs: list[Leg]


class Notable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cancellation, or a long delay, as it happens."""

    run: str
    flight_id: str
    kind: str
    event_time: str
    carrier: str
    number: int
    origin: str
    dest: str
    dep_delay: int | None = None
    arr_delay: int | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Two departures of an airport were over an hour late, within three hours."""

    run: str
    origin: str
    first: str
    second: str
    event_time: str
    """Of the second departure."""


# Two partitions, as three airports are not enough for more: each of the two has one airport or two.
HAPPENED: Log[Happening] = Log(
    "flights.happened", of=Happening, key="origin", time="at_ms", partitions=2, retain="1d"
)
OBSERVED: Log[Observation] = Log(
    "flights.observed", of=Observation, key="origin", time="at_ms", partitions=2, retain="1d"
)
PLANES: Log[PlaneRow] = Log(
    "flights.planes", of=PlaneRow, key="tail_number", partitions=2, retain=None
)
HOURLY: Log[HourFigures] = Log(
    "flights.hourly", of=HourFigures, key="origin", time="start_ms", partitions=2, retain="1d"
)
SEATS: Log[SeatFigures] = Log(
    "flights.seats", of=SeatFigures, key="origin", time="start_ms", partitions=2, retain="1d"
)
AIRCRAFT_DAYS: Log[AircraftDay] = Log(
    "flights.aircraft_days", of=AircraftDay, key="tail_number", partitions=2, retain="1d"
)
NOTABLE: Log[Notable] = Log("flights.notable", of=Notable, key="origin", partitions=2, retain="1d")
ALERTS: Log[Alert] = Log("flights.alerts", of=Alert, key="origin", partitions=2, retain="1d")


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def iso_of(ms: int, shift_ms: int) -> str:
    """A moment of the log, as of 2013: `2013-02-08T22:15:00Z`."""
    return iso(datetime.fromtimestamp((ms - shift_ms) / 1000, UTC))


def happening(due: Due, run: str, shift_ms: int, emitted_at: float) -> Happening:
    """The record of `due` in the replay `run`."""
    flight, kind = due.flight, due.kind
    return Happening(
        run=run,
        kind=kind,
        at_ms=_ms(due.time) + shift_ms,
        scheduled_ms=_ms(flight.scheduled_departure) + shift_ms,
        shift_ms=shift_ms,
        emitted_at=emitted_at,
        origin=flight.origin,
        flight_id=flight.flight_id,
        date=flight.date,
        carrier=flight.carrier,
        number=flight.number,
        dest=flight.dest,
        tail_number=flight.tail_number,
        dep_delay=flight.dep_delay if kind in ("departed", "arrived") else None,
        arr_delay=flight.arr_delay if kind == "arrived" else None,
    )


def closing(last: Happening, origin: str, emitted_at: float) -> Happening:
    """Nothing more of the replay will happen at an airport: event time comes so far behind `last` that all windows close."""
    at_ms = max(last.at_ms, last.scheduled_ms) + CLOSES_AFTER_MS
    return Happening(
        run=last.run,
        kind="closed",
        at_ms=at_ms,
        scheduled_ms=at_ms,
        shift_ms=last.shift_ms,
        emitted_at=emitted_at,
        origin=origin,
    )


def observation(row: Row, shift_ms: int) -> Observation:
    """The record of a line of the weather's table."""
    at = datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))
    return Observation(
        origin=row["origin"],
        at_ms=_ms(at) + shift_ms,
        visibility_mi=round(float(row["visib"]), 2) if row["visib"] else None,
    )


def plane_row(row: Row) -> PlaneRow:
    """The record of a line of the planes' table."""
    return PlaneRow(tail_number=row["tailnum"], seats=int(row["seats"]))


def greater(a: int | None, b: int | None) -> int | None:
    """The greater of two, of which one or both may not be known."""
    return b if a is None else a if b is None else max(a, b)


def visibility_band(miles: float | None) -> str:
    """The group of a flight by the visibility at its origin when it was to leave."""
    if miles is None:
        return "not observed"
    if miles < 1:
        return "under 1 mile"
    if miles < 3:
        return "1 to 3 miles"
    return "3 to 10 miles" if miles < 10 else "10 miles"
