"""The flows of `delays`, driven without a broker: every figure is the batch query's, in whatever order partitions are read, and through crashes."""

from __future__ import annotations

from typing import Any

import pytest
from services.flights.dataset import Tables, flights_of
from services.flights.delay_flows import aircraft_days, alerts, hourly, notable, scheduled, seats
from services.flights.flow_book import FlowBook
from services.flights.messages import due_events
from services.flights.records import (
    HAPPENED,
    OBSERVED,
    PLANES,
    Happening,
    Observation,
    PlaneRow,
    happening,
    observation,
    plane_row,
)
from services.flights.verify import Batch, compare
from tests.services.tables import EIGHTH, NINTH_TOO

from mycelia.flow import source
from mycelia.testing import FlowDriver

RUN = "run-1"


def driven(tables: Tables, shift_ms: int = 0, **options: Any) -> FlowDriver:
    happened = source(HAPPENED.name, Happening)
    flights = scheduled(happened)
    outputs = {
        "hourly": hourly(flights, source(OBSERVED.name, Observation)),
        "seats": seats(flights, source(PLANES.name, PlaneRow)),
        "days": aircraft_days(flights),
        "notable": notable(flights),
        "alerts": alerts(happened),
    }
    driver = FlowDriver(outputs, partitions={HAPPENED.name: 2, OBSERVED.name: 2}, **options)
    # A table does not hold up what is joined to it, so it is read before.
    driver.append(PLANES.name, [plane_row(row) for row in tables.planes])
    driver.run()
    of_airport = {"EWR": 0, "LGA": 0, "JFK": 1}
    for row in sorted(tables.weather, key=lambda row: row["time_hour"]):
        driver.append(
            OBSERVED.name, [observation(row, shift_ms)], partition=of_airport[row["origin"]]
        )
    events: tuple[list[Happening], list[Happening]] = ([], [])
    for due in due_events(flights_of(tables)):
        events[of_airport[due.flight.origin]].append(happening(due, RUN, shift_ms, 100.0))
    for partition, some in enumerate(events):
        driver.append(HAPPENED.name, some, partition=partition, batch=200)
    driver.end()
    return driver


def book_of(driver: FlowDriver) -> FlowBook:
    book = FlowBook(RUN)
    for hour in driver.given("hourly"):
        book.take_hour(hour, 101.0)
    for one in driver.given("seats"):
        book.take_seats(one)
    for day in driver.given("days"):
        book.take_day(day)
    for one in driver.given("notable"):
        book.take_notable(one)
    for alert in driver.given("alerts"):
        book.take_alert(alert)
    return book


def differences(book: FlowBook, tables: Tables) -> list[str]:
    batch = Batch(tables)
    try:
        found = compare(batch, book.changes(), book.hourly(), book.legs(), book.worst(100))
        found.row("alerts", batch.alerts(), book.alerts)
        return found.differences
    finally:
        batch.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("tables", "seed", "crash_rate", "shift_days"),
    [
        pytest.param(NINTH_TOO, 1, 0.0, 0, id="two-days"),
        pytest.param(EIGHTH, 2, 0.0, 365, id="one-day-a-year-later", marks=pytest.mark.long),
        pytest.param(EIGHTH, 3, 0.1, 0, id="one-day-with-crashes", marks=pytest.mark.long),
        pytest.param(NINTH_TOO, 2, 0.0, 365, id="a-year-later", marks=pytest.mark.long),
        pytest.param(NINTH_TOO, 3, 0.1, 0, id="with-crashes", marks=pytest.mark.long),
    ],
)
def test_every_figure_is_the_batch_query_s(
    tables: Tables, seed: int, crash_rate: float, shift_days: int
) -> None:
    driver = driven(tables, shift_ms=shift_days * 86_400_000, seed=seed, crash_rate=crash_rate)
    book = book_of(driver)

    assert differences(book, tables) == []
    assert sum(book.alerts.values()) > 15
    assert driver.rejected == []
    assert (driver.crashes > 0) == (crash_rate > 0)
