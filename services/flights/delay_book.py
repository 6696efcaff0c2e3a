"""The delay statistics of one replay, kept exactly.

Pure: no clock, no messages. Two rules make the figures independent of how the events arrive:

- every event is counted once: a flight remembers which of its events it has seen;
- every figure is a sum, a count or a maximum over flights, so that the order of counting does not show.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from services.flights.latency import Histogram
from services.flights.messages import KINDS, Enriched, Weather
from services.flights.records import LATE_MIN, NOTABLE_DELAY_MIN, greater, visibility_band

__all__ = ["Books", "Cell", "DelayBook", "FlightBook", "FlightState", "Tally"]

B = TypeVar("B", bound="FlightBook")

WORST_KEPT = 100
RECENT_KEPT = 6
RECENT_COLUMNS = [
    "flight_id",
    "kind",
    "event_time",
    "carrier",
    "number",
    "origin",
    "dest",
    "dep_delay",
    "arr_delay",
]
_BIT = {kind: 1 << place for place, kind in enumerate(KINDS)}


@dataclass(slots=True)
class Tally:
    """What is counted of any group of flights. Delays are minutes; early ones count as they are, below zero."""

    scheduled: int = 0
    departed: int = 0
    cancelled: int = 0
    arrived: int = 0
    seats_cancelled: int = 0
    """Seats of the cancelled flights whose aircraft the registry knows."""
    dep_total: int = 0
    dep_max: int | None = None
    dep_late: int = 0
    arr_total: int = 0
    arr_max: int | None = None
    arr_late: int = 0
    version: int = 0
    """The book's version when this tally changed last."""

    def add(self, other: Tally) -> None:
        """Counts what another has counted."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dep_max = greater(self.dep_max, other.dep_max)
        self.arr_max = greater(self.arr_max, other.arr_max)
        self.version = max(self.version, other.version)

    def count(self, event: Enriched, version: int) -> None:
        """Counts one event, which must not have been counted before."""
        self.version = version
        kind = event["kind"]
        if kind == "scheduled":
            self.scheduled += 1
        elif kind == "cancelled":
            self.cancelled += 1
            self.seats_cancelled += event["plane"]["seats"] if event["plane"] else 0
        elif kind == "departed":
            delay = event["dep_delay"]
            self.departed += 1
            self.dep_total += delay
            self.dep_late += delay > LATE_MIN
            self.dep_max = delay if self.dep_max is None else max(self.dep_max, delay)
        else:
            delay = event["arr_delay"]
            self.arrived += 1
            self.arr_total += delay
            self.arr_late += delay > LATE_MIN
            self.arr_max = delay if self.arr_max is None else max(self.arr_max, delay)

    def figures(self) -> dict[str, int | float | None]:
        """The counts, and the means and shares that follow from them; `None` where there is nothing to divide by."""
        return {
            "scheduled": self.scheduled,
            "departed": self.departed,
            "cancelled": self.cancelled,
            "arrived": self.arrived,
            "seats_cancelled": self.seats_cancelled,
            "dep_delay_mean": _share(self.dep_total, self.departed),
            "dep_delay_max": self.dep_max,
            "dep_late": self.dep_late,
            "dep_late_share": _share(self.dep_late, self.departed),
            "arr_delay_mean": _share(self.arr_total, self.arrived),
            "arr_delay_max": self.arr_max,
            "arr_late": self.arr_late,
            "arr_late_share": _share(self.arr_late, self.arrived),
        }


_SUMS = (
    *("scheduled", "departed", "cancelled", "arrived", "seats_cancelled"),
    *("dep_total", "dep_late", "arr_total", "arr_late"),
)


def _visibility(weather: Weather | None) -> float | None:
    return weather["visibility_mi"] if weather else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(slots=True)
class FlightState:
    """What a book remembers of one flight."""

    flight_id: str
    date: str
    carrier: str
    origin: str
    dest: str
    tail_number: str | None
    scheduled_departure: str
    seen: int = 0
    """A bit for each kind of event that has been counted."""
    dep_delay: int | None = None
    arr_delay: int | None = None
    is_cancelled: bool = False

    def as_row(self) -> dict[str, Any]:
        return {
            "flight_id": self.flight_id,
            "date": self.date,
            "carrier": self.carrier,
            "origin": self.origin,
            "dest": self.dest,
            "tail_number": self.tail_number,
            "scheduled_departure": self.scheduled_departure,
            "dep_delay": self.dep_delay,
            "arr_delay": self.arr_delay,
            "cancelled": self.is_cancelled,
        }


class Cell(NamedTuple):
    """What is counted together, at its finest."""

    hour: str
    origin: str
    carrier: str


class FlightBook:
    """The statistics of one replay, and what is asked of them. Whoever fills it belongs to one thread."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.version = 0
        """It grows with each change."""
        self.counted = 0
        """The number of events."""
        self.duplicates = 0
        self.event_time = ""
        """The latest event time seen."""
        self.first_emitted_at: float | None = None
        self.last_counted_at: float | None = None
        self.latency = Histogram()
        self._total = Tally()
        self._cells: dict[Cell, Tally] = {}
        self._hours: dict[str, Tally] = {}
        self._carriers: dict[str, Tally] = {}
        self._origins: dict[str, Tally] = {}
        self._visibility: dict[str, Tally] = {}
        self._carrier_names: dict[str, str] = {}
        self._flights: dict[str, FlightState] = {}
        self._by_tail: dict[str, list[FlightState]] = {}
        self._planes: dict[str, Any] = {}
        self._worst: list[tuple[int, str]] = []  # (-delay, flight id): the worst first
        self.alerts: dict[str, int] = {}
        """How many there were at each airport."""
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_KEPT)

    # --- asking -------------------------------------------------------------------------------------

    def regroup(self) -> None:
        """Called before the groups are asked for: whoever fills only the cells adds them up here."""

    def flight_count(self) -> int:
        """Flights of which anything was heard."""
        return len(self._flights)

    def summary(self) -> dict[str, Any]:
        """The totals, what was counted, and how long the events took from being emitted to being counted."""
        self.regroup()
        return {
            "run": self.run,
            "version": self.version,
            "counted": self.counted,
            "duplicates": self.duplicates,
            "event_time": self.event_time,
            "alerts": dict(sorted(self.alerts.items())),
            "flights": self.flight_count(),
            "aircraft": len(self._by_tail),
            "first_emitted_at": self.first_emitted_at,
            "last_counted_at": self.last_counted_at,
            "latency": self.latency.as_ms(),
            "total": self._total.figures(),
            "origins": {key: self._origins[key].figures() for key in sorted(self._origins)},
            "visibility": {
                key: self._visibility[key].figures() for key in sorted(self._visibility)
            },
            "carriers": {
                key: {"name": self._carrier_names.get(key), **self._carriers[key].figures()}
                for key in sorted(self._carriers)
            },
        }

    def hourly(self, origin: str | None = None, carrier: str | None = None) -> list[dict[str, Any]]:
        """A row for each hour (UTC, of the scheduled departure), origin and carrier, in this order, of those asked for."""
        return [
            {**cell._asdict(), **self._cells[cell].figures()}
            for cell in sorted(self._cells)
            if origin in (None, cell.origin) and carrier in (None, cell.carrier)
        ]

    def worst(self, n: int = 5) -> list[dict[str, Any]]:
        """The `n` (at most 100) longest departure delays, the longest first, equal ones by flight id."""
        return [self._flights[flight_id].as_row() for _, flight_id in self._worst[: max(n, 0)]]

    def aircraft(self, tail_number: str) -> dict[str, Any]:
        """One aircraft's legs in the order of their schedule, with the delay it has gathered by each in its day."""
        return {
            "tail_number": tail_number,
            "plane": self._planes.get(tail_number),
            "legs": _with_running_delay(self._by_tail.get(tail_number, ())),
        }

    def legs(self) -> list[dict[str, Any]]:
        """The legs of all aircraft, by tail number."""
        return [
            leg
            for tail in sorted(self._by_tail)
            for leg in _with_running_delay(self._by_tail[tail])
        ]

    def changes(self, since: int = 0) -> dict[str, Any]:
        """What a live view shows: the summary, and of the hours those that changed after version `since`."""
        return {
            **self.summary(),
            "hours": {
                hour: {"version": tally.version, **tally.figures()}
                for hour, tally in sorted(self._hours.items())
                if tally.version > since
            },
            "worst": self.worst(8),
            "recent": list(self._recent)[::-1],
        }


class DelayBook(FlightBook):
    """Counts events, each once."""

    def count(self, event: Enriched, counted_at: float) -> bool:
        """Counts `event` unless it has been counted; says whether it was new. `counted_at`: seconds since 1970."""
        flight = self._flight(event)
        kind = event["kind"]
        if flight.seen & _BIT[kind]:
            self.duplicates += 1
            return False
        flight.seen |= _BIT[kind]
        self.version += 1
        self.counted += 1
        for tally in self._tallies(event):
            tally.count(event, self.version)
        if kind == "departed":
            flight.dep_delay = event["dep_delay"]
            insort(self._worst, (-flight.dep_delay, flight.flight_id))
            del self._worst[WORST_KEPT:]
        elif kind == "arrived":
            flight.arr_delay = event["arr_delay"]
        elif kind == "cancelled":
            flight.is_cancelled = True
        self._note(event, counted_at)
        return True

    def _flight(self, event: Enriched) -> FlightState:
        flight = self._flights.get(event["flight_id"])
        if flight is None:
            flight = self._flights[event["flight_id"]] = FlightState(
                flight_id=event["flight_id"],
                date=event["date"],
                carrier=event["carrier"],
                origin=event["origin"],
                dest=event["dest"],
                tail_number=event["tail_number"],
                scheduled_departure=event["scheduled_departure"],
            )
            if flight.tail_number is not None:
                self._by_tail.setdefault(flight.tail_number, []).append(flight)
                self._planes[flight.tail_number] = event["plane"]
        return flight

    def _tallies(self, event: Enriched) -> Iterator[Tally]:
        """The groups an event belongs to, all by the flight's schedule, so that a flight's events stay together."""
        hour = event["scheduled_departure"][:13] + ":00:00Z"
        carrier, origin = event["carrier"], event["origin"]
        if event["carrier_name"]:
            self._carrier_names[carrier] = event["carrier_name"]
        yield self._total
        for groups, key in (
            (self._hours, hour),
            (self._carriers, carrier),
            (self._origins, origin),
            (self._visibility, visibility_band(_visibility(event["weather"]))),
        ):
            yield groups.setdefault(key, Tally())
        yield self._cells.setdefault(Cell(hour, origin, carrier), Tally())

    def _note(self, event: Enriched, counted_at: float) -> None:
        emitted_at = event["emitted_at"]
        self.latency.add(counted_at - emitted_at)
        self.last_counted_at = counted_at
        if self.first_emitted_at is None or emitted_at < self.first_emitted_at:
            self.first_emitted_at = emitted_at
        self.event_time = max(self.event_time, event["event_time"])
        if event["kind"] == "cancelled" or event.get("dep_delay", 0) >= NOTABLE_DELAY_MIN:
            self._recent.append({key: event.get(key) for key in RECENT_COLUMNS})


def _with_running_delay(flights: Iterable[FlightState]) -> list[dict[str, Any]]:
    """Rows with `running_delay`: the sum of the departure delays of the aircraft's day up to and with this leg."""
    rows: list[dict[str, Any]] = []
    day, running = "", 0
    for flight in sorted(flights, key=lambda f: (f.date, f.scheduled_departure, f.flight_id)):
        if flight.date != day:
            day, running = flight.date, 0
        running += flight.dep_delay or 0
        rows.append({**flight.as_row(), "running_delay": running})
    return rows


class Books:
    """The books of the newest replays.

    Run ids sort by time, so an event that an aborted run left in a queue never disturbs a later one: it goes to its own
    book, or, if that is no longer kept, is passed over and counted in `stale`.
    """

    def __init__(self, kept: int = 3) -> None:
        self.kept = kept
        self.stale = 0
        self._books: dict[str, FlightBook] = {}

    def count(self, event: Enriched, counted_at: float) -> bool:
        """Counts `event` in the book of its run; says whether it was new."""
        book = self.of(event["run"], DelayBook)
        if book is None:
            self.stale += 1
            return False
        return book.count(event, counted_at)

    def get(self, run: str | None = None) -> FlightBook:
        """The book of `run`, by default of the newest; an empty one if nothing of it has been counted."""
        if run is None:
            run = max(self._books, default="")
        return self._books.get(run) or FlightBook(run)

    def of(self, run: str, kind: type[B]) -> B | None:
        """The book of a run, of its kind, begun if there is none; `None` if it is no longer kept."""
        book = self._books.get(run)
        if book is None:
            if len(self._books) >= self.kept:
                oldest = min(self._books)
                if run < oldest:
                    return None
                del self._books[oldest]
            book = self._books[run] = kind(run)
        return book if isinstance(book, kind) else None
