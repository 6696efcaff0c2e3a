"""How long a method usually takes."""

from hypothesis import given
from hypothesis import strategies as st

from mycelia.runtime.service_time import ServiceTime


def test_nothing_is_usual_before_the_first() -> None:
    assert ServiceTime().usual == 0.0


def test_what_is_always_the_same_becomes_the_usual() -> None:
    time = ServiceTime()
    for _ in range(50):
        time.add(0.04)

    assert 0.04 <= time.usual < 0.0401


def test_a_single_outlier_does_not_become_the_usual_and_a_change_does() -> None:
    time = ServiceTime()
    for _ in range(50):
        time.add(0.04)
    time.add(4.0)
    for _ in range(40):
        time.add(0.04)
    assert time.usual < 0.1

    for _ in range(40):
        time.add(0.4)
    assert 0.35 < time.usual < 0.5


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_it_stays_within_what_it_has_seen(durations: list[float]) -> None:
    time = ServiceTime()
    for took in durations:
        time.add(took)

    assert 0 <= time.mean <= max(durations) * 1.000001
    assert 0 <= time.deviation <= max(durations) * 1.000001
