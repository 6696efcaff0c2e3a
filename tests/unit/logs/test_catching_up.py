"""How a group comes along: done, rate, time left; never beyond the end, never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mycelia.logs.catching_up import CatchingUp


def test_rate_and_time_left_are_of_the_last_seconds() -> None:
    way = CatchingUp({0: 0, 1: 50}, {0: 1000, 1: 100})
    first = way.heard({}, 0.0)
    way.heard({0: 10}, 10.0)
    fast = way.heard({0: 510, 1: 100}, 20.0)

    assert (first.done, first.total, first.per_s, first.eta_s) == (0, 1050, None, None)
    assert (fast.done, fast.left) == (560, 490)
    assert fast.per_s == 28.0
    assert fast.eta_s == 490 / 28


def test_what_does_not_move_for_a_while_has_no_rate() -> None:
    way = CatchingUp({0: 0}, {0: 100})
    way.heard({0: 10}, 0.0)

    assert [way.heard({0: 50}, now).per_s is None for now in (5.0, 10.0, 25.0, 40.0)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_partition_that_nobody_has_told_of_has_not_begun() -> None:
    way = CatchingUp({}, {0: 100, 1: 0})

    assert way.heard({0: 100, 7: 3}, 1.0).left == 0


@given(
    st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 2000)), min_size=1),
    st.dictionaries(st.integers(0, 3), st.integers(0, 1000)),
    st.dictionaries(st.integers(0, 3), st.integers(0, 1000), min_size=1),
)
def test_done_stays_within_the_way(
    told: list[dict[int, int]], begin: dict[int, int], ends: dict[int, int]
) -> None:
    way = CatchingUp(begin, ends)

    for now, places in enumerate(told):
        figures = way.heard(places, float(now))
        assert 0 <= figures.done <= figures.total
        assert 0 <= figures.share <= 1
        assert figures.per_s is None or figures.per_s > 0
