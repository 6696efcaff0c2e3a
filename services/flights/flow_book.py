"""The statistics of a replay as the flows give them: each result replaces the one before it, so that reading a log twice changes nothing."""

from __future__ import annotations

from bisect import insort

from services.flights.delay_book import (
    RECENT_COLUMNS,
    WORST_KEPT,
    Cell,
    FlightBook,
    FlightState,
    Tally,
)
from services.flights.records import (
    AircraftDay,
    Alert,
    HourFigures,
    Leg,
    Notable,
    SeatFigures,
    iso_of,
    visibility_band,
)

__all__ = ["FlowBook"]


class FlowBook(FlightBook):
    """Takes results of the flows, in the order of each key."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self._visibility_of: dict[Cell, str] = {}
        self._last_emitted_at: dict[Cell, float] = {}
        self._is_regrouped = True

    # --- taking -------------------------------------------------------------------------------------

    def take_hour(self, figures: HourFigures, taken_at: float) -> None:
        """What an hour's figures are now. `taken_at`: seconds since 1970."""
        cell = Cell(iso_of(figures.start_ms, figures.shift_ms), figures.origin, figures.carrier)
        self.version += 1
        before = self._cells.get(cell)
        tally = Tally(
            scheduled=figures.scheduled,
            departed=figures.departed,
            cancelled=figures.cancelled,
            arrived=figures.arrived,
            seats_cancelled=0 if before is None else before.seats_cancelled,
            dep_total=figures.dep_total,
            dep_max=figures.dep_max,
            dep_late=figures.dep_late,
            arr_total=figures.arr_total,
            arr_max=figures.arr_max,
            arr_late=figures.arr_late,
            version=self.version,
        )
        self.counted += _events(tally) - (0 if before is None else _events(before))
        self._cells[cell] = tally
        self._visibility_of[cell] = figures.visibility
        self._is_regrouped = False
        self._note_times(cell, figures, taken_at)

    def _note_times(self, cell: Cell, figures: HourFigures, taken_at: float) -> None:
        if figures.last_emitted_at > self._last_emitted_at.get(cell, 0.0):
            self._last_emitted_at[cell] = figures.last_emitted_at
            self.latency.add(taken_at - figures.last_emitted_at)
        self.last_counted_at = taken_at
        if self.first_emitted_at is None or figures.first_emitted_at < self.first_emitted_at:
            self.first_emitted_at = figures.first_emitted_at
        self.event_time = max(self.event_time, iso_of(figures.last_at_ms, figures.shift_ms))

    def take_seats(self, figures: SeatFigures) -> None:
        """How many seats of an hour are cancelled now."""
        cell = Cell(iso_of(figures.start_ms, figures.shift_ms), figures.origin, figures.carrier)
        self.version += 1
        tally = self._cells.setdefault(cell, Tally())
        tally.seats_cancelled, tally.version = figures.seats, self.version
        self._is_regrouped = False

    def take_day(self, day: AircraftDay) -> None:
        """What is known of some legs of an aircraft."""
        self.version += 1
        for leg in day.legs:
            flight = self._flight_of(day.tail_number, leg, day.shift_ms)
            if flight.dep_delay is None and leg.dep_delay is not None:
                flight.dep_delay = leg.dep_delay
                insort(self._worst, (-leg.dep_delay, leg.flight_id))
                del self._worst[WORST_KEPT:]
            if leg.arr_delay is not None:
                flight.arr_delay = leg.arr_delay
            flight.is_cancelled = flight.is_cancelled or leg.cancelled

    def _flight_of(self, tail: str, leg: Leg, shift_ms: int) -> FlightState:
        flight = self._flights.get(leg.flight_id)
        if flight is None:
            flight = self._flights[leg.flight_id] = FlightState(
                flight_id=leg.flight_id,
                date=leg.date,
                carrier=leg.carrier,
                origin=leg.origin,
                dest=leg.dest,
                tail_number=tail,
                scheduled_departure=iso_of(leg.scheduled_ms, shift_ms),
            )
            self._by_tail.setdefault(tail, []).append(flight)
        return flight

    def take_notable(self, notable: Notable) -> None:
        """What has just happened."""
        self.version += 1
        self._recent.append({key: getattr(notable, key) for key in RECENT_COLUMNS})

    def take_alert(self, alert: Alert) -> None:
        """Another alert of an airport."""
        self.version += 1
        self.alerts[alert.origin] = self.alerts.get(alert.origin, 0) + 1

    # --- asking -------------------------------------------------------------------------------------

    def flight_count(self) -> int:
        self.regroup()
        return self._total.scheduled

    def regroup(self) -> None:
        if self._is_regrouped:
            return
        self._is_regrouped = True
        self._total = Tally()
        for groups in (self._hours, self._carriers, self._origins, self._visibility):
            groups.clear()
        for cell, tally in self._cells.items():
            self._total.add(tally)
            for groups, key in (
                (self._hours, cell.hour),
                (self._carriers, cell.carrier),
                (self._origins, cell.origin),
                (self._visibility, self._visibility_of.get(cell, visibility_band(None))),
            ):
                groups.setdefault(key, Tally()).add(tally)


def _events(tally: Tally) -> int:
    return tally.scheduled + tally.departed + tally.cancelled + tally.arrived
