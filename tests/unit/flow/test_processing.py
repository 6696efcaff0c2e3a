"""Functions with state, deduplication, patterns and joins: by example, and against what plain loops over all records find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mycelia.errors import ConfigError, FlowFunctionError
from mycelia.flow import (
    Engine,
    FlowPlan,
    KeyContext,
    KeyedStream,
    MemoryStore,
    Stream,
    WindowResult,
    count,
    counting,
    source,
    tumbling,
)
from mycelia.flow.equal_keys import key_state

Row = tuple[str, int, Any]
"""Key, event time and value."""


def rows(name: str = "left") -> KeyedStream[str, Row]:
    return source(name, tuple).event_time(lambda row: row[1], unit="ms").key_by(lambda row: row[0])


def plan(**outputs: Stream[Any]) -> FlowPlan:
    return FlowPlan({name: stream.port for name, stream in outputs.items()})


class Run:
    """An engine over a plan, begun again from its store after each batch if `restarts`."""

    def __init__(self, flow: FlowPlan, restarts: bool = False) -> None:
        self.flow = flow
        self.restarts = restarts
        self.store = MemoryStore()
        self.sources = {name: [0] for name in flow.sources}
        self.engine = Engine(flow, self.sources, store=self.store)
        self.given: dict[str, list[Any]] = {name: [] for name in flow.outputs}
        self.times: dict[str, list[int]] = {name: [] for name in flow.outputs}

    def feed(self, batch: list[Row], to: str = "left", now_ms: int = 0) -> dict[str, list[Any]]:
        return self._note(self.engine.feed(to, 0, list(batch), [0] * len(batch), now_ms=now_ms))

    def tick(self, now_ms: int) -> dict[str, list[Any]]:
        return self._note(self.engine.tick(now_ms))

    def end(self) -> dict[str, list[Any]]:
        for name in self.sources:
            self._note(self.engine.end(name, 0))
        return self.given

    def _note(self, given: Any) -> dict[str, list[Any]]:
        now: dict[str, list[Any]] = {}
        for one in given:
            self.given[one.output] += one.values
            self.times[one.output] += one.times
            now.setdefault(one.output, []).extend(one.values)
        self.store.write(self.engine.take_changes())
        if self.restarts:
            self.engine = Engine(self.flow, self.sources, store=self.store)
        return now


# --- functions with state -------------------------------------------------------------------------


@dataclass
class Total:
    amount: int = 0
    seen: list[int] = field(default_factory=list)


def add(context: KeyContext[str, Total], row: Row) -> Iterator[tuple[str, int]]:
    context.state.amount += row[2]
    context.state.seen.append(context.time_ms)
    context.set_timer(row[1] + 10, "flush")
    yield context.key, context.state.amount


def flush(context: KeyContext[str, Total], name: str) -> Iterator[tuple[str, int]]:
    yield f"{name} {context.key} at {context.time_ms}", context.state.amount
    context.clear()


@pytest.mark.parametrize("restarts", [False, True])
def test_function_keeps_state_by_key_and_is_called_at_its_timers(restarts: bool) -> None:
    run = Run(plan(out=rows().process(add, state=Total, on_timer=flush)), restarts)

    assert run.feed([("a", 1, 5), ("b", 2, 7), ("a", 3, 1)]) == {
        "out": [("a", 5), ("b", 7), ("a", 6)]
    }
    assert run.feed([("b", 12, 1)]) == {
        "out": [("b", 8), ("flush a at 11", 6), ("flush b at 12", 8)]
    }
    assert run.end()["out"][6:] == [("flush a at 13", 0), ("flush b at 22", 0)]
    assert run.times["out"] == [1, 2, 3, 12, 11, 12, 13, 22]
    assert [key for key, _ in run.store.scan("process-1")] == []


def test_timer_of_a_time_that_has_come_by_is_called_after_the_batch() -> None:
    def at_once(context: KeyContext[str, list[int]], row: Row) -> list[str]:
        context.set_timer(0)
        return ["record"]

    def timer(context: KeyContext[str, list[int]], name: str) -> list[str]:
        return ["timer"]

    run = Run(plan(out=rows().process(at_once, state=list, on_timer=timer)))
    run.feed([("a", 100, 0)])
    assert run.feed([("a", 50, 0), ("a", 50, 0)])["out"] == ["record", "record", "timer"]


def test_timer_is_called_off_or_set_once_more_by_another_of_its_time() -> None:
    def three(context: KeyContext[str, list[int]], row: Row) -> list[str]:
        for name in ("first", "off", "once"):
            context.set_timer(10, name)
        return []

    def timer(context: KeyContext[str, list[int]], name: str) -> list[str]:
        if name == "first":
            context.cancel_timer(10, "off")
            context.set_timer(10, "once")
        return [name]

    run = Run(plan(out=rows().process(three, state=list, on_timer=timer)))
    run.feed([("a", 1, 0)])
    assert run.feed([("b", 10, 0)])["out"] == ["first", "once", "first", "once"]


@pytest.mark.parametrize("restarts", [False, True])
def test_timers_of_processing_time_and_cancelled_ones(restarts: bool) -> None:
    def remind(context: KeyContext[str, list[int]], row: Row) -> list[str]:
        if row[2] == "cancel":
            context.cancel_wall_timer(1000, "late")
            context.cancel_timer(500, "event")
        else:
            context.set_wall_timer(1000, "late")
            context.set_timer(500, "event")
        return []

    def timer(context: KeyContext[str, list[int]], name: str) -> list[str]:
        return [f"{context.key} {name} {context.now_ms}"]

    run = Run(plan(out=rows().process(remind, state=list, on_timer=timer)), restarts)
    run.feed([("a", 1, ""), ("b", 1, "")], now_ms=10)
    run.feed([("b", 2, "cancel")], now_ms=20)
    assert run.tick(999) == {}
    assert run.tick(1001) == {"out": ["a late 1001"]}
    assert run.feed([("c", 600, "cancel")], now_ms=1002) == {"out": ["a event 1002"]}


def test_errors_in_functions_name_the_record_or_the_key() -> None:
    def fails(context: KeyContext[str, list[int]], row: Row) -> list[int]:
        context.set_timer(row[1])
        return [1 // row[2]]

    def timer(context: KeyContext[str, list[int]], name: str) -> list[int]:
        raise ValueError("timer")

    with pytest.raises(FlowFunctionError, match=r'"process-1", record 2 of the batch, key \'b\''):
        Run(plan(out=rows().process(fails, state=list))).feed(
            [("a", 1, 1), ("a", 1, 1), ("b", 1, 0)]
        )
    with pytest.raises(FlowFunctionError, match=r'"process-1", key \'a\': ValueError: timer'):
        Run(plan(out=rows().process(fails, state=list, on_timer=timer))).feed([("a", 1, 1)])


# --- repeated records -----------------------------------------------------------------------------


def test_repeated_ids_are_dropped_within_their_time_and_counted() -> None:
    run = Run(plan(out=rows().dedup(lambda row: row[2], within=0.01)))
    run.feed([("a", 1, "x"), ("a", 2, "x"), ("b", 2, "x"), ("a", 3, "y")])
    run.feed([("a", 11, "x"), ("a", 12, "x")])

    assert run.given["out"] == [("a", 1, "x"), ("b", 2, "x"), ("a", 3, "y"), ("a", 12, "x")]
    assert run.engine.counts()["dedup-1"] == {"repeated": 2}


@given(
    st.lists(
        st.lists(st.tuples(st.just("a"), st.integers(0, 30), st.sampled_from("xy"))), max_size=6
    ),
    st.integers(0, 12),
    st.booleans(),
)
@example([[("a", 20, "x"), ("a", 5, "x"), ("a", 5, "x")]], 3, False)
def test_of_two_records_that_are_given_none_has_the_other_s_id_within_its_time_in_whatever_order(
    batches: list[list[Row]], within: int, restarts: bool
) -> None:
    """As long as ids are remembered: event time has not come further than `within` behind any of them."""
    stream = source("left", tuple).event_time(lambda row: row[1], unit="ms", disorder="1m")
    run = Run(
        plan(out=stream.key_by(lambda row: row[0]).dedup(lambda row: row[2], within=within / 1000)),
        restarts,
    )
    for batch in batches:
        run.feed(batch)
    run.end()

    wanted: list[Row] = []
    for row in (row for batch in batches for row in batch):
        if all(row[2] != one[2] or abs(row[1] - one[1]) > within for one in wanted):
            wanted.append(row)
    assert run.given["out"] == wanted
    spaces = ("dedup-1", "dedup-1~timers")
    assert [key for space in spaces for key, _ in run.store.scan(space)] == []


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.sampled_from("xy"))),
        max_size=6,
    ),
    st.booleans(),
)
def test_of_each_id_one_is_given_for_each_stretch_of_time(
    batches: list[list[Row]], restarts: bool
) -> None:
    run = Run(plan(out=rows().dedup(lambda row: row[2], within=1)), restarts)
    for batch in batches:
        run.feed(batch)
    run.end()

    assert Counter((key, one) for key, _, one in run.given["out"]) == Counter(
        {(key, one) for batch in batches for key, _, one in batch}
    )
    assert [
        key for space in ("dedup-1", "dedup-1~timers") for key, _ in run.store.scan(space)
    ] == []


# --- patterns -------------------------------------------------------------------------------------


def is_a(row: Row) -> bool:
    return bool(row[2] == "A")


def is_b(row: Row) -> bool:
    return bool(row[2] == "B")


def test_pattern_finds_one_after_the_other_in_order_of_event_time() -> None:
    found = rows().pattern(is_a, is_b, within=0.01)
    run = Run(plan(out=found, unfinished=found.unfinished, late=found.late))
    run.feed([("k", 5, "B"), ("k", 3, "A"), ("other", 4, "B"), ("k", 4, "-")])
    assert run.feed([("k", 6, "A")]) == {"out": [[("k", 3, "A"), ("k", 5, "B")]]}
    assert run.feed([("k", 5, "A")]) == {"late": run.given["late"]}
    run.feed([("k", 17, "B")])
    assert run.end()["unfinished"] == [[("k", 6, "A")]]
    assert run.given["out"] == [[("k", 3, "A"), ("k", 5, "B")]]
    assert [
        key for space in ("pattern-1", "pattern-1~timers") for key, _ in run.store.scan(space)
    ] == []


def test_what_a_silent_key_began_is_given_up_in_time() -> None:
    found = rows().pattern(is_a, is_b, within=0.01)
    run = Run(plan(out=found, unfinished=found.unfinished))
    run.feed([("silent", 5, "A")])
    assert run.feed([("k", 15, "-")]) == {}
    assert run.feed([("k", 16, "-")]) == {"unfinished": [[("silent", 5, "A")]]}
    assert run.times["unfinished"] == [15]


@given(
    st.lists(
        st.tuples(st.sampled_from("kl"), st.integers(0, 40), st.sampled_from("AB-")), max_size=25
    ),
    st.integers(0, 20),
    st.integers(1, 25),
    st.booleans(),
)
def test_patterns_are_those_of_a_plain_walk(
    records: list[Row], within: int, size: int, restarts: bool
) -> None:
    flow = (
        source("left", tuple)
        .event_time(lambda row: row[1], unit="ms", disorder=1)
        .key_by(lambda row: row[0])
        .pattern(is_a, is_b, within=within / 1000)
    )
    run = Run(plan(out=flow), restarts)
    for at in range(0, len(records), size):
        run.feed(records[at : at + size])
    run.end()

    wanted = []
    for key in "kl":
        open_ones: list[Row] = []
        for row in sorted((row for row in records if row[0] == key), key=lambda row: row[1]):
            open_ones = [one for one in open_ones if row[1] - one[1] <= within]
            if row[2] == "B" and open_ones:
                wanted.append([open_ones.pop(0), row])
            elif row[2] == "A":
                open_ones.append(row)
    assert Counter(map(str, run.given["out"])) == Counter(map(str, wanted))


# --- joins ----------------------------------------------------------------------------------------


def test_table_gives_what_it_last_said_and_holds_nobody_up() -> None:
    both = rows().join_table(rows("right"), how="left")
    windows = both.window(tumbling(0.01)).aggregate(count())
    run = Run(plan(out=both, windows=windows))
    run.feed([("a", 1, "early")])
    run.feed([("a", 5, "new"), ("a", 3, "old")], "right")
    run.feed([("a", 2, "x"), ("b", 2, "y")])
    assert [(left[2], right and right[2]) for left, right in run.given["out"]] == [
        ("early", None), ("x", "new"), ("y", None)
    ]  # fmt: skip
    assert len(run.feed([("a", 10, "next")])["windows"]) == 2  # the table is at 5


def test_table_without_a_row_drops_and_counts() -> None:
    run = Run(plan(out=rows().join_table(rows("right"))))
    assert run.feed([("a", 1, "x")]) == {}
    assert run.engine.counts()["join_table-1"] == {"unmatched": 1}


def test_key_of_which_the_table_has_nothing_is_not_kept() -> None:
    run = Run(plan(out=rows().join_table(rows("right"), how="left")))
    run.feed([("a", 1, "x")])
    assert run.store.scan("join_table-1") == []


def test_row_that_was_only_joined_with_is_not_written_again() -> None:
    run = Run(plan(out=rows().join_table(rows("right"))))
    run.feed([("a", 1, "R"), ("b", 1, "R")], "right")

    run.engine.feed("left", 0, [("a", 2, "x"), ("b", 2, "y"), ("c", 2, "z")], [0, 0, 0])
    assert "join_table-1" not in run.engine.take_changes()

    run.engine.put("left", 0, [("b", 3, "x")], [0])
    run.engine.feed("right", 0, [("a", 3, "S"), ("b", 0, "older")], [0, 0])
    assert set(run.engine.take_changes()["join_table-1"]) == {key_state("a")}


def results() -> KeyedStream[str, WindowResult[str, str]]:
    """Rows of the right as results of the windows that end with them; "-" takes one back."""
    return rows("right").map(
        lambda row: WindowResult(
            row[0], row[1] - 4, row[1] + 1, row[2], is_retraction=row[2] == "-"
        )
    )


def test_row_that_is_taken_back_is_joined_with_no_more() -> None:
    run = Run(plan(out=rows().join_table(results(), how="left")))
    run.feed([("a", 5, "R5")], "right")
    run.feed([("a", 4, "-")], "right")  # of another window
    run.feed([("a", 5, "x")])
    run.feed([("a", 5, "-")], "right")
    run.feed([("a", 6, "y")])
    assert [right and right.value for _, right in run.given["out"]] == ["R5", None]


def test_as_of_joins_with_the_one_before_that_which_is_taken_back() -> None:
    run = Run(plan(out=rows().join_as_of(results())))
    run.feed([("a", 5, "x")])
    run.feed([("a", 4, "R4"), ("a", 5, "R5")], "right")
    run.feed([("a", 9, "R9")], "right")  # event time has come to 5: what is of 5 may come still
    run.feed([("a", 5, "-")], "right")
    run.feed([("a", 6, "y")])
    assert [right.value for _, right in run.given["out"]] == ["R4"]


def test_as_of_waits_for_what_is_of_before() -> None:
    run = Run(plan(out=rows().join_as_of(rows("right"))))
    run.feed([("a", 10, "x")])
    run.feed([("a", 8, "R8"), ("a", 11, "R11")], "right")
    assert run.given["out"] == []  # another left of 10 might come
    run.feed([("a", 12, "R12")], "right")
    assert run.feed([("a", 11, "y")]) == {"out": [(("a", 10, "x"), ("a", 8, "R8"))]}


BOTH = st.lists(
    st.tuples(
        st.sampled_from(["left", "right"]),
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 25)), min_size=1, max_size=5),
    ),
    max_size=6,
)


def disordered(name: str) -> KeyedStream[str, Row]:
    """With no record late for as long as these examples go."""
    return (
        source(name, tuple)
        .event_time(lambda row: row[1], unit="ms", disorder=0.03)
        .key_by(lambda row: row[0])
    )


def all_of(batches: list[Any]) -> tuple[list[tuple[str, list[Row]]], dict[str, list[Row]]]:
    """The batches with values that tell records apart, and all records of each side."""
    named: list[tuple[str, list[Row]]] = []
    sides: dict[str, list[Row]] = {"left": [], "right": []}
    for number, (side, batch) in enumerate(batches):
        some: list[Row] = [(key, time, f"{number}.{at}") for at, (key, time) in enumerate(batch)]
        named.append((side, some))
        sides[side] += some
    return named, sides


def ran(run: Run, named: list[tuple[str, list[Row]]]) -> list[Any]:
    for side, batch in named:
        run.feed(batch, side)
    return run.end()["out"]


@given(BOTH, st.sampled_from(["inner", "left"]), st.none() | st.integers(0, 10), st.booleans())
def test_as_of_joins_are_those_of_a_plain_search(
    batches: list[Any], how: Any, tolerance: int | None, restarts: bool
) -> None:
    named, sides = all_of(batches)
    join = disordered("left").join_as_of(
        disordered("right"), how=how, tolerance=None if tolerance is None else tolerance / 1000
    )
    run = Run(plan(out=join), restarts)
    found = ran(run, named)

    wanted = []
    for left in sides["left"]:
        before = [
            (time, number)
            for number, (key, time, _) in enumerate(sides["right"])
            if key == left[0]
            and time <= left[1]
            and (tolerance is None or left[1] - time <= tolerance)
        ]
        if before:
            wanted.append((left, sides["right"][max(before)[1]]))
        elif how == "left":
            wanted.append((left, None))
    assert Counter(found) == Counter(wanted)
    if tolerance is not None:
        assert list(run.store.scan("join_as_of-1")) == []


@given(
    BOTH,
    st.sampled_from(["inner", "left", "full"]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.booleans(),
)
def test_interval_joins_are_those_of_a_plain_search(
    batches: list[Any], how: Any, before: int, after: int, restarts: bool
) -> None:
    named, sides = all_of(batches)
    join = disordered("left").join_interval(
        disordered("right"), how=how, before=before / 1000, after=after / 1000
    )
    run = Run(plan(out=join), restarts)
    found = ran(run, named)

    wanted: list[Any] = [
        (left, right)
        for left in sides["left"]
        for right in sides["right"]
        if left[0] == right[0] and left[1] - before <= right[1] <= left[1] + after
    ]
    paired = {one for pair in wanted for one in pair}
    if how != "inner":
        wanted += [(left, None) for left in sides["left"] if left not in paired]
    if how == "full":
        wanted += [(None, right) for right in sides["right"] if right not in paired]
    assert Counter(found) == Counter(wanted)
    assert list(run.store.scan("join_interval-1")) == []


@given(BOTH, st.sampled_from(["inner", "left", "full"]), st.booleans())
def test_window_joins_are_those_of_a_plain_search(
    batches: list[Any], how: Any, restarts: bool
) -> None:
    named, sides = all_of(batches)
    join = disordered("left").join_window(disordered("right"), tumbling(0.01), how=how)
    found = ran(Run(plan(out=join), restarts), named)

    wanted: list[Any] = []
    for key in "ab":
        for start in range(0, 30, 10):
            left, right = (
                [row for row in sides[side] if row[0] == key and start <= row[1] < start + 10]
                for side in ("left", "right")
            )
            if not right and how != "inner":
                right = [None]  # type: ignore[list-item]
            if not left and how == "full" and right != [None]:
                left = [None]  # type: ignore[list-item]
            wanted += [(key, start, one, other) for one in left for other in right]
    assert Counter((one.key, one.start_ms, *one.value) for one in found) == Counter(wanted)


@pytest.mark.parametrize("kind", ["as_of", "interval", "window"])
def test_what_is_too_late_to_be_joined_is_told(kind: str) -> None:
    left, right = rows(), rows("right")
    join: Any = {
        "as_of": lambda: left.join_as_of(right, lateness=0.005),
        "interval": lambda: left.join_interval(right, before=0.005, lateness=0.005),
        "window": lambda: left.join_window(right, tumbling(0.005)),
    }[kind]()
    run = Run(plan(out=join, late=join.late))
    run.feed([("a", 50, "")], "right")
    run.feed([("a", 50, "")])
    run.feed([("a", 46, "in time"), ("a", 40, "late")])

    (late,) = [one for one in run.given["late"] if one.value[2] == "late"]
    assert (late.key, late.time_ms, late.value) == ("a", 40, ("a", 40, "late"))
    assert sum(counts.get("late", 0) for counts in run.engine.counts().values()) == len(
        run.given["late"]
    )


def test_as_of_within_its_lateness_joins_at_once() -> None:
    run = Run(plan(out=rows().join_as_of(rows("right"), lateness=0.02)))
    run.feed([("a", 5, "R5"), ("a", 30, "R30")], "right")
    run.feed([("a", 30, "now")])
    assert run.feed([("a", 12, "late")]) == {"out": [(("a", 12, "late"), ("a", 5, "R5"))]}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rows().process(add, state=Total, on_timer="x"), "process(on_timer=): expected a function of a context and a timer's name; got 'x'"),
        (lambda: rows().dedup(3, within="1m"), "dedup(): expected a function of a record"),
        (lambda: rows().pattern(within="1m"), "pattern(): expected functions"),
        (lambda: rows().join_table(rows("right"), how="full"), "join_table(): how='full'"),
        (lambda: rows().join_interval(rows("right"), how="right"), "expected 'inner' or 'left' or 'full'"),
        (lambda: rows().join_window(rows("right"), counting(3)), "expected tumbling(…), hopping(…) or session(…)"),
        (lambda: rows().join_as_of(source("right", tuple)), "the other stream has no keys"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
