"""Clock times of the data, as instants."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.flights.clock import NEW_YORK, after, hhmm, iso, local_instant, next_local_instant

DENVER = ZoneInfo("America/Denver")
HONOLULU = ZoneInfo("Pacific/Honolulu")
DAYS = st.dates(date(2013, 1, 1), date(2013, 12, 31))
CLOCKS = st.builds(lambda h, m: h * 100 + m, st.integers(0, 23), st.integers(0, 59))
ZONES = st.sampled_from(
    [NEW_YORK, DENVER, HONOLULU, *map(ZoneInfo, ["America/Phoenix", "America/Puerto_Rico"])]
)
CHANGES = {date(2013, 3, 10), date(2013, 11, 3)}
"""The days on which the clocks of the mainland change."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("day", "clock", "zone", "instant"),
    [
        (date(2013, 2, 8), 517, NEW_YORK, "2013-02-08T10:17"),
        (date(2013, 7, 8), 517, NEW_YORK, "2013-07-08T09:17"),  # daylight saving time
        (date(2013, 2, 8), 0, NEW_YORK, "2013-02-08T05:00"),
        (date(2013, 2, 8), 2400, NEW_YORK, "2013-02-09T05:00"),
        (date(2013, 12, 31), 2400, HONOLULU, "2014-01-01T10:00"),
        (
            date(2013, 3, 10),
            230,
            NEW_YORK,
            "2013-03-10T07:30",
        ),  # skipped: 3:30 daylight saving time
        (date(2013, 11, 3), 130, NEW_YORK, "2013-11-03T05:30"),  # comes twice: the first
    ],
)
def test_clock_time_is_the_instant_its_zone_says(
    day: date, clock: int, zone: ZoneInfo, instant: str
) -> None:
    assert local_instant(day, clock, zone) == utc(instant)


@pytest.mark.parametrize("clock", [-1, 60, 1299, 2401, 9999])
def test_what_is_no_time_of_day_is_refused(clock: int) -> None:
    with pytest.raises(ValueError, match=str(clock)):
        local_instant(date(2013, 2, 8), clock, NEW_YORK)


@given(day=DAYS, clock=CLOCKS, zone=ZONES)
def test_an_instant_shows_the_clock_time_it_was_made_of(
    day: date, clock: int, zone: ZoneInfo
) -> None:
    instant = local_instant(day, clock, zone)

    if day not in CHANGES:
        assert hhmm(instant, zone) == clock
        assert instant.astimezone(zone).date() == day
    assert instant.tzinfo is UTC


@given(day=DAYS)
def test_midnight_at_the_end_of_a_day_begins_the_next(day: date) -> None:
    assert local_instant(day, 2400, NEW_YORK) == local_instant(day + timedelta(days=1), 0, NEW_YORK)


@given(
    start=st.integers(0, 363 * 24 * 60).map(lambda m: utc("2013-01-02") + timedelta(minutes=m)),
    clock=CLOCKS | st.just(2400),
    zone=ZONES,
)
def test_next_instant_is_the_first_that_shows_the_clock_time(
    start: datetime, clock: int, zone: ZoneInfo
) -> None:
    found = next_local_instant(start, clock, zone)

    assert start < found <= start + timedelta(hours=25)
    near_change = any(abs((found.date() - change).days) <= 1 for change in CHANGES)
    if not near_change:
        assert hhmm(found, zone) == clock % 2400
        assert found <= start + timedelta(days=1)


def test_arrival_after_midnight_is_on_the_next_day() -> None:
    departure = local_instant(date(2013, 2, 8), 2359, NEW_YORK)

    assert next_local_instant(departure, 436, ZoneInfo("America/Puerto_Rico")) == utc(
        "2013-02-09T08:36"
    )


def test_arrival_further_west_may_show_an_earlier_clock_time_than_the_departure() -> None:
    departure = local_instant(date(2013, 2, 8), 1000, NEW_YORK)

    assert next_local_instant(departure, 959, DENVER) == utc("2013-02-08T16:59")


def test_midnight_arrival_shortly_after_a_departure_before_midnight() -> None:
    departure = local_instant(date(2013, 2, 8), 2315, NEW_YORK)

    assert next_local_instant(departure, 2400, NEW_YORK) == utc("2013-02-09T05:00")
    assert next_local_instant(departure, 0, NEW_YORK) == utc("2013-02-09T05:00")


def test_delays_move_an_instant_both_ways() -> None:
    instant = utc("2013-02-08T10:00")

    assert iso(after(instant, 853)) == "2013-02-09T00:13:00Z"
    assert iso(after(instant, -43)) == "2013-02-08T09:17:00Z"
