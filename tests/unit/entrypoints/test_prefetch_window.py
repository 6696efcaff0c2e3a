"""How many messages a consumer should have: bounds, direction and calm, over any history."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.entrypoints.prefetch_window import LOWER_AFTER_S, SETTLE_S, PrefetchWindow
from mycelia.errors import ConfigError
from mycelia.runtime import AdaptivePrefetch

seconds = st.floats(0, 1e4, allow_nan=False)
sizes = st.integers(0, 2**40)
events = st.lists(
    st.one_of(
        st.tuples(st.just("took"), seconds),
        st.tuples(st.just("came"), sizes),
        st.tuples(st.just("look"), seconds),
    ),
    max_size=80,
)


def adaptive_window(wait: float = 0.1, **options: Any) -> PrefetchWindow:
    adaptive = AdaptivePrefetch(wait=wait, **options)
    return PrefetchWindow(adaptive.least, adaptive, max_bytes=0)


@given(
    events,
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(0, 65035),
    st.integers(0, 10**9),
    st.integers(1, 1000),
)
def test_it_stays_within_its_bounds_whatever_is_seen(
    seen: list[tuple[str, Any]], workers: int, least: int, more: int, max_bytes: int, each: int
) -> None:
    adaptive = AdaptivePrefetch(least=least, most=least + more)
    window = PrefetchWindow(least, adaptive, max_bytes=max_bytes, each=each)
    now = 0.0
    for what, value in seen:
        if what == "took":
            window.took(value)
        elif what == "came":
            window.came(value)
        else:
            now += value
            found = window.look(now, workers, value / 2)
            assert 1 <= found == window.now <= adaptive.most
            assert max_bytes or found >= least


@given(st.floats(1e-5, 100), st.floats(1e-5, 100), st.integers(1, 200))
def test_the_longer_a_message_takes_the_fewer_are_wanted(
    one: float, other: float, workers: int
) -> None:
    wanted = []
    for took in sorted((one, other)):
        window = adaptive_window(least=1)
        window.took(took)
        wanted.append(window.wanted(workers))
        assert wanted[-1] >= min(workers, 2000)  # never so few that a worker has none

    assert wanted[0] >= wanted[1]


@given(st.integers(1, 2**30), st.integers(1, 2**34))
def test_bodies_of_one_size_fit_in_the_bytes(size: int, max_bytes: int) -> None:
    window = PrefetchWindow(5000, None, max_bytes=max_bytes)
    for _ in range(40):
        window.came(size)
    now = 0.0
    for _ in range(10):
        now += SETTLE_S
        window.look(now, 10)

    assert window.now == 1 or window.now * size <= max_bytes * 4 / 3


@given(st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=100), st.integers(1, 50))
def test_changes_are_rare(durations: list[float], workers: int) -> None:
    """Ten looks a second at a method whose time jumps: no two changes within half a second, and a quarter at least."""
    window = adaptive_window(least=1, most=65535)
    changes = [(-10.0, window.now)]
    for number, took in enumerate(durations):
        window.took(took)
        now = number / 10
        found = window.look(now, workers)
        if found != changes[-1][1]:
            changes.append((now, found))

    for (at, before), (then, after) in pairwise(changes):
        assert then - at >= SETTLE_S - 1e-6
        assert after >= before * 1.25 or after <= before * 0.75


def test_quick_method_is_given_more_at_once_and_a_slow_one_fewer_after_a_while() -> None:
    window = adaptive_window()
    for _ in range(100):
        window.took(0.001)
    assert window.look(0.0, 10) == 1010  # ten workers, and what they begin in a tenth of a second

    for _ in range(100):
        window.took(10.0)
    assert window.look(1.0, 10) == 1010
    assert window.look(1.0 + LOWER_AFTER_S, 10) == 11


def test_workers_that_do_not_end_count_as_slow_ones() -> None:
    window = adaptive_window(least=1)
    for _ in range(100):
        window.took(0.001)
    window.look(0.0, 10)

    window.look(1.0, 10, stalled_s=1.0)
    assert window.look(4.0, 10, stalled_s=4.0) == 11


def test_too_many_bytes_are_lowered_at_once_and_come_back() -> None:
    window = PrefetchWindow(200, None, max_bytes=1_000_000)
    assert window.look(0.0, 10) == 200
    for _ in range(50):
        window.came(100_000)
    assert 9 <= window.look(0.1, 10) <= 10
    for _ in range(200):
        window.came(100)

    assert window.look(0.2, 10) <= 10
    assert window.look(0.2 + SETTLE_S, 10) == 200


def test_without_adapting_it_is_what_was_said_and_follows_it() -> None:
    window = PrefetchWindow(200, None, max_bytes=0)
    for number in range(100):
        window.took(number)
        window.came(10**9)
        assert window.look(number, 10) == 200

    assert window.rebase(50) == 50


@pytest.mark.parametrize(
    "values",
    [
        {"least": 0},
        {"most": 65536},
        {"least": 11, "most": 10},
        {"wait": "soon"},
        {"wait": -1},
        {"least": True},
    ],
)
def test_what_cannot_be_is_said_where_it_is_written(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="AdaptivePrefetch"):
        AdaptivePrefetch(**values)
