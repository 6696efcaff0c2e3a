"""What raises over several records, and over none of them by itself: the record that does not go with the others is named; results and timers are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mycelia.errors import FlowFunctionError
from mycelia.flow import (
    Aggregation,
    Engine,
    FlowPlan,
    KeyContext,
    MemoryStore,
    Stream,
    WindowResult,
    aggregation,
    counting,
    hopping,
    max_of,
    min_of,
    session,
    sliding,
    source,
    top,
    tumbling,
)
from mycelia.flow.operators import FiredTimer

KINDS = [
    tumbling("1m"),
    hopping("1m", every="30s"),
    sliding("1m"),
    session("1m"),
    counting(3),
]
"""Of these records the sliding window that ends first has one, as the others have all: so they are of one time."""


def engine_of(stream: Stream[Any], **options: Any) -> Engine:
    return Engine(FlowPlan({"out": stream.port}), {"in": [0]}, **options)


def by_key() -> Any:
    timed = source("in", dict).event_time(lambda one: one["at"], unit="ms")
    return timed.key_by(lambda one: one.get("k", "k"))


def rows(*values: Any, at: int = 1000) -> list[dict[str, Any]]:
    return [{"v": value, "at": at} for value in values]


def feed(engine: Engine, batch: list[Any]) -> list[Any]:
    given = engine.feed("in", 0, batch, [0] * len(batch))
    return [value for one in given for value in one.values]


def run(engine: Engine, batch: list[Any]) -> list[Any]:
    """What comes of a batch, after which nothing more comes."""
    given = feed(engine, batch)
    return given + [value for one in engine.end("in", 0) for value in one.values]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("collects", [False, True])
def test_record_that_does_not_go_with_what_its_window_holds_is_named(
    kind: Any, collects: bool
) -> None:
    engine = engine_of(by_key().window(kind).aggregate(max_of("v")), collects=collects)
    feed(engine, rows(1))

    with pytest.raises(FlowFunctionError, match=r"window-1.*key 'k'") as failed:
        feed(engine, rows(2, "x"))

    told = [one.position for one in (failed.value, *failed.value.also)]
    assert told == [1]


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_all_records_that_do_not_go_with_it_are_told_at_once_if_they_are_collected(
    kind: Any,
) -> None:
    engine = engine_of(by_key().window(kind).aggregate(max_of("v")), collects=True)
    feed(engine, rows(1))

    with pytest.raises(FlowFunctionError) as failed:
        feed(engine, rows("x", 2, "y", 3))

    assert [one.position for one in (failed.value, *failed.value.also)] == [0, 2]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_keys_with_records_that_fail_are_told_at_once_and_of_each_key_what_is_sure(
    kind: Any,
) -> None:
    """What comes behind a record that has failed may fail for its sake, as its key's state is half changed."""

    def half(context: KeyContext[str, list[int]], row: Any) -> list[int]:
        context.state.append(1)
        if row["v"] == "x" or len(context.state) > 1:
            raise ValueError(row["v"])
        return []

    batch = [
        {"v": value, "at": 1000, "k": key}
        for key in "abc"
        for value in (["x", 1] if key != "b" else [1])
    ]
    windows = by_key().window(kind).aggregate(max_of("v")).map(lambda one: one.value + 1)
    engine = engine_of(windows, collects=True)
    feed(engine, [{"v": 0, "at": 1000, "k": key} for key in "abc"])
    with pytest.raises(FlowFunctionError) as of_windows:
        feed(engine, batch)
    with pytest.raises(FlowFunctionError) as of_state:
        feed(engine_of(by_key().process(half, state=list), collects=True), batch)

    for failed in (of_windows.value, of_state.value):
        assert [one.position for one in (failed, *failed.also)] == [0, 3]


@pytest.mark.parametrize("made", [min_of("v"), max_of("v"), top(2, by="v")], ids=str)
def test_value_that_cannot_be_compared_fails_with_its_own_record_though_it_is_alone(
    made: Any,
) -> None:
    engine = engine_of(by_key().window(tumbling("1m")).aggregate(made))

    with pytest.raises(FlowFunctionError, match="record 0 of the batch"):
        feed(engine, rows(None))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_where_no_record_can_be_told_from_the_others_it_is_all_of_a_key_and_batch(
    kind: Any,
) -> None:
    def of_one(values: list[Any]) -> int:
        if len(values) > 1:
            raise ValueError("one at a time")
        return 1

    odd = aggregation(of=of_one, merge=lambda a, b: a + b, result=lambda a: a)
    engine = engine_of(by_key().window(kind).aggregate(odd), collects=True)

    with pytest.raises(FlowFunctionError) as failed:
        feed(engine, [*rows(1, 2), {"v": 3, "at": 1000, "k": "other"}])

    assert [one.position for one in (failed.value, *failed.value.also)] == [0, 1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_result_that_cannot_be_told_stops_no_other_if_such_are_collected(kind: Any) -> None:
    def result(total: int) -> int:
        if total == 6:
            raise ValueError("six")
        return total

    total: Aggregation[dict[str, Any], int] = aggregation(
        of=lambda rows: sum(one["v"] for one in rows), merge=lambda a, b: a + b, result=result
    )
    windows = by_key().window(kind).aggregate(total)
    engine = engine_of(windows, collects=True)
    others = [{"v": value, "at": 1000, "k": "other"} for value in (2, 3, 4)]

    given = run(engine, [*rows(1, 2, 3), *others])

    rejected = engine.take_rejected()
    assert {one.value for one in given} == {9}
    assert rejected
    for one in rejected:
        assert isinstance(one.value, WindowResult)
        assert (one.value.key, one.operator, one.source) == ("k", "window-1", None)
        assert "key 'k': its result cannot be told: ValueError: six" in one.reason
        assert one.value.value in (6, [6])

    stops = engine_of(windows)
    with pytest.raises(FlowFunctionError, match=r"window-1.*key 'k'.*six"):
        run(stops, rows(1, 2, 3))


def test_records_of_several_times_that_do_not_go_together_fail_as_their_sliding_window_is_told() -> (
    None
):
    windows = by_key().window(sliding("1m")).aggregate(max_of("v"))
    rows_of_two_times = [*rows(1, at=1000), *rows("x", at=2000)]

    engine = engine_of(windows)
    with pytest.raises(FlowFunctionError, match=r"window-1.*key 'k'"):
        run(engine, rows_of_two_times)
    engine = engine_of(windows, collects=True)
    given = run(engine, rows_of_two_times)

    assert [one.value for one in given] == [1]
    assert [one.value.value for one in engine.take_rejected()] == [[1, "x"]]


def test_next_result_takes_back_the_last_that_was_told_though_one_between_could_not_be() -> None:
    def result(total: int) -> int:
        if total == 3:
            raise ValueError("three")
        return total

    total: Aggregation[dict[str, Any], int] = aggregation(
        of=lambda rows: sum(one["v"] for one in rows), merge=lambda a, b: a + b, result=result
    )
    windows = by_key().window(tumbling("1m"), emit="update", mode="retract").aggregate(total)
    engine = engine_of(windows, collects=True)

    given = [one for value in (1, 2, 3) for one in feed(engine, rows(value))]

    assert [(one.value, one.is_retraction) for one in given] == [(1, False), (1, True), (6, False)]


def test_record_over_which_a_step_of_a_pattern_raises_is_named() -> None:
    stream = by_key().pattern(lambda one: one["v"] > 1, lambda one: one["v"] > 2, within="1m")
    engine = engine_of(stream)

    with pytest.raises(FlowFunctionError, match=r"pattern-1.*record 1 of the batch, key 'k'"):
        feed(engine, rows(3, None))


def beats(context: KeyContext[str, list[int]], beat: Any) -> Iterator[Any]:
    context.state.append(beat["v"])
    context.set_timer(beat["at"] + 1, "told")
    yield from ()


def told(context: KeyContext[str, list[int]], name: str) -> Iterator[Any]:
    context.state.append(-1)
    context.set_timer(context.time_ms + 1, "again")
    yield context.key
    if context.key == "bad":
        raise ValueError("bad")


def test_timer_that_is_passed_over_leaves_all_as_it_was_and_the_others_are_called() -> None:
    def again(context: KeyContext[str, list[int]], name: str) -> list[Any]:
        if name == "again":
            return [(context.key, list(context.state))]
        return list(told(context, name))

    stream = by_key().process(beats, state=list, on_timer=again)
    batch = [{"v": 1, "at": 1000, "k": "bad"}, {"v": 2, "at": 1000, "k": "good"}]
    engine = engine_of(stream, store=MemoryStore())
    with pytest.raises(FlowFunctionError) as failed:
        run(engine, batch)
    timer = failed.value.timer
    assert timer == ("told", "event", 1001, 1)

    engine = engine_of(stream, passed_over={FiredTimer("process-1", "bad", timer)})
    given = run(engine, batch)

    assert given == ["good", ("good", [2, -1])]


def test_timer_that_has_fired_well_before_is_not_passed_over_for_that_which_fails() -> None:
    """The same time and name, set again by each record: since the last checkpoint it has fired twice, and fails the third time."""

    def sets(context: KeyContext[str, int], row: Any) -> list[Any]:
        context.state += 1
        context.set_timer(1)
        return []

    def fails(context: KeyContext[str, int], name: str) -> list[Any]:
        if context.state == 3:
            raise ValueError("three")
        return [context.state]

    stream = by_key().process(sets, state=int, on_timer=fails)
    failing = engine_of(stream, collects=True)
    given = feed(failing, rows(0)) + feed(failing, rows(0))
    with pytest.raises(FlowFunctionError) as failed:
        feed(failing, rows(0))
    timer = failed.value.timer
    assert timer is not None

    passed_over = {FiredTimer("process-1", "k", timer)}
    engine = engine_of(stream, collects=True, passed_over=passed_over)
    again = [one for _ in range(4) for one in feed(engine, rows(0))]

    assert given == [1, 2]
    assert again == [1, 2, 4]


@pytest.mark.parametrize("at", ["5m", 5.5, None, True])
@pytest.mark.parametrize("clock", ["set_timer", "set_wall_timer"])
def test_time_that_no_timer_can_have_is_an_error_of_its_record(at: Any, clock: str) -> None:
    def sets(context: KeyContext[str, int], row: Any) -> list[Any]:
        getattr(context, clock)(at)
        return []

    engine = engine_of(by_key().process(sets, state=int))
    with pytest.raises(FlowFunctionError, match=f"record 0 of the batch.*{clock}.*milliseconds"):
        feed(engine, rows(1))


def test_timer_s_name_is_text() -> None:
    def sets(context: KeyContext[str, int], row: Any) -> list[Any]:
        context.set_timer(5, object())  # type: ignore[arg-type]  # as it is tried
        return []

    engine = engine_of(by_key().process(sets, state=int))
    with pytest.raises(FlowFunctionError, match=r"record 0 of the batch.*expected a name"):
        feed(engine, rows(1))
