"""Which tick a timer runs, and what becomes of missed ones: decided without a clock."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.entrypoints.agenda import Agenda, Due
from mycelia.entrypoints.schedules import CronSchedule, Grid

DAY = 86400.0
SIX = datetime(2026, 11, 26, 6, tzinfo=UTC).timestamp()
DAILY = CronSchedule("0 6 * * *", UTC)


def run(agenda: Agenda, now: float) -> list[float]:
    """What is run at `now`, by workers that take no time."""
    ran = []
    while (due := agenda.look(now)).tick is not None:
        ran.append(due.tick)
        agenda.done(due.tick)
        assert len(ran) < 1000
    assert due.look_at > now
    return ran


def test_a_tick_runs_when_it_is_due_and_once() -> None:
    agenda = Agenda(DAILY, "skip", SIX - 100)

    assert agenda.look(SIX - 1) == Due(None, 0, SIX)
    assert agenda.look(SIX) == Due(SIX, 0, SIX + DAY)
    agenda.done(SIX)
    assert agenda.look(SIX) == Due(None, 0, SIX + DAY)
    assert agenda.look(SIX - 0.001) == Due(None, 0, SIX + DAY)  # woken a moment early


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", []),
        ("once", [SIX + 3 * DAY]),
        ("all", [SIX + DAY, SIX + 2 * DAY, SIX + 3 * DAY]),
    ],
)
def test_ticks_missed_in_an_absence(missed: Any, expected: list[float]) -> None:
    """Back on the third day at nine."""
    agenda = Agenda(DAILY, missed, SIX)

    assert run(agenda, SIX + 3 * DAY + 3 * 3600) == expected
    assert run(agenda, SIX + 4 * DAY) == [SIX + 4 * DAY]


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
@pytest.mark.parametrize("late", [0.0, 12.0, 30.0])
def test_another_instance_that_takes_over_is_in_time(missed: Any, late: float) -> None:
    agenda = Agenda(DAILY, missed, SIX - DAY)

    assert run(agenda, SIX + late) == [SIX]


def test_of_very_many_missed_ticks_the_newest_are_run() -> None:
    agenda = Agenda(Grid(0.0, 1.0), "all", 0.0, at_most=5)

    due = agenda.look(1000.0)

    assert due == Due(996.0, 995, 997.0)
    assert run(agenda, 1000.0) == [996.0, 997.0, 998.0, 999.0, 1000.0]


@pytest.mark.parametrize(
    ("missed", "left_out", "then"),
    [("skip", 3, []), ("once", 0, [4.0]), ("all", 0, [2.0, 3.0, 4.0])],
)
def test_ticks_that_come_due_while_the_method_runs(
    missed: Any, left_out: int, then: list[float]
) -> None:
    agenda = Agenda(Grid(0.0, 1.0), missed, 0.0)
    agenda.done(1.0)

    assert agenda.worker_ended(4.5) == left_out
    assert run(agenda, 4.5) == then
    assert run(agenda, 5.0) == [5.0]


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_clock_that_goes_back_a_little_repeats_nothing(missed: Any) -> None:
    hourly = CronSchedule("0 * * * *", UTC)
    agenda = Agenda(hourly, missed, SIX - 1)
    assert run(agenda, SIX) == [SIX]

    assert run(agenda, SIX - 2 * 3600) == []
    assert run(agenda, SIX) == []
    assert run(agenda, SIX + 3600) == [SIX + 3600]


def test_a_clock_that_was_wrong_and_is_set_right_goes_on_from_there() -> None:
    agenda = Agenda(DAILY, "once", SIX - 1)
    in_2031 = SIX + 5 * 365 * DAY
    assert run(agenda, in_2031 + 1) != []

    assert run(agenda, SIX + 10) == []
    assert run(agenda, SIX + DAY) == [SIX + DAY]


@given(
    missed=st.sampled_from(["skip", "once", "all"]),
    interval=st.floats(0.01, 100),
    durations=st.lists(st.floats(0, 500), min_size=1, max_size=30),
)
def test_every_tick_is_run_or_counted_and_none_twice(
    missed: Any, interval: float, durations: list[float]
) -> None:
    grid = Grid(100.0, interval)
    agenda = Agenda(grid, missed, 100.0, at_most=7, on_time=float("inf"))
    now, ran, left_out = 100.0, [], 0
    for duration in durations:
        due = agenda.look(now)
        while due.tick is None:
            left_out += due.left_out
            now = due.look_at
            due = agenda.look(now)
        assert due.tick <= now
        left_out += due.left_out
        ran.append(due.tick)
        agenda.done(due.tick)
        now += duration
        left_out += agenda.worker_ended(now)

    assert ran == sorted(set(ran))
    assert len(ran) + left_out == grid.count(100.0, agenda.last) + 1


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_failed_tick_is_tried_again_until_the_next_one_or_before_it(missed: Any) -> None:
    agenda = Agenda(Grid(0.0, 60.0), missed, 0.0)
    agenda.done(60.0)
    agenda.worker_ended(61.0)

    assert agenda.may_try_again(119.9)
    assert agenda.may_try_again(120.0) == (missed == "all")


@pytest.mark.parametrize(
    ("missed", "expected"),
    [("skip", [True, False]), ("once", [False, False]), ("all", [True, True])],
)
def test_a_tick_that_came_due_meanwhile_stands_for_the_failed_one_where_one_is_run_for_all(
    missed: Any, expected: list[bool]
) -> None:
    """With `skip` it has been left out."""
    agenda = Agenda(Grid(0.0, 60.0), missed, 0.0)
    agenda.done(60.0)
    agenda.worker_ended(125.0)

    assert [agenda.may_try_again(130.0), agenda.may_try_again(180.0)] == expected
