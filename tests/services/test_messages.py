"""How a flight becomes events."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from services.flights.dataset import Flight, flights_of, read_slice
from services.flights.messages import due_events, flight_event

DEPARTURE = datetime(2013, 2, 8, 22, 15, tzinfo=UTC)


def flight(**changes: Any) -> Flight:
    values: dict[str, Any] = {
        "flight_id": "2013-02-08-UA-1545-EWR",
        "date": "2013-02-08",
        "carrier": "UA",
        "number": 1545,
        "tail_number": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "scheduled_departure": DEPARTURE,
        "scheduled_arrival": DEPARTURE + timedelta(minutes=244),
        "dep_delay": 2,
        "arr_delay": 11,
        "air_time": 227,
        "distance": 1400,
    }
    return Flight(**values | changes)


def kinds(*flights: Flight) -> list[str]:
    return [due.kind for due in due_events(flights)]


def test_flight_is_announced_leaves_and_arrives() -> None:
    events = due_events([flight()])

    assert [(due.kind, due.time - DEPARTURE) for due in events] == [
        ("scheduled", timedelta(hours=-2)),
        ("departed", timedelta(minutes=2)),
        ("arrived", timedelta(minutes=244 + 11)),
    ]


def test_cancelled_flight_is_cancelled_when_it_was_to_leave() -> None:
    events = due_events([flight(dep_delay=None, arr_delay=None, air_time=None)])

    assert [due.kind for due in events] == ["scheduled", "cancelled"]
    assert events[1].time == DEPARTURE


def test_diverted_flight_never_arrives() -> None:
    assert kinds(flight(arr_delay=None, air_time=None)) == ["scheduled", "departed"]


@given(st.lists(st.tuples(st.integers(-43, 1301), st.none() | st.integers(-80, 120)), max_size=20))
def test_events_are_in_event_time_order_and_a_flight_is_announced_first(
    delays: list[tuple[int, int | None]],
) -> None:
    """`delays`: at departure, and what the flight lost or made up in the air."""
    flights = [
        flight(flight_id=str(number), dep_delay=dep, arr_delay=None if lost is None else dep + lost)
        for number, (dep, lost) in enumerate(delays)
    ]

    events = due_events(flights)

    assert [due.time for due in events] == sorted(due.time for due in events)
    for one in flights:
        own = [due.kind for due in events if due.flight is one]
        assert own == ["scheduled", "departed", "arrived"][: 2 + (one.arr_delay is not None)]


def test_payload_is_plain_json_with_utc_times() -> None:
    arrived = due_events([flight()])[-1]

    payload = flight_event(arrived, "run-1", emitted_at=12.5)

    assert json.loads(json.dumps(payload)) == {
        "event_id": "run-1/2013-02-08-UA-1545-EWR/arrived",
        "run": "run-1",
        "flight_id": "2013-02-08-UA-1545-EWR",
        "kind": "arrived",
        "event_time": "2013-02-09T02:30:00Z",
        "emitted_at": 12.5,
        "date": "2013-02-08",
        "carrier": "UA",
        "number": 1545,
        "tail_number": "N14228",
        "origin": "EWR",
        "dest": "IAH",
        "scheduled_departure": "2013-02-08T22:15:00Z",
        "scheduled_arrival": "2013-02-09T02:19:00Z",
        "distance": 1400,
        "dep_delay": 2,
        "arr_delay": 11,
        "air_time": 227,
    }


def test_only_what_has_happened_is_said() -> None:
    scheduled, departed, _ = (flight_event(due, "r", 0.0) for due in due_events([flight()]))

    assert not {"dep_delay", "arr_delay", "air_time"} & scheduled.keys()
    assert departed["dep_delay"] == 2
    assert not {"arr_delay", "air_time"} & departed.keys()


def test_every_event_of_the_fortnight_has_its_own_id() -> None:
    events = due_events(flights_of(read_slice()))

    ids = {flight_event(due, "r", 0.0)["event_id"] for due in events}

    assert len(ids) == len(events) == 2 * 13_176 + 12_069
