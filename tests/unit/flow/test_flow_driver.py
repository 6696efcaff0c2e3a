"""What a flow gives does not depend on where it crashed; and, as far as nothing is late, not on how its partitions were interleaved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mycelia.errors import ConfigError
from mycelia.flow import (
    KeyContext,
    Stream,
    after,
    collect,
    count,
    counting,
    distinct,
    every,
    hopping,
    mean,
    quantile,
    session,
    sliding,
    source,
    sum_of,
    top,
    tumbling,
)
from mycelia.testing import FlowDriver


class Reading(msgspec.Struct, frozen=True):
    sensor: str
    at_ms: int
    value: int


class Trend(msgspec.Struct):
    last: int = 0
    rising: int = 0


def trend(context: KeyContext[str, Trend], reading: Reading) -> Iterator[tuple[str, int]]:
    state = context.state
    state.rising = state.rising + 1 if reading.value > state.last else 0
    state.last = reading.value
    context.set_timer(reading.at_ms + 20, "silent")
    if state.rising >= 2:
        yield reading.sensor, state.rising


def silent(context: KeyContext[str, Trend], name: str) -> Iterator[tuple[str, int]]:
    if context.state.rising:
        yield name, context.state.rising
    context.clear()


def everything(disorder: float) -> dict[str, Stream[Any]]:
    """A flow with each kind of operator that keeps state."""

    def read(name: str) -> Any:
        return (
            source(name, Reading)
            .event_time(lambda reading: reading.at_ms, unit="ms", disorder=disorder)
            .filter(lambda reading: reading.value != 13)
            .key_by(lambda reading: reading.sensor)
        )

    a, b = read("a"), read("b")
    tumbled = a.window(tumbling(0.02), lateness=0.01, emit="update", mode="retract").aggregate(
        count(), mean("value"), quantile("value", 0.5), top(2, by="value"), distinct("value")
    )
    sessions = a.window(session(0.008), lateness=0.01, late=after(2)).aggregate(collect())
    after_windows = tumbled.map(lambda w: w.start_ms).window(tumbling(0.1)).aggregate(count())
    return {
        "tumbled": tumbled,
        "tumbled late": tumbled.late,
        "hopped": b.window(hopping(0.02, every=0.005), mode="discard", emit=every(0.01)).aggregate(
            collect()
        ),
        "sessions": sessions,
        "sessions late": sessions.late,
        "sliding": b.window(sliding(0.01), lateness=0.005).aggregate(sum_of("value")),
        "counted": a.window(counting(3)).aggregate(collect()),
        "windows of windows": after_windows,
        "trends": a.process(trend, state=Trend, on_timer=silent),
        "once": b.dedup("value", within=0.02),
        "pattern": a.pattern(lambda r: r.value > 5, lambda r: r.value < 5, within=0.02),
        "table": a.join_table(b, how="left"),
        "as of": a.join_as_of(b, how="left", tolerance=0.02),
        "interval": a.join_interval(b, before=0.005, after=0.005, how="full"),
        "window join": a.join_window(b, tumbling(0.02), how="full"),
    }


READINGS = st.lists(
    st.builds(Reading, st.sampled_from(["x", "y", "z"]), st.integers(0, 120), st.integers(0, 20)),
    max_size=30,
)
LOGS = st.fixed_dictionaries(
    {("a", 0): READINGS, ("a", 1): READINGS, ("b", 0): READINGS, ("b", 1): READINGS}
)


def driven(logs: Any, disorder: float, batch: int, seed: int, crash_rate: float) -> FlowDriver:
    driver = FlowDriver(everything(disorder), partitions=2, seed=seed, crash_rate=crash_rate)
    for (name, partition), readings in logs.items():
        driver.append(name, readings, partition=partition, batch=batch)
    driver.end()
    return driver


slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(LOGS, st.sampled_from([0.0, 0.02]), st.integers(1, 10), st.integers(0, 1000))
def test_outputs_with_crashes_are_those_without(
    logs: Any, disorder: float, batch: int, seed: int
) -> None:
    straight = driven(logs, disorder, batch, seed, 0.0)
    crashed = driven(logs, disorder, batch, seed, 0.3)

    for output in straight.plan.outputs:
        assert crashed.records(output) == straight.records(output), output
    assert straight.crashes == 0
    assert len(crashed.published) >= len(straight.published)


ORDERED = {"counted", "trends", "table", "once"}
"""What depends on the order of arrival, which is another with each interleaving."""


@slow
@given(LOGS, st.integers(1, 10), st.integers(0, 1000), st.integers(0, 1000))
def test_outputs_do_not_depend_on_the_interleaving_when_nothing_is_late(
    logs: Any, batch: int, one_seed: int, other_seed: int
) -> None:
    """What stands in the end: what was given, less what was taken back. Records of one key and time are in order of arrival."""
    logs = with_distinct_times(logs)
    one = driven(logs, 0.2, batch, one_seed, 0.0)
    other = driven(logs, 0.2, batch, other_seed, 0.0)

    for output in one.plan.outputs.keys() - ORDERED:
        assert standing(one, output) == standing(other, output), output


def with_distinct_times(logs: Any) -> Any:
    seen: set[tuple[str, str, int]] = set()
    kept: dict[Any, list[Reading]] = {log: [] for log in logs}
    for log, readings in logs.items():
        for one in readings:
            if (log[0], one.sensor, one.at_ms) not in seen:
                seen.add((log[0], one.sensor, one.at_ms))
                kept[log].append(one)
    return kept


def standing(driver: FlowDriver, output: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for value in driver.given(output):
        if output in ("tumbled", "sessions", "sliding", "hopped"):
            if value.timing != "on time":
                continue
            held = value.value
            if isinstance(held, list):
                held = sorted(map(repr, held))
            elif isinstance(held, tuple):
                held = (
                    held[0],
                    round(held[1], 6),
                    held[2],
                    [one.value for one in held[3]],
                    held[4],
                )
            found[f"{value.key} {value.start_ms} {held}"] += -1 if value.is_retraction else 1
        elif output == "window join":
            found[f"{value.key} {value.start_ms} {value.value}"] += 1
        elif output == "windows of windows":
            continue  # it counts retractions too
        else:
            found[repr(value)] += 1
    return +found


def test_crashes_happen_and_make_it_publish_again() -> None:
    logs = {
        (name, partition): [Reading("xyz"[at % 3], at * 3, at % 7) for at in range(40)]
        for name in "ab"
        for partition in (0, 1)
    }
    driver = driven(logs, 0.01, 4, 1, 0.3)

    assert driver.crashes > 10
    assert len(driver.published) > sum(len(driver.records(name)) for name in driver.plan.outputs)


def test_id_that_two_records_bear_is_found() -> None:
    driver = FlowDriver({"out": source("in", int)})
    driver.append("in", [1, 2])
    driver.run()
    (_, first), (_, second) = driver.published
    driver.published.append(("out", second._replace(id=first.id)))

    with pytest.raises(AssertionError, match="was published as"):
        driver.records("out")


def test_time_comes_by_when_it_is_told_to() -> None:
    windows = (
        source("in", Reading)
        .event_time(lambda reading: reading.at_ms, unit="ms", idle="1s")
        .key_by("sensor")
        .window(tumbling(0.01), emit=every("5s", clock="processing"))
        .aggregate(count())
    )
    driver = FlowDriver({"out": windows}, partitions=2)
    driver.append("in", [Reading("x", 1, 0)])
    driver.advance("4.9s")
    assert driver.given("out") == []
    driver.advance("0.1s")
    assert [one.timing for one in driver.given("out")] == ["early"]
    driver.append("in", [Reading("x", 30, 0)])
    driver.run()

    assert [one.timing for one in driver.given("out")] == ["early", "on time"]


def test_partition_that_is_not_there_is_named() -> None:
    driver = FlowDriver({"out": source("in", int)}, partitions={"in": 2})
    with pytest.raises(
        ConfigError, match=r'no partition 2 of "in" in this driver; there are in/0, in/1'
    ):
        driver.append("in", [1], partition=2)


def test_output_that_is_not_there_is_named() -> None:
    driver = FlowDriver({"out": source("in", int)})
    with pytest.raises(ConfigError, match='no output "uot"; there are out'):
        driver.given("uot")
