"""The histogram of durations."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from services.flights.latency import Histogram

DURATIONS = st.lists(st.floats(1e-6, 3600), min_size=1, max_size=300)


def histogram_of(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


@given(DURATIONS, st.floats(0.01, 1))
def test_percentile_is_the_nearest_rank_within_two_percent(
    durations: list[float], share: float
) -> None:
    exact = sorted(durations)[max(1, math.ceil(share * len(durations))) - 1]

    (found,) = histogram_of(durations).percentiles([share])

    assert found is not None
    assert exact * (1 - 1e-9) <= found <= exact * 1.0201


@given(DURATIONS)
def test_order_does_not_matter(durations: list[float]) -> None:
    assert histogram_of(durations).as_ms() == histogram_of(durations[::-1]).as_ms()


def test_maximum_is_exact_and_bounds_every_percentile() -> None:
    histogram = histogram_of([0.0101])

    assert histogram.percentiles([0.5, 1.0]) == [0.0101, 0.0101]
    assert histogram.as_ms() == {
        "count": 1,
        "p50_ms": 10.1,
        "p95_ms": 10.1,
        "p99_ms": 10.1,
        "max_ms": 10.1,
    }


def test_empty_one_has_no_percentiles() -> None:
    assert Histogram().percentiles([0.5]) == [None]
    assert Histogram().as_ms()["max_ms"] is None


def test_durations_below_zero_count_as_next_to_nothing() -> None:
    assert histogram_of([-5.0, 0.0]).as_ms()["p99_ms"] == 0.001
