"""When a handler stops, tries and goes on: by table, and whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia import KillSwitch
from mycelia.errors import ConfigError
from mycelia.policies.kill_switch import (
    Consumption,
    ConsumptionState,
    FailureWindow,
    kill_switch_of,
)

SWITCH = KillSwitch(failure_rate=0.5, minimum=4, window=10, pause=5, probes=2)
CONSUMING, STOPPED, PROBING = ConsumptionState


def feed(consumption: Consumption, outcomes: str, now: float = 0.0) -> list[bool]:
    """One outcome for each letter, `x` for a failure."""
    return [consumption.outcome(one == "x", began_at=now, now=now) for one in outcomes]


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("xxx", CONSUMING),  # too few to tell
        ("xxxx", STOPPED),
        ("..xx", STOPPED),  # just the rate
        ("...xx", CONSUMING),
        ("xxx.", CONSUMING),  # a success stops nobody
        ("xxx.x", STOPPED),
        ("", CONSUMING),
    ],
)
def test_stops_at_its_rate_among_enough_outcomes(outcomes: str, state: ConsumptionState) -> None:
    consumption = Consumption(SWITCH)

    feed(consumption, outcomes)

    assert consumption.state is state
    assert consumption.stops == (state is STOPPED)


def test_what_is_older_than_the_window_does_not_count() -> None:
    consumption = Consumption(SWITCH)
    feed(consumption, "xxx", 0.0)

    feed(consumption, "x", 10.6)

    assert consumption.state is CONSUMING


def test_one_failure_while_probing_stops_it_again_and_successes_let_it_go_on() -> None:
    consumption = Consumption(SWITCH)
    feed(consumption, "xxxx", 0.0)
    consumption.probe(5.0)

    assert feed(consumption, ".x", 5.0) == [False, True]
    assert consumption.state is STOPPED
    consumption.probe(10.0)
    assert feed(consumption, "..", 10.0) == [False, True]

    assert consumption.state is CONSUMING
    assert consumption.window.outcomes == 0
    assert consumption.stops == 1


def test_outcomes_of_what_began_before_decide_nothing() -> None:
    consumption = Consumption(SWITCH)
    feed(consumption, "xxxx", 0.0)
    assert not any(feed(consumption, "..x.", 1.0))
    consumption.probe(5.0)

    assert not consumption.outcome(True, began_at=4.9, now=6.0)
    assert not consumption.outcome(False, began_at=4.9, now=6.0)

    assert consumption.state is PROBING
    with pytest.raises(ValueError, match="probing"):
        consumption.probe(7.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=200))
def test_window_counts_what_happened_within_it(steps: list[tuple[bool, float]]) -> None:
    window, now, past = FailureWindow(60.0), 0.0, []
    for is_failure, pause in steps:
        now += pause
        past.append((now, is_failure))
        window.add(is_failure, now)

    sure = [failed for at, failed in past if at > now - 60.0]
    possible = [failed for at, failed in past if at >= now - 63.0001]
    assert len(sure) <= window.outcomes <= len(possible)
    assert sum(sure) <= window.failures <= sum(possible)
    assert len(window._parts) <= 22


@given(
    st.lists(st.one_of(st.booleans(), st.none()), max_size=300),
    st.integers(1, 10),
    st.floats(0.01, 1),
)
def test_whatever_comes_it_stops_by_failures_only_and_goes_on_by_successes_only(
    steps: list[bool | None], minimum: int, rate: float
) -> None:
    consumption = Consumption(KillSwitch(failure_rate=rate, minimum=minimum))
    for now, step in enumerate(steps):
        before = consumption.state
        if step is None:
            if before is STOPPED:
                consumption.probe(now)
            continue
        changed = consumption.outcome(step, began_at=now, now=now)
        assert changed == (consumption.state is not before)
        if changed:
            assert consumption.state is (STOPPED if step else CONSUMING)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (False, None),
        (True, KillSwitch()),
        ({}, KillSwitch()),
        ({"failure_rate": 0.5, "pause": "2m"}, KillSwitch(failure_rate=0.5, pause=120)),
    ],
)
def test_configuration_is_read(value: Any, expected: KillSwitch | None) -> None:
    assert kill_switch_of(value, "mycelia.kill_switch") == expected


@pytest.mark.parametrize(
    "value",
    [
        "yes",
        {"rate": 1},
        {"failure_rate": 0},
        {"failure_rate": 1.1},
        {"failure_rate": "x"},
        {"minimum": 0},
        {"minimum": True},
        {"probes": 1.5},
        {"pause": "soon"},
        {"pause": 0},
        {"window": -1},
    ],
)
def test_what_is_no_kill_switch_is_told_with_its_key(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"mycelia\.kill_switch"):
        kill_switch_of(value, "mycelia.kill_switch")
