"""When a timer ticks: the grid, cron expressions, and the two nights in which clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.entrypoints.schedules import CronSchedule, Grid, Schedule

starts = st.floats(0, 1e7)
intervals = st.floats(0.001, 1e5)
BERLIN = ZoneInfo("Europe/Berlin")


def ticks(schedule: Schedule, since: str, count: int) -> list[str]:
    """The first ticks after a moment, in UTC."""
    time = datetime.fromisoformat(since).timestamp()
    found = []
    for _ in range(count):
        time = schedule.after(time)
        found.append(datetime.fromtimestamp(time, UTC).strftime("%m-%d %H:%M"))
    return found


# --- the grid ----------------------------------------------------------------------------------------


@given(started=starts, interval=intervals, elapsed=st.floats(0, 1e6))
def test_next_tick_is_the_first_one_that_is_not_due_yet(
    started: float, interval: float, elapsed: float
) -> None:
    now, grid = started + elapsed, Grid(started, interval)

    tick = grid.after(now)

    assert tick > now
    before = grid.latest(now)
    assert before is None or before <= now
    assert before is None or grid.after(before) == tick
    # A tick before is due, but for what rounding of such sums can hide.
    assert tick == started + interval or tick - interval <= now + 1e-8 * max(now, 1.0)


@given(started=starts, interval=st.floats(0.01, 1e4), number=st.integers(1, 10_000))
def test_ticks_of_a_grid_are_counted_and_found_from_both_sides(
    started: float, interval: float, number: int
) -> None:
    grid, tick = Grid(started, interval), started
    for _ in range(number % 50 + 1):
        tick = grid.after(tick)
    following = grid.after(tick)

    assert grid.latest(tick) == tick
    assert grid.earlier(following) == tick
    assert grid.count(tick, following) == 0
    assert grid.count(started, following) == number % 50 + 1
    assert grid.count(tick + 0.3 * interval, grid.after(following)) == 1


# --- cron ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 6 * * *", ["11-26 06:00", "11-27 06:00", "11-28 06:00"]),
        ("*/20 6 * * *", ["11-26 06:00", "11-26 06:20", "11-26 06:40"]),
        ("0 6 * * MON-FRI", ["11-26 06:00", "11-27 06:00", "11-30 06:00"]),
        ("0 0 L * *", ["11-30 00:00", "12-31 00:00", "01-31 00:00"]),
        ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00", "02-29 00:00"]),
        ("30 0 6 * * *", ["11-26 06:00", "11-27 06:00", "11-28 06:00"]),
    ],
)
def test_cron_expressions_in_utc(expression: str, expected: list[str]) -> None:
    assert ticks(CronSchedule(expression, UTC), "2026-11-26T00:00Z", 3) == expected


@pytest.mark.parametrize(
    ("expression", "since", "expected"),
    [
        # 2026-03-29: 02:00 becomes 03:00 at 01:00 UTC. A time of day in the gap comes right after it, and once.
        ("30 2 * * *", "2026-03-28T00:00Z", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("15,45 2 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 00:15", "03-30 00:45"]),
        ("0 3 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 01:00"]),
        ("0 2,3 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 00:00", "03-30 01:00"]),
        # With seconds it is the same.
        ("0 30 2 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 00:30"]),
        # A distance goes on as if nothing were; in the hour that is not there, nothing comes.
        ("*/30 * * * *", "2026-03-29T00:15Z", ["03-29 00:30", "03-29 01:00", "03-29 01:30"]),
        ("*/30 2 * * *", "2026-03-28T12:00Z", ["03-30 00:00", "03-30 00:30"]),
        # 2026-10-25: 03:00 becomes 02:00 at 01:00 UTC. A time of day comes the first time only.
        ("30 2 * * *", "2026-10-24T12:00Z", ["10-25 00:30", "10-26 01:30"]),
        ("30 2 * * *", "2026-10-25T00:30Z", ["10-26 01:30"]),
        ("30 2 * * *", "2026-10-25T01:15Z", ["10-26 01:30"]),
        ("0 30 2 * * *", "2026-10-24T12:00Z", ["10-25 00:30", "10-26 01:30"]),
        ("0 3 * * *", "2026-10-24T12:00Z", ["10-25 02:00", "10-26 02:00"]),
        # A distance goes on through both hours.
        ("*/30 * * * *", "2026-10-25T00:15Z", ["10-25 00:30", "10-25 01:00", "10-25 01:30"]),
        ("*/30 2 * * *", "2026-10-24T12:00Z", ["10-25 00:00", "10-25 00:30", "10-25 01:00"]),
    ],
)
def test_skipped_and_doubled_hour(expression: str, since: str, expected: list[str]) -> None:
    schedule = CronSchedule(expression, BERLIN)

    assert ticks(schedule, since, len(expected)) == expected


def test_clocks_that_are_set_back_by_half_an_hour_lose_no_tick() -> None:
    """Lord Howe Island, 2006-04-02: 02:00 becomes 01:30 at 15:00 UTC."""
    schedule = CronSchedule("0 */5 * * *", ZoneInfo("Australia/Lord_Howe"))

    expected = ["04-01 13:00", "04-01 18:30", "04-01 23:30", "04-02 04:30"]
    assert ticks(schedule, "2006-04-01T09:00Z", 4) == expected


def test_a_day_that_is_skipped_as_a_whole() -> None:
    """Samoa went from 29 December to 31 December 2011."""
    schedule = CronSchedule("0 6 * * *", ZoneInfo("Pacific/Apia"))

    assert ticks(schedule, "2011-12-29T00:00Z", 3) == ["12-29 16:00", "12-30 10:00", "12-30 16:00"]


EXPRESSIONS = [
    *("0 6 * * *", "30 2 * * *", "15,45 1-3 * * *", "*/7 * * * *", "0 */5 * * *", "0 2 29 2 *"),
    *("0 0 1 * *", "30 1 * * SUN", "*/20 30 2 * * *", "* * * * * *"),
]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]


@given(
    expression=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(ZONES),
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001
    is_near_a_change=st.booleans(),
)
def test_ticks_are_one_row_from_whichever_side_it_is_looked_at(
    expression: str, zone: str, moment: datetime, is_near_a_change: bool
) -> None:
    if is_near_a_change:  # clocks go forward in March and April, back in October and November
        month, day = (3, 4, 10, 11)[moment.month % 4], min(moment.day, 30)
        moment = moment.replace(hour=moment.hour % 4, month=month, day=day)
    now = moment.replace(tzinfo=UTC).timestamp()
    schedule = CronSchedule(expression, ZoneInfo(zone))

    row = [schedule.after(now)]
    for _ in range(3):
        row.append(schedule.after(row[-1]))

    assert all(earlier < later for earlier, later in pairwise([now, *row]))
    assert [schedule.latest(tick) for tick in row] == row
    assert [schedule.latest(tick - 0.5) for tick in row[1:]] == row[:-1]
    assert [schedule.earlier(tick) for tick in row[1:]] == row[:-1]
    assert schedule.count(row[0], row[-1]) == 2
    before = schedule.latest(now)
    assert before is not None
    assert before <= now
    assert schedule.after(before) == row[0]


def test_many_missed_ticks_are_found_quickly() -> None:
    schedule = CronSchedule("* * * * *", BERLIN)
    year = 365 * 86400.0
    began = datetime.now(UTC)

    assert schedule.latest(1.7e9) == 1.7e9 // 60 * 60
    assert schedule.count(1.7e9 - year, 1.7e9) == 1000
    assert datetime.now(UTC) - began < timedelta(seconds=2)
