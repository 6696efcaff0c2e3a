"""Flows as they are written, checked, drawn and run."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError, FlowFunctionError, RuntimeStateError, StateIncompatible
from mycelia.flow import (
    Engine,
    FlowPlan,
    KeyContext,
    MemoryStore,
    Stream,
    after,
    aggregation,
    collect,
    count,
    counting,
    every,
    hopping,
    max_of,
    mean,
    session,
    sliding,
    source,
    tumbling,
)
from mycelia.testing import FlowDriver


@dataclass
class Departed:
    origin: str
    delay: int
    at: int = 0


def departures() -> Stream[Departed]:
    return source("departed", Departed)


def plan(**outputs: Stream[Any]) -> FlowPlan:
    return FlowPlan({name: stream.port for name, stream in outputs.items()})


def fed(
    engine: Engine, values: list[Any], times: list[int] | None = None, **more: Any
) -> dict[str, list[Any]]:
    """What an engine gives for a batch, by output."""
    found: dict[str, list[Any]] = {}
    for one in engine.feed("departed", 0, values, times or [0] * len(values), **more):
        found.setdefault(one.output, []).extend(one.values)
    return found


# --- steps without state --------------------------------------------------------------------------


def test_steps_without_state_are_one_operator_and_do_what_python_does() -> None:
    numbers = source("departed", int)
    stream = (
        numbers.map(lambda n: n + 1)
        .filter(lambda n: n % 2)
        .flat_map(lambda n: [n] * (n % 3))
        .map(str)
    )
    engine = Engine(plan(out=stream), {"departed": [0]})

    values = list(range(50))
    wanted = [str(n + 1) for n in values if (n + 1) % 2 for _ in range((n + 1) % 3)]
    assert fed(engine, values) == {"out": wanted}
    assert len(engine._cells) == 2


def test_event_times_and_keys_stay_with_their_records() -> None:
    stream = (
        source("departed", int)
        .key_by(lambda n: n % 3)
        .filter(lambda n: n > 2)
        .flat_map(lambda n: [n, -n])
    )
    engine = Engine(plan(out=stream), {"departed": [0]})
    (gave,) = engine.feed("departed", 0, [1, 3, 5], [10, 30, 50])

    assert (gave.values, gave.times, gave.keys) == (
        [3, -3, 5, -5],
        [30, 30, 50, 50],
        [0, 0, 2, 2],
    )
    assert gave.ids() == ["flow/out/0", "flow/out/1", "flow/out/2", "flow/out/3"]


def test_branches_part_and_merge() -> None:
    long, short = departures().branch(lambda flight: flight.delay > 60)
    both = long.map(lambda flight: f"long {flight.origin}").merge(
        short.map(lambda flight: flight.delay)
    )
    engine = Engine(plan(out=both, short=short), {"departed": [0]})

    assert fed(engine, [Departed("JFK", 90), Departed("EWR", 5), Departed("LGA", 61)]) == {
        "short": [Departed("EWR", 5)],
        "out": ["long JFK", "long LGA", 5],
    }


def test_a_stream_is_used_any_number_of_times() -> None:
    doubled = source("departed", int).map(lambda n: n * 2)
    engine = Engine(
        plan(a=doubled, b=doubled.map(str), c=doubled.filter(lambda n: n > 2)), {"departed": [0]}
    )

    assert fed(engine, [1, 2]) == {"a": [2, 4], "b": ["2", "4"], "c": [4]}


CALLS: list[tuple[Any, int, Any, str]] = [
    (lambda s: s.map(lambda n: 1 // n), 2, None, "map-1"),
    (lambda s: s.filter(lambda n: 1 // n), 2, None, "filter-1"),
    (lambda s: s.branch(lambda n: 1 // n)[0], 2, None, "branch-1"),
    (lambda s: s.flat_map(lambda n: (1 // one for one in [3, n])), 2, None, "flat_map-1"),
    (lambda s: s.filter(lambda n: n != 5).map(lambda n: 1 // n), 2, None, "map-1"),
    (lambda s: s.flat_map(lambda n: [n] * 3 if n else [1, 0]).map(lambda n: 1 // n), 2, None, "map-1"),
    (lambda s: s.filter(lambda n: n != 5).key_by(lambda n: "k").map(lambda n: 1 // n), 2, "k", "map-1"),
    (lambda s: s.key_by(lambda n: [n] if n == 0 else n), 2, [0], "key_by-1"),
    (lambda s: s.event_time(lambda n: 1 // n, unit="ms"), 2, None, "event_time-1"),
    (lambda s: s.event_time(lambda n: datetime(2013, 1, 1) if n == 0 else 5, unit="s"), 2, None, "event_time-1"),  # noqa: DTZ001
    (lambda s: s.event_time(lambda n: n or "noon", unit="s"), 2, None, "event_time-1"),
    (
        lambda s: s.filter(lambda n: n != 5).key_by(lambda n: "k").window(tumbling(1)).aggregate(mean(lambda n: 1 // n)),
        2, "k", "window-1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "position", "key", "operator"), CALLS)
def test_error_of_a_function_names_the_step_and_the_record(
    make: Any, position: int, key: Any, operator: str
) -> None:
    engine = Engine(plan(out=make(source("departed", int))), {"departed": [0]})

    with pytest.raises(FlowFunctionError) as caught:
        fed(engine, [1, 5, 0, 7])

    assert (caught.value.position, caught.value.key) == (position, key)
    assert caught.value.operator.partition(":")[0] == operator
    assert caught.value.__cause__ is not None
    with pytest.raises(RuntimeStateError, match="Start another from the last checkpoint"):
        fed(engine, [1])


@given(st.lists(st.integers(0, 5), min_size=1), st.data())
def test_position_of_a_failing_record_is_that_in_the_batch_whatever_steps_came_before(
    values: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(values) - 1))
    records = [(index, value) for index, value in enumerate(values)]

    def fails(record: tuple[int, int]) -> int:
        if record[0] == at:
            raise ValueError("this one")
        return record[0]

    stream = (
        source("departed", tuple)
        .filter(lambda record: record[0] == at or record[1] % 2)
        .flat_map(lambda record: [record] * (record[1] if record[0] != at else 1))
        .filter(lambda record: record[0] == at or record[1] != 3)
        .map(fails)
    )
    with pytest.raises(FlowFunctionError) as caught:
        fed(Engine(plan(out=stream), {"departed": [0]}), records)
    assert caught.value.position == at


# --- time -----------------------------------------------------------------------------------------


def test_event_time_is_what_the_function_says() -> None:
    moments = source("departed", Departed).event_time(
        lambda flight: datetime.fromtimestamp(flight.at, UTC)
    )
    seconds = source("departed", Departed).event_time(lambda flight: flight.at + 0.5, unit="s")
    for stream, wanted in ((moments, [7000]), (seconds, [7500])):
        (gave,) = Engine(plan(out=stream), {"departed": [0]}).feed(
            "departed", 0, [Departed("JFK", 1, 7)], [0]
        )
        assert gave.times == wanted


def hourly(**options: Any) -> FlowPlan:
    windows = (
        departures()
        .event_time(lambda flight: flight.at, unit="ms", disorder=0.005, **options)
        .key_by("origin")
        .window(tumbling(0.01))
        .aggregate(count(), max_of(lambda flight: flight.delay))
    )
    return plan(windows=windows, late=windows.late)


def test_watermark_is_the_lowest_of_the_partitions_and_moves_once_a_batch() -> None:
    engine = Engine(hourly(), {"departed": [0, 1]})
    assert fed(engine, [Departed("JFK", 1, 50), Departed("JFK", 2, 3)]) == {}
    (gave,) = engine.feed("departed", 1, [Departed("EWR", 3, 16)], [0])

    assert [(one.key, one.value) for one in gave.values] == [("JFK", (1, 2))]
    assert engine.watermarks()["event_time-1"] == 11
    assert engine.counts() == {"window-1": {"late": 0}}


def test_partition_that_falls_silent_is_left_out() -> None:
    engine = Engine(hourly(idle="1s"), {"departed": [0, 1]})
    fed(engine, [Departed("JFK", 1, 50), Departed("JFK", 2, 3)], now_ms=0)
    assert engine.tick(999) == []
    (gave,) = engine.feed("departed", 0, [Departed("JFK", 1, 51)], [0], now_ms=1000)
    assert [one.value for one in gave.values] == [(1, 2)]


def test_record_of_an_impossible_time_is_rejected_by_name_and_makes_nobody_late() -> None:
    now = 1_700_000_000_000
    engine = Engine(hourly(), {"departed": [0]})
    fed(engine, [Departed("JFK", 1, now)], now_ms=now)
    batch = [
        Departed("JFK", 2, now + 2),
        Departed("JFK", 3, now + 400 * 86_400_000),
        Departed("JFK", 4, -1),
        Departed("JFK", 5, now + 1),
    ]
    assert fed(engine, batch, now_ms=now) == {}

    future, past = engine.take_rejected()
    assert (future.source, future.partition, future.position, future.value) == (
        "departed",
        0,
        1,
        batch[1],
    )
    assert "is more than 365d after all others of its partition" in future.reason
    assert (past.position, past.operator) == (2, "event_time-1")
    assert past.reason == "its event time is before 1970 (-1 ms)"
    assert engine.take_rejected() == []
    (gave,) = engine.end("departed", 0)
    assert [one.value for one in gave.values] == [(3, 5)]


class Truthless:
    """As an array, or a missing value."""

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def quits(_: Any) -> Any:
    sys.exit(3)


def truthless(_: Any) -> Any:
    return Truthless()


SPOILED: dict[str, Callable[[Any], Stream[Any]]] = {
    "filter": lambda spoil: source("in", int).filter(lambda n: spoil(n) if n == 2 else True),
    "branch": lambda spoil: source("in", int).branch(lambda n: spoil(n) if n == 2 else True)[0],
    "map": lambda spoil: source("in", int).map(lambda n: spoil(n) if n == 2 else n),
    "flat_map": lambda spoil: source("in", int).flat_map(lambda n: spoil(n) if n == 2 else [n]),
    "key_by": lambda spoil: source("in", int).key_by(lambda n: spoil(n) if n == 2 else n),
    "event_time": lambda spoil: source("in", int).event_time(
        lambda n: spoil(n) if n == 2 else n, unit="ms"
    ),
    "map_async": lambda spoil: source("in", int).map_async(awaited(spoil)),
    "process": lambda spoil: (
        source("in", int)
        .key_by(lambda n: 0)
        .process(lambda context, n: [spoil(n) if n == 2 else n], state=list)
    ),
}


def awaited(spoil: Callable[[Any], Any]) -> Any:
    async def called(n: int) -> Any:
        return spoil(n) if n == 2 else n

    return called


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("collects", [False, True])
def test_function_that_ends_the_process_is_one_that_raises_over_its_record(
    kind: str, collects: bool
) -> None:
    plan = FlowPlan({"out": SPOILED[kind](quits).port})
    engine = Engine(plan, {"in": [0]}, collects=collects)
    with pytest.raises(FlowFunctionError, match=f"{kind}-1.*record 2 of the batch.*SystemExit: 3"):
        engine.feed("in", 0, [0, 1, 2, 3], [0] * 4)


@pytest.mark.parametrize("kind", ["filter", "branch"])
@pytest.mark.parametrize("collects", [False, True])
def test_record_that_is_neither_true_nor_false_is_named(kind: str, collects: bool) -> None:
    plan = FlowPlan({"out": SPOILED[kind](truthless).port})
    engine = Engine(plan, {"in": [0]}, collects=collects)
    with pytest.raises(FlowFunctionError, match=f"{kind}-1.*record 2 of .*neither true nor false"):
        engine.feed("in", 0, [0, 1, 2, 3], [0] * 4)


@pytest.mark.parametrize("kind", [tumbling("1s"), sliding("1s"), session("1s"), counting(2)])
@pytest.mark.parametrize("where", ["of", "merge", "result"])
def test_aggregation_that_ends_the_process_is_one_that_raises(kind: Any, where: str) -> None:
    made: dict[str, Any] = {"of": sum, "merge": operator.add, "result": abs, where: quits}
    if where == "merge":
        made["merge"] = lambda a, b: quits(a)
    windows = source("in", int).event_time(float, unit="s").key_by(lambda n: "k").window(kind)
    plan = FlowPlan({"out": windows.aggregate(aggregation(**made, name="odd")).port})
    engine = Engine(plan, {"in": [0]})

    def run() -> None:
        for _ in range(3):
            engine.feed("in", 0, [1], [0])
        engine.end("in", 0)

    with pytest.raises(FlowFunctionError, match=r"window-1.*key 'k'.*SystemExit: 3"):
        run()


@dataclass
class Kept:
    rows: list[int] = field(default_factory=list)


SHARED: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], list[int]]]] = {
    "itself": (list, lambda state: state, lambda given: given),
    "in a tuple": (list, lambda state: ("k", state), lambda given: given[1]),
    "in a record": (list, lambda state: Kept(state), lambda given: given.rows),
    "a part of it": (Kept, lambda state: state.rows, lambda given: given),
    "a part in a mapping": (Kept, lambda state: {"rows": state.rows}, lambda given: given["rows"]),
    "a mapping's part": (
        lambda: {"rows": []},
        lambda state: state["rows"],
        lambda given: given,
    ),
}


@pytest.mark.parametrize("crash_rate", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", SHARED)
def test_state_that_is_given_is_given_as_it_was_then(
    kind: str, batch: int, crash_rate: float
) -> None:
    """It changes further before the commit, and in the same batch already."""
    make, give, rows_of = SHARED[kind]

    def keep(context: KeyContext[str, Any], number: int) -> Iterator[Any]:
        state = context.state
        rows = (
            state
            if isinstance(state, list)
            else state["rows"]
            if isinstance(state, dict)
            else state.rows
        )
        rows.append(number)
        yield give(state)

    stream = source("in", int).key_by(lambda n: "k").process(keep, state=make)
    driver = FlowDriver({"out": stream}, seed=3, crash_rate=crash_rate)
    driver.append("in", list(range(10)), batch=batch)
    driver.run()
    assert [rows_of(one) for one in driver.given("out")] == [list(range(n + 1)) for n in range(10)]


@pytest.mark.parametrize(
    "kind", [tumbling("20s"), hopping("20s", every="5s"), session("30s"), sliding("3s")]
)
def test_accumulator_that_is_the_result_is_given_as_it_was_then(kind: Any) -> None:
    def extended(a: list[int], b: list[int]) -> list[int]:
        a.extend(b)
        return a

    def lengths(merge: Any, result: Any) -> list[tuple[int, int, int]]:
        made = aggregation(of=list, merge=merge, result=result)
        stream = source("in", int).event_time(float, unit="s").key_by(lambda n: "k")
        windows = stream.window(kind, emit="update").aggregate(made)
        driver = FlowDriver({"out": windows}, seed=1)
        driver.append("in", list(range(12)), batch=1)
        driver.end()
        return [(one.start_ms, one.index, len(one.value)) for one in driver.given("out")]

    assert lengths(extended, lambda a: a) == lengths(operator.add, list)


async def awaits(*_: Any) -> Any: ...


async def yields(*_: Any) -> Any:
    yield 1


class Awaits:
    async def __call__(self, _: Any) -> Any: ...


DESCRIBED: dict[str, Callable[[Any], Any]] = {
    "map": lambda function: source("in", int).map(function),
    "filter": lambda function: source("in", int).filter(function),
    "branch": lambda function: source("in", int).branch(function),
    "flat_map": lambda function: source("in", int).flat_map(function),
    "key_by": lambda function: source("in", int).key_by(function),
    "event_time": lambda function: source("in", int).event_time(function, unit="s"),
    "process": lambda function: source("in", int).key_by(abs).process(function, state=list),
    "on_timer": lambda function: (
        source("in", int).key_by(abs).process(lambda c, n: [], state=list, on_timer=function)
    ),
    "state": lambda function: (
        source("in", int).key_by(abs).process(lambda c, n: [], state=function)
    ),
    "pattern": lambda function: source("in", int).key_by(abs).pattern(function, within=1),
    "dedup": lambda function: source("in", int).key_by(abs).dedup(function, within=1),
    "mean": mean,
    "aggregation": lambda function: aggregation(of=function, merge=max, result=abs),
}


@pytest.mark.parametrize("kind", DESCRIBED)
@pytest.mark.parametrize("function", [awaits, yields, Awaits(), None, 3, {}])
def test_what_is_no_plain_function_is_refused_where_it_is_written(kind: str, function: Any) -> None:
    """Of an `async def` one the answer would be a coroutine, which is true."""
    if kind == "on_timer" and function is None:
        return
    said = "this is an `async def` one" if callable(function) else "expected a"
    with pytest.raises(ConfigError, match=said):
        DESCRIBED[kind](function)


def test_record_in_too_many_windows_is_refused_where_it_is_written() -> None:
    with pytest.raises(
        ConfigError, match="would be in 86,400,000 windows, and 10,000 are the most"
    ):
        hopping("1d", every="1ms")
    hopping("1d", every="10s")


def test_first_record_of_all_may_be_of_any_time_but_the_future() -> None:
    year = 365 * 86_400_000
    for now, rejected in ((0, 0), (year, 1)):
        engine = Engine(hourly(), {"departed": [0]})
        fed(engine, [Departed("JFK", 1, 3 * year)], now_ms=now)
        assert len(engine.take_rejected()) == rejected
        assert ("event_time-1" in engine.watermarks()) == (not rejected)


def test_clock_that_has_not_been_set_makes_no_record_impossible() -> None:
    """A machine without a battery for its clock says 1970, and a `FlowDriver` some seconds after that."""
    engine = Engine(hourly(), {"departed": [0]})
    fed(engine, [Departed("JFK", 1, 1_700_000_000_000)], now_ms=7000)
    assert engine.take_rejected() == []


@pytest.mark.parametrize("collects", [False, True])
def test_record_without_an_event_time_is_rejected_and_harms_no_other(collects: bool) -> None:
    def time_of(one: tuple[str, Any]) -> Any:
        return one[1]

    stream = source("in", tuple).event_time(time_of, unit="s").key_by(lambda one: one[0])
    plan = FlowPlan({"out": stream.window(tumbling("1m")).aggregate(count()).port})
    engine = Engine(plan, {"in": [0]}, collects=collects)
    times = [
        5,
        None,
        6.5,
        math.nan,
        math.inf,
        -math.inf,
        1e308,
        10**6000,
        datetime.max.replace(tzinfo=UTC),
    ]
    engine.feed("in", 0, [("k", time) for time in times], [0] * len(times))

    told = {one.position: one.reason for one in engine.take_rejected()}
    assert told[1] == "event_time-1 gives it no event time (None)"
    assert told[3] == "event_time-1 gives it no event time (nan)"
    assert told[5] == "its event time is before 1970 (no moment at all)"
    for position in (4, 6, 7, 8):
        assert "is more than 365d after all others" in told[position]
    (gave,) = engine.end("in", 0)
    assert [one.value for one in gave.values] == [2]


def test_record_of_a_wrong_year_is_found_in_the_first_batch_as_well() -> None:
    engine = Engine(hourly(), {"departed": [0]})
    fed(
        engine, [Departed("JFK", 1, 5), Departed("JFK", 1, 366 * 86_400_000), Departed("JFK", 1, 9)]
    )

    assert [one.position for one in engine.take_rejected()] == [1]
    assert engine.watermarks()["event_time-1"] == 4


def test_record_without_a_key_is_rejected_with_its_position() -> None:
    stream = (
        source("departed", int)
        .filter(lambda n: n != 9)
        .key_by(lambda n: None if n == 5 else n % 2)
        .map(lambda n: n * 10)
    )
    engine = Engine(plan(out=stream), {"departed": ["p"]})
    (gave,) = engine.feed("departed", "p", [9, 1, 5, 2], [0, 1, 2, 3])

    assert (gave.values, gave.keys, gave.times) == ([10, 20], [1, 0], [1, 3])
    (one,) = engine.take_rejected()
    assert (one.source, one.partition, one.position, one.value) == ("departed", "p", 2, 5)
    assert re.fullmatch(r"key_by-1: key_by\(lambda .*\) gives it no key \(None\)", one.reason)


def test_end_of_all_partitions_closes_all_windows() -> None:
    engine = Engine(hourly(), {"departed": [0, 1]})
    fed(engine, [Departed("JFK", 1, 50)])
    assert engine.end("departed", 0) == []
    (gave,) = engine.end("departed", 1)
    assert [one.value for one in gave.values] == [(1, 1)]


def test_windows_follow_windows() -> None:
    by_airport = (
        departures()
        .event_time(lambda f: f.at, unit="ms")
        .key_by("origin")
        .window(tumbling(0.01))
        .aggregate(count())
    )
    busiest = (
        by_airport.key_by(lambda result: "all")
        .window(tumbling(0.02))
        .aggregate(max_of("value"), collect())
    )
    engine = Engine(plan(out=busiest), {"departed": [0]})
    fed(engine, [Departed("JFK", 1, 1), Departed("JFK", 1, 2), Departed("EWR", 1, 11)])
    found = fed(engine, [Departed("JFK", 1, 20)])["out"]

    assert [(one.start_ms, one.value[0], len(one.value[1])) for one in found] == [(0, 2, 2)]


# --- state ----------------------------------------------------------------------------------------


def test_engine_goes_on_from_what_was_written() -> None:
    store = MemoryStore()
    engine = Engine(hourly(), {"departed": [0]}, store=store, flow="delays")
    fed(engine, [Departed("JFK", 1, 1), Departed("JFK", 9, 16)])
    store.write(engine.take_changes())

    engine = Engine(hourly(), {"departed": [0]}, store=store, flow="delays")
    assert engine.take_changes() == {}
    (late,) = engine.feed("departed", 0, [Departed("JFK", 5, 2)], [0])
    assert late.output == "late"
    (gave,) = engine.end("departed", 0)
    assert [one.value for one in gave.values] == [(1, 9)]
    assert gave.ids() == ["delays/windows/1"]


def test_state_of_another_flow_is_refused_and_what_to_do_is_said() -> None:
    def counted(step: str, aggregation: Any) -> FlowPlan:
        return plan(
            out=departures().key_by("origin").window(tumbling(1)).aggregate(aggregation).named(step)
        )

    store = MemoryStore()
    engine = Engine(counted("a", count()), {"departed": [0]}, store=store)
    fed(engine, [Departed("JFK", 1)])
    store.write(engine.take_changes())

    with pytest.raises(StateIncompatible, match=r'has a step "a" .* which is gone'):
        Engine(counted("b", count()), {"departed": [0]}, store=store)
    with pytest.raises(
        StateIncompatible, match=r'step "a" is of window .*count\(\), and the step is now .*max_of'
    ):
        Engine(counted("a", max_of("delay")), {"departed": [0]}, store=store)


# --- what is checked and drawn --------------------------------------------------------------------


def test_flow_is_drawn_as_a_tree() -> None:
    flights = departures().event_time(lambda flight: flight.at, unit="ms", disorder="30m")
    long, short = flights.branch(is_long)
    windows = (
        long.merge(short.filter(is_long))
        .key_by("origin")
        .window(hopping("1h", every="10m"), lateness="2h", emit="update")
        .aggregate(count(), mean("delay"))
        .named("hourly")
    )
    text = plan(hourly=windows, late=windows.late).draw()

    line = test_flow_is_drawn_as_a_tree.__code__.co_firstlineno + 1
    assert (
        text
        == f"""\
departed
└─ event_time-1: event_time(lambda test_flows.py:{line}, disorder=30m)
   └─ branch-1: branch(is_long)
      ├─ merge-1: merge()
      │  └─ key_by-1: key_by(origin)
      │     └─ hourly: hopping(1h, every=10m), lateness=2h, emit=update: count(), mean(delay)
      │        ├─ → hourly
      │        └─ beside: → late
      └─ beside: filter-1: filter(is_long)
         └─ ↪ merge-1"""
    )


def is_long(flight: Departed) -> bool:
    return flight.delay > 60


def keyed() -> Any:
    return departures().key_by("origin")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: source("", int), "expected a name"),
        (lambda: departures().map("delay"), "map(): expected a function of a record; got 'delay'"),
        (lambda: departures().key_by(7), "key_by(): expected a function of a record, or the name of a field"),
        (lambda: departures().event_time(is_long, unit="m"), 'expected "s" or "ms"'),
        (lambda: departures().event_time(is_long, unit="s", disorder="soon"), "event_time(disorder=): 'soon' is no duration"),
        (lambda: departures().named("x"), 'the source "departed" has its name already'),
        (lambda: keyed().window("1h"), "window('1h'): expected tumbling"),
        (lambda: keyed().window(tumbling("1h"), lateness="-1h"), "window(tumbling(1h)): lateness="),
        (lambda: keyed().window(counting(3), emit="update"), "gives one result, as it is full"),
        (lambda: keyed().window(sliding("1h"), mode="discard"), "sliding windows share their records"),
        (lambda: keyed().window(sliding("1h"), emit=every("1m")), "sliding windows share their records"),
        (lambda: keyed().window(session("1h")).aggregate(), "aggregate(): of what?"),
        (lambda: FlowPlan({}), "a flow without outputs does nothing"),
        (lambda: plan(a=keyed().map(str).named("x"), b=keyed().map(str).named("x")), 'called "departed"'),
        (lambda: plan(a=(flights := keyed()).map(str).named("x").merge(flights.map(int).named("x"))), 'more than one step of the flow is called "x"'),
        (lambda: plan(a=keyed().named("x~y")), 'cannot be called "x~y"'),
        (
            lambda: plan(a=keyed().window(tumbling(1), emit=after(3)).aggregate(count()).event_time(is_long, unit="s")),
            '"event_time-1" (event_time(is_long, disorder=0s)) comes after "window-1"',
        ),
        (lambda: Engine(plan(a=departures()), {}), 'the flow reads "departed", and no partition'),
        (lambda: Engine(plan(a=departures()), {"departed": [0], "x": [0]}), 'does not read "x"; its sources: departed'),
        (lambda: Engine(plan(a=departures()), {"departed": [0]}).end("departed", 1), "no partition 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_to_do(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def test_long_chains_are_no_matter() -> None:
    stream = source("departed", int)
    for _ in range(3000):
        stream = stream.map(lambda n: n + 1)
    flow = plan(out=stream)
    assert fed(Engine(flow, {"departed": [0]}), [0]) == {"out": [3000]}


def numbers_of(one: int) -> Iterator[int]:
    yield from range(one)


def test_generators_are_functions_for_flat_map() -> None:
    assert fed(
        Engine(plan(out=source("departed", int).flat_map(numbers_of)), {"departed": [0]}), [2, 0, 3]
    ) == {"out": [0, 1, 0, 1, 2]}


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("window", r"key_by\("),
        ("join_table", r"key_by\("),
        ("aggregate", r"window\("),
        ("as_state", r"aggregate\("),
        ("late", "windows"),
        ("windows", "has no attribute 'windows'"),
    ],
)
def test_what_only_another_stream_has_is_said_with_what_is_missing(name: str, missing: str) -> None:
    stream = source("in", int)
    with pytest.raises(AttributeError, match=missing):
        getattr(stream, name)

    assert not hasattr(stream, name)


@pytest.mark.parametrize("told", [{"name": 5}, {"name": "x", "was": 5}])
def test_name_of_a_step_is_text(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\(5\): expected the name of a step"):
        source("in", int).map(abs).named(**told)
