"""The flows of `delays`: what is made of what happened to flights. Pure descriptions; `delays` runs them over logs.

**Event time is the schedule's**, for an hour's figures are those of the flights that were to leave in it. Flights are announced two hours
ahead, so the watermark is that far behind the latest announcement: it is the time on the airport's clock. Departures and arrivals
come later than the hour that they count for, some by a day: the hour gives a further result for them, up to two days later.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mycelia.flow import (
    Aggregation,
    Stream,
    aggregation,
    collect,
    last,
    session,
    sum_of,
    tumbling,
)
from services.flights.records import (
    ALERT_DELAY_MIN,
    LATE_MIN,
    NOTABLE_DELAY_MIN,
    AircraftDay,
    Alert,
    Happening,
    HourFigures,
    Leg,
    Notable,
    Observation,
    PlaneRow,
    SeatFigures,
    greater,
    iso_of,
    visibility_band,
)

__all__ = ["aircraft_days", "alerts", "hourly", "notable", "scheduled", "seats"]

LATENESS: Final = "2d"

Joined = tuple[Happening, Observation | None]


def scheduled(happened: Stream[Happening]) -> Stream[Happening]:
    """What happened, at the time for which the flight was scheduled."""
    return (
        happened.event_time(lambda one: one.scheduled_ms, unit="ms", disorder="2h")
        .named("time_of_schedule")
        .filter(lambda one: one.kind != "closed")
        .named("flights")
    )


def hourly(flights: Stream[Happening], observed: Stream[Observation]) -> Stream[HourFigures]:
    """The figures of each hour, origin and carrier; again with all that changes them."""
    weather = observed.event_time(lambda one: one.at_ms, unit="ms").named("time_of_weather")
    return (
        flights.key_by("origin")
        # The observation of the hour, and no other: one that is an hour old is of the hour before.
        .join_as_of(weather.key_by("origin"), tolerance="59m", lateness=LATENESS, how="left")
        .named("with_weather")
        .key_by(
            _cell, repartition=False
        )  # all of a cell are of one origin, and so in one partition
        .window(tumbling("1h"), lateness=LATENESS, emit="update")
        .aggregate(_figures())
        .named("hours")
        .map(lambda hour: _placed(hour.key, hour.start_ms, hour.value))
    )


def seats(flights: Stream[Happening], planes: Stream[PlaneRow]) -> Stream[SeatFigures]:
    """The seats that were cancelled in each hour, of each origin and carrier; again with each more."""
    return (
        flights.filter(lambda one: one.kind == "cancelled" and one.tail_number is not None)
        .named("cancelled")
        .key_by(_tail_of)
        .named("cancelled_by_tail")
        .join_table(planes.key_by("tail_number"))
        .named("with_plane")
        .key_by(lambda joined: (joined[0].origin, joined[0].carrier))
        .named("cancelled_by_cell")
        .window(tumbling("1h"), lateness=LATENESS, emit="update")
        .aggregate(sum_of(_seats_of), last())
        .named("seats_of_hours")
        .map(lambda hour: _seat_figures(hour.start_ms, *hour.value))
    )


def aircraft_days(flights: Stream[Happening]) -> Stream[AircraftDay]:
    """What each aircraft flew without a pause of six hours."""
    return (
        flights.filter(lambda one: one.tail_number is not None)
        .key_by(_tail_of)
        .named("by_tail")
        .window(session("6h"), lateness=LATENESS, emit="update")
        .aggregate(collect())
        .named("aircraft_days")
        .map(lambda day: _aircraft_day(day.key, day.value))
    )


def notable(flights: Stream[Happening]) -> Stream[Notable]:
    """Cancellations and long delays."""
    return flights.filter(_is_notable).map(_as_notable)


def alerts(happened: Stream[Happening]) -> Stream[Alert]:
    """Two departures of an airport over an hour late within three hours: a departure is in one alert at most."""
    return (
        happened.event_time(lambda one: one.at_ms, unit="ms")
        .named("time_of_departure")
        .filter(lambda one: one.kind == "departed")
        .key_by("origin")
        .pattern(_is_very_late, _is_very_late, within="3h")
        .named("two_very_late")
        .map(_as_alert)
    )


# --- keys ------------------------------------------------------------------------------------------


def _tail_of(flight: Happening) -> str:
    return flight.tail_number or ""


def _cell(joined: tuple[Happening, Observation | None]) -> tuple[str, str]:
    flight, _ = joined
    return flight.origin, flight.carrier


# --- the seats of cancelled flights ----------------------------------------------------------------


def _seats_of(joined: tuple[Happening, PlaneRow]) -> int:
    _, plane = joined
    return plane.seats


def _seat_figures(start_ms: int, seats: int, latest: tuple[Happening, PlaneRow]) -> SeatFigures:
    flight, _ = latest
    return SeatFigures(
        run=flight.run,
        start_ms=start_ms,
        shift_ms=flight.shift_ms,
        origin=flight.origin,
        carrier=flight.carrier,
        seats=seats,
    )


# --- an hour's figures -----------------------------------------------------------------------------


def _figures() -> Aggregation[Joined, HourFigures]:
    return aggregation(of=_figures_of, merge=_merged, result=lambda one: one, name="figures")


def _figures_of(records: list[Joined]) -> HourFigures:
    first, weather = records[-1]
    made = HourFigures(
        run=first.run,
        shift_ms=first.shift_ms,
        visibility=visibility_band(weather.visibility_mi if weather else None),
        first_emitted_at=first.emitted_at,
    )
    for flight, _ in records:
        made.first_emitted_at = min(made.first_emitted_at, flight.emitted_at)
        made.last_at_ms = max(made.last_at_ms, flight.at_ms)
        if flight.kind == "scheduled":
            made.scheduled += 1
            continue
        made.last_emitted_at = max(made.last_emitted_at, flight.emitted_at)
        if flight.kind == "cancelled":
            made.cancelled += 1
        elif flight.kind == "departed" and flight.dep_delay is not None:
            made.departed += 1
            made.dep_total += flight.dep_delay
            made.dep_late += flight.dep_delay > LATE_MIN
            made.dep_max = greater(made.dep_max, flight.dep_delay)
        elif flight.arr_delay is not None:
            made.arrived += 1
            made.arr_total += flight.arr_delay
            made.arr_late += flight.arr_delay > LATE_MIN
            made.arr_max = greater(made.arr_max, flight.arr_delay)
    return made


def _merged(a: HourFigures, b: HourFigures) -> HourFigures:
    for name in (
        *("scheduled", "departed", "cancelled", "arrived"),
        *("dep_total", "dep_late", "arr_total", "arr_late"),
    ):
        setattr(a, name, getattr(a, name) + getattr(b, name))
    a.dep_max, a.arr_max = greater(a.dep_max, b.dep_max), greater(a.arr_max, b.arr_max)
    a.first_emitted_at = min(a.first_emitted_at, b.first_emitted_at)
    a.last_emitted_at = max(a.last_emitted_at, b.last_emitted_at)
    a.last_at_ms = max(a.last_at_ms, b.last_at_ms)
    return a


def _placed(key: tuple[str, str], start_ms: int, figures: HourFigures) -> HourFigures:
    origin, carrier = key
    return msgspec.structs.replace(figures, origin=origin, carrier=carrier, start_ms=start_ms)


# --- the others ------------------------------------------------------------------------------------


def _aircraft_day(tail: str, events: list[Happening]) -> AircraftDay:
    legs: dict[str, dict[str, Any]] = {}
    for one in events:
        leg = legs.setdefault(
            one.flight_id,
            {
                "date": one.date,
                "carrier": one.carrier,
                "origin": one.origin,
                "dest": one.dest,
                "scheduled_ms": one.scheduled_ms,
            },
        )
        if one.kind == "cancelled":
            leg["cancelled"] = True
        elif one.kind == "departed":
            leg["dep_delay"] = one.dep_delay
        elif one.kind == "arrived":
            leg["arr_delay"] = one.arr_delay
    return AircraftDay(
        run=events[-1].run,
        tail_number=tail,
        shift_ms=events[-1].shift_ms,
        legs=[Leg(flight_id=flight_id, **leg) for flight_id, leg in legs.items()],
    )


def _is_notable(one: Happening) -> bool:
    return one.kind == "cancelled" or (one.dep_delay or 0) >= NOTABLE_DELAY_MIN


def _as_notable(one: Happening) -> Notable:
    return Notable(
        run=one.run,
        flight_id=one.flight_id,
        kind=one.kind,
        event_time=iso_of(one.at_ms, one.shift_ms),
        carrier=one.carrier,
        number=one.number,
        origin=one.origin,
        dest=one.dest,
        dep_delay=one.dep_delay,
        arr_delay=one.arr_delay,
    )


def _is_very_late(one: Happening) -> bool:
    return one.dep_delay is not None and one.dep_delay > ALERT_DELAY_MIN


def _as_alert(pair: list[Happening]) -> Alert:
    first, second = pair
    return Alert(
        run=second.run,
        origin=second.origin,
        first=first.flight_id,
        second=second.flight_id,
        event_time=iso_of(second.at_ms, second.shift_ms),
    )
