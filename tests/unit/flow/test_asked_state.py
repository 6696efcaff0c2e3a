"""`as_state()`: open windows and the state of functions, as they are asked for, as of the last commit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mycelia.errors import ConfigError
from mycelia.flow import (
    FlowOutput,
    KeyContext,
    KeyedStream,
    OpenWindow,
    count,
    counting,
    hopping,
    max_of,
    session,
    sliding,
    source,
    sum_of,
    tumbling,
)
from mycelia.flow.asked_state import MOST_WINDOWS, reads_windows
from mycelia.flow.windows import WindowKind
from mycelia.testing import FlowDriver

Reading = tuple[str, int, int]
"""Key, event time, what it says."""


def readings() -> KeyedStream[str, Reading]:
    stream = source("readings", tuple).event_time(lambda one: one[1], unit="ms")
    return stream.key_by(lambda one: one[0])


def total(one: Reading) -> int:
    return one[2]


def driven(output: FlowOutput, *batches: list[Reading], **options: Any) -> FlowDriver:
    driver = FlowDriver({"asked": output}, **options)
    for batch in batches:
        driver.append("readings", batch)
    driver.run()
    return driver


def spans(windows: list[OpenWindow]) -> list[tuple[int, int, Any, bool]]:
    return [(one.start_ms, one.end_ms, one.value, one.is_closed) for one in windows]


KINDS: list[tuple[WindowKind, list[tuple[int, int, Any, bool]]]] = [
    (tumbling("1s"), [(1000, 2000, 5, False), (2000, 3000, 4, False)]),
    (
        hopping("2s", every="1s"),
        [(0, 2000, 5, False), (1000, 3000, 9, False), (2000, 4000, 4, False)],
    ),
    (session("500ms"), [(1000, 1900, 5, False), (2000, 2500, 4, False)]),
    (
        sliding("1s"),
        [(1, 1001, 2, False), (401, 1401, 5, False), (1001, 2001, 7, False)],
    ),
    (counting(2), [(2000, 2001, 4, False)]),
]


@pytest.mark.parametrize(("kind", "expected"), KINDS, ids=str)
def test_open_windows_of_each_kind_have_their_bounds_and_what_they_came_to(
    kind: WindowKind, expected: list[tuple[int, int, Any, bool]]
) -> None:
    stream = source("readings", tuple).event_time(lambda one: one[1], unit="ms", disorder="1h")
    windows = stream.key_by(lambda one: one[0]).window(kind).aggregate(sum_of(total))

    driver = driven(
        windows.as_state("open"),
        [("a", 1000, 2), ("b", 1000, 1)],
        [("a", 1400, 3)],
        [("a", 2000, 4)],
    )

    assert spans(driver.state("open")["a"]) == expected
    assert driver.published == []


def test_windows_that_are_closed_for_good_are_told_no_more() -> None:
    hours = readings().window(tumbling("1s")).aggregate(count())

    driver = driven(hours.as_state("open"), [("a", 1000, 1), ("b", 1000, 1)], [("a", 2000, 1)])

    assert {key: spans(one) for key, one in driver.state("open").items()} == {
        "a": [(2000, 3000, 1, False)]
    }


def test_window_within_its_lateness_is_told_as_closed() -> None:
    hours = readings().window(tumbling("1s"), lateness="5s").aggregate(count())

    driver = driven(hours.as_state("open"), [("a", 1000, 1)], [("a", 2500, 1)], [("a", 1500, 1)])

    assert spans(driver.state("open")["a"]) == [(1000, 2000, 2, True), (2000, 3000, 1, False)]


def test_several_aggregations_are_told_as_their_tuple() -> None:
    hours = readings().window(tumbling("1s")).aggregate(count(), max_of(total))

    driver = driven(hours.as_state("open"), [("a", 1000, 7), ("a", 1001, 3)])

    assert [one.value for one in driver.state("open")["a"]] == [(2, 7)]


def test_window_that_has_given_its_records_away_tells_what_came_since() -> None:
    """`sum_of()` has a word for nothing, `max_of()` has none."""
    discarding = readings().window(tumbling("1s"), emit="update", mode="discard")
    sums = discarding.aggregate(sum_of(total)).as_state("open")
    greatest = discarding.aggregate(max_of(total)).as_state("open")

    for output, nothing in ((sums, 0), (greatest, None)):
        driver = driven(output, [("a", 1000, 5)])

        assert [one.value for one in driver.state("open")["a"]] == [nothing]


def test_of_more_windows_than_an_answer_has_room_for_the_latest_are_told() -> None:
    many = readings().window(hopping("1s", every="1ms")).aggregate(count())
    driver = driven(many.as_state("open"), [("a", 5000, 1)])
    (node,) = [one for one in driver.plan.nodes if one.kind == "window"]
    assert node.open_windows is not None

    answer = reads_windows(node.open_windows)(driver.store, "window-1", "a")

    assert answer is not None
    assert len(answer["windows"]) == MOST_WINDOWS
    assert answer["windows"][-1].start_ms == 5000
    assert answer["left_out"] == 1000 - MOST_WINDOWS


def add(context: KeyContext[str, list[int]], one: Reading) -> Iterable[int]:
    context.state.append(one[2])
    if one[2] < 0:
        context.clear()
    yield sum(context.state)


def test_state_of_a_function_is_told_by_key_and_its_stream_goes_on() -> None:
    sums = readings().process(add, state=list)
    driver = FlowDriver({"state": sums.as_state("readings"), "sums": sums})
    driver.append("readings", [("a", 1, 1), ("a", 2, 2), ("b", 2, 3), ("c", 2, 1), ("c", 3, -1)])
    driver.run()

    assert driver.state("readings") == {"a": [1, 2], "b": [3]}
    assert driver.given("sums") == [1, 3, 3, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_crashes_change_nothing(seed: int) -> None:
    records = [(f"k{n % 7}", 1000 + n, n) for n in range(500)]
    windows = readings().window(tumbling("1h")).aggregate(count(), sum_of(total))

    crashing = FlowDriver({"w": windows.as_state("open")}, seed=seed, crash_rate=0.3)
    crashing.append("readings", records, batch=10)
    crashing.run()

    assert crashing.crashes
    assert {key: one[0].value for key, one in crashing.state("open").items()} == {
        f"k{k}": (len(own := range(k, 500, 7)), sum(own)) for k in range(7)
    }


def test_only_the_step_that_keeps_it_can_be_asked() -> None:
    windows = readings().window(tumbling("1s")).aggregate(count())
    taken, _ = windows.branch(lambda one: one.value > 1)

    with pytest.raises(ConfigError, match=r"comes directly behind window\(\)"):
        taken.as_state("open")
    with pytest.raises(ConfigError, match="as_state"):
        windows.as_state("two words")


def test_two_states_of_one_name_are_refused() -> None:
    windows = readings().window(tumbling("1s")).aggregate(count())
    with pytest.raises(ConfigError, match="state-open"):
        FlowDriver({"a": windows.as_state("open"), "b": windows.as_state("open")})
