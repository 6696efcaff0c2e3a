"""Deadlines and the wheel that watches them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.call import DeadlineWheel, deadline_to_wire, monotonic_from_wall, tighter


@given(
    remaining=st.floats(-1000, 1000),
    monotonic=st.floats(0, 1e6),
    wall=st.floats(1e9, 2e9),
    skew=st.floats(0, 100),
)
def test_deadline_survives_the_wire_to_the_millisecond_whatever_the_monotonic_clocks_read(
    remaining: float, monotonic: float, wall: float, skew: float
) -> None:
    sent = deadline_to_wire(monotonic + remaining, monotonic=monotonic, wall=wall)
    other_monotonic = monotonic / 3 + skew
    received = sent / 1000 + monotonic_from_wall(monotonic=other_monotonic, wall=wall)

    assert received - other_monotonic == pytest.approx(remaining, abs=0.0021)


def test_time_spent_in_the_queue_counts_against_the_deadline() -> None:
    sent = deadline_to_wire(110.0, monotonic=100.0, wall=5000.0)
    received = sent / 1000 + monotonic_from_wall(monotonic=700.0, wall=5004.0)

    assert received == pytest.approx(706.0, abs=0.002)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(None, None, None), (1.0, None, 1.0), (None, 2.0, 2.0), (1.0, 2.0, 1.0), (3.0, 2.0, 2.0)],
)
def test_tighter_is_the_earlier_deadline_and_none_is_never(
    first: float | None, second: float | None, expected: float | None
) -> None:
    assert tighter(first, second) == expected


@given(
    st.dictionaries(st.integers(), st.floats(0, 100), max_size=40),
    st.sets(st.integers()),
    st.floats(0, 120),
)
def test_wheel_reports_each_key_once_never_early_and_at_most_a_slot_late(
    deadlines: dict[int, float], removed: set[int], now: float
) -> None:
    wheel: DeadlineWheel[int] = DeadlineWheel(resolution_s=0.5)
    slots = {key: wheel.add(key, deadline) for key, deadline in deadlines.items()}
    for key in removed & deadlines.keys():
        wheel.discard(key, slots[key])
    watched = {key: d for key, d in deadlines.items() if key not in removed}

    expired = wheel.expire(now)

    assert len(expired) == len(set(expired))
    assert {key for key, d in watched.items() if d <= now - 0.5} <= set(expired)
    assert all(watched[key] <= now for key in expired)
    assert len(wheel) == len(watched) - len(expired)
    assert wheel.expire(now) == []


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_wheel_is_empty_when_one_wakes_up_at_each_next_expiry(deadlines: list[float]) -> None:
    wheel: DeadlineWheel[int] = DeadlineWheel(resolution_s=0.5)
    for key, deadline in enumerate(deadlines):
        wheel.add(key, deadline)
    found: list[int] = []
    while (due := wheel.next_expiry()) is not None:
        found += wheel.expire(due)

    assert sorted(found) == list(range(len(deadlines)))


def test_wheel_keeps_no_slot_of_keys_that_are_gone() -> None:
    wheel: DeadlineWheel[str] = DeadlineWheel()
    slot = wheel.add("a", 5.0)
    wheel.discard("a", slot)

    assert wheel.next_expiry() is None
