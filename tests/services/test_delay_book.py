"""The delay statistics: exact, each event once, whatever the order."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services.flights.dataset import Tables
from services.flights.delay_book import Books, DelayBook, Tally
from services.flights.messages import Enriched
from services.flights.records import visibility_band
from services.flights.verify import Batch, Comparison, compare
from tests.services.pipeline_by_hand import enriched_events
from tests.services.tables import FORTNIGHT


def book_of(events: list[Enriched]) -> DelayBook:
    book = DelayBook("run-1")
    for event in events:
        book.count(event, counted_at=101.0)
    return book


def compared(tables: Tables, book: DelayBook) -> Comparison:
    batch = Batch(tables)
    try:
        return compare(batch, book.changes(), book.hourly(), book.legs(), book.worst(100))
    finally:
        batch.close()


def some_flights(count: int, rng: Random) -> Tables:
    return FORTNIGHT._replace(flights=rng.sample(FORTNIGHT.flights, count))


@pytest.mark.timeout(120)
def test_every_figure_of_the_fortnight_is_the_batch_query_s() -> None:
    events = enriched_events(FORTNIGHT)
    Random(8).shuffle(events)

    result = compared(FORTNIGHT, book_of(events))

    assert result.differences == []
    assert result.figures > 100_000


@settings(max_examples=30)
@given(count=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_neither_order_nor_redelivery_changes_a_figure(count: int, seed: int) -> None:
    rng = Random(seed)
    tables = some_flights(count, rng)
    events = enriched_events(tables)
    arriving = events + rng.choices(events, k=rng.randrange(2 * len(events)))
    rng.shuffle(arriving)

    book = book_of(arriving)

    assert compared(tables, book).differences == []
    assert book.duplicates == len(arriving) - len(events)
    assert book.summary()["counted"] == len(events)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_a_missing_event_shows(seed: int) -> None:
    """The comparison can fail: leave one event out, and it does."""
    rng = Random(seed)
    tables = some_flights(10, rng)
    events = enriched_events(tables)
    events.pop(rng.randrange(len(events)))

    assert compared(tables, book_of(events)).differences


def test_count_says_whether_an_event_was_new() -> None:
    event = enriched_events(some_flights(1, Random(1)))[0]
    book = DelayBook("run-1")

    assert [book.count(event, 101.0), book.count(event, 102.0)] == [True, False]
    assert book.last_counted_at == 101.0


def test_late_is_more_than_fifteen_minutes() -> None:
    tally = Tally()
    departed = next(
        e for e in enriched_events(some_flights(1, Random(1))) if e["kind"] == "departed"
    )
    for delay in (14, 15, 16, -3):
        tally.count(departed | {"dep_delay": delay}, 1)

    figures = tally.figures()

    assert (figures["dep_late"], figures["dep_late_share"]) == (1, 0.25)
    assert (figures["dep_delay_mean"], figures["dep_delay_max"]) == (10.5, 16)


def test_empty_groups_have_no_means() -> None:
    figures = Tally().figures()

    assert (figures["dep_delay_mean"], figures["arr_late_share"], figures["dep_delay_max"]) == (
        None,
        None,
        None,
    )
    assert figures["departed"] == 0


def test_a_group_that_only_left_early_has_a_maximum_below_zero() -> None:
    tally = Tally()
    departed = next(
        e for e in enriched_events(some_flights(1, Random(1))) if e["kind"] == "departed"
    )
    tally.count(departed | {"dep_delay": -7}, 1)

    assert tally.figures()["dep_delay_max"] == -7


@pytest.mark.parametrize(
    ("miles", "band"),
    [
        (None, "not observed"),
        (0.0, "under 1 mile"),
        (0.99, "under 1 mile"),
        (1.0, "1 to 3 miles"),
        (3.0, "3 to 10 miles"),
        (9.9, "3 to 10 miles"),
        (10.0, "10 miles"),
    ],
)
def test_visibility_bands(miles: float | None, band: str) -> None:
    assert visibility_band(miles) == band


def test_worst_are_ordered_by_delay_then_flight_and_learn_their_arrival_later() -> None:
    book = book_of(enriched_events(FORTNIGHT._replace(flights=FORTNIGHT.flights[:2000])))

    worst = book.worst(5)

    keys = [(-row["dep_delay"], row["flight_id"]) for row in worst]
    assert keys == sorted(keys)
    assert worst[0]["arr_delay"] is not None
    assert (len(book.worst(0)), len(book.worst(-1)), len(book.worst(1000))) == (0, 0, 100)


def test_an_aircraft_s_delay_runs_through_its_day_and_begins_anew_the_next() -> None:
    book = book_of(enriched_events(FORTNIGHT))

    legs = book.aircraft("N15980")["legs"]
    days: dict[str, int] = {}
    for leg in legs:
        days[leg["date"]] = days.get(leg["date"], 0) + (leg["dep_delay"] or 0)
        assert leg["running_delay"] == days[leg["date"]]

    assert len(days) > 5
    assert [leg["running_delay"] for leg in legs if leg["date"] == "2013-02-10"][:2] == [415, 406]


def test_an_aircraft_that_has_not_flown_has_no_legs() -> None:
    assert DelayBook("run-1").aircraft("N1") == {"tail_number": "N1", "plane": None, "legs": []}


def test_hourly_is_selected_by_origin_and_carrier() -> None:
    book = book_of(enriched_events(some_flights(300, Random(3))))

    rows = book.hourly(origin="JFK", carrier="B6")

    assert rows == [r for r in book.hourly() if (r["origin"], r["carrier"]) == ("JFK", "B6")]
    assert rows
    assert book.hourly(origin="XXX") == []


def test_changes_since_a_version_are_the_hours_touched_after_it() -> None:
    events = enriched_events(some_flights(50, Random(4)))
    book = book_of(events[:40])
    seen = book.changes(0)

    later: dict[str, Any] = {}
    for event in events[40:]:
        book.count(event, 101.0)
        later[event["scheduled_departure"][:13] + ":00:00Z"] = True
    update = book.changes(seen["version"])

    assert update["hours"].keys() == later.keys()
    assert seen["hours"] | update["hours"] == book.changes(0)["hours"]
    assert book.changes(book.version)["hours"] == {}


def test_everything_it_says_is_json() -> None:
    book = book_of(enriched_events(some_flights(40, Random(5))))

    for said in (book.changes(), book.hourly(), book.legs(), book.worst(3), book.summary()):
        assert json.loads(json.dumps(said)) == said


def test_events_of_an_aborted_run_do_not_disturb_the_newest() -> None:
    tables = some_flights(20, Random(6))
    old, new = enriched_events(tables, run="20130101-a"), enriched_events(tables, run="20130102-b")
    books = Books()
    for left_over, current in zip(old, new, strict=True):
        books.count(current, 101.0)
        books.count(left_over, 101.0)

    assert books.get().run == "20130102-b"
    assert books.get().summary()["counted"] == len(new)
    assert books.get("20130101-a").summary()["counted"] == len(old)


def test_only_the_newest_runs_are_kept() -> None:
    event = enriched_events(some_flights(1, Random(7)))[0]
    books = Books(kept=2)
    for run in ("b", "c", "d"):
        books.count(event | {"run": run}, 101.0)

    assert not books.count(event | {"run": "a"}, 101.0)
    assert (books.stale, books.get().run) == (1, "d")
    assert [books.get(run).version for run in "abcd"] == [0, 0, 1, 1]


def test_asking_before_anything_was_counted() -> None:
    summary = Books().get().summary()

    assert (summary["counted"], summary["event_time"], summary["latency"]["count"]) == (0, "", 0)
