"""Joins, patterns and timers over several partitions, some of which fall silent, with records that come too late: against models that keep all that ever came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from mycelia.flow import (
    Engine,
    FlowPlan,
    KeyContext,
    KeyedStream,
    MemoryStore,
    WindowResult,
    source,
)
from mycelia.flow.state_codec import decode_state

Row = tuple[str, int, str]
"""Key, event time and name."""

BEGINNING = -(2**62)
END = 2**62


class Turn(NamedTuple):
    side: str
    partition: int
    rows: list[Row]
    now_ms: int


SIDES = ("left", "right")


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    """Batches of two sources of two partitions, mostly in order; and some in which only time on the wall comes by."""
    found, now, about = [], 0, 0
    for number in range(draw(st.integers(1, 12))):
        now += draw(st.integers(0, 12))
        about += draw(st.integers(0, 8))
        drawn = draw(
            st.lists(
                st.tuples(st.sampled_from("kl"), st.integers(-15, 5), st.sampled_from("AB-")),
                max_size=4,
            )
        )
        rows = [
            (key, max(about + time, 0), f"{kind}{number}.{at}")
            for at, (key, time, kind) in enumerate(drawn)
        ]
        side, partition = draw(st.sampled_from(SIDES)), draw(st.integers(0, 1))
        found.append(Turn(side, partition, rows, now))
    return found


class Clock:
    """How far event time has come in one source, or in two of which the one behind counts."""

    def __init__(self, sides: tuple[str, ...], disorder: int, idle: int | None) -> None:
        self.sides, self.disorder, self.idle = sides, disorder, idle
        self.greatest: dict[tuple[str, int], int] = {}
        self.heard: dict[tuple[str, int], int] = {}
        self.of_side = dict.fromkeys(sides, BEGINNING)
        self.watermark = BEGINNING

    def turn(self, turn: Turn) -> None:
        if turn.rows and turn.side in self.sides:
            place = turn.side, turn.partition
            self.greatest[place] = max(
                self.greatest.get(place, BEGINNING), *(time for _, time, _ in turn.rows)
            )
            self.heard[place] = turn.now_ms
        awake = []
        for side in self.sides:
            places = [(side, 0), (side, 1)]
            active = []
            for place in places:
                self.heard.setdefault(place, turn.now_ms)
                if self.idle is None or turn.now_ms - self.heard[place] < self.idle:
                    active.append(place)
            reached = [self.greatest.get(place, BEGINNING) for place in active or places]
            latest = (min if active else max)(reached)
            if latest > BEGINNING:
                self.of_side[side] = max(self.of_side[side], latest - self.disorder)
            if active:
                awake.append(side)
        if awake:
            reached_now = min(self.of_side[side] for side in awake)
        else:
            reached_now = max(self.of_side.values())
        self.watermark = max(self.watermark, reached_now)


def rows_of(name: str, disorder: int, idle: int | None) -> KeyedStream[str, Row]:
    return (
        source(name, tuple)
        .event_time(
            lambda row: row[1],
            unit="ms",
            disorder=disorder / 1000,
            idle=None if idle is None else idle / 1000,
        )
        .key_by(lambda row: row[0])
    )


class Run:
    def __init__(self, restarts: bool, **outputs: Any) -> None:
        self.plan = FlowPlan({name: stream.port for name, stream in outputs.items()})
        self.restarts = restarts
        self.store = MemoryStore()
        self.sides = list(self.plan.sources)
        self.given: dict[str, list[Any]] = {name: [] for name in outputs}
        self.begin()

    def begin(self) -> None:
        self.engine = Engine(self.plan, {name: [0, 1] for name in self.sides}, store=self.store)

    def note(self, given: Any) -> dict[str, list[Any]]:
        now: dict[str, list[Any]] = {}
        for one in given:
            self.given[one.output] += one.values
            now.setdefault(one.output, []).extend(one.values)
        self.store.write(self.engine.take_changes())
        if self.restarts:
            self.begin()
        return now

    def turn(self, turn: Turn) -> dict[str, list[Any]]:
        if not turn.rows or turn.side not in self.sides:
            return self.note(self.engine.tick(turn.now_ms))
        rows = list(turn.rows)
        return self.note(
            self.engine.feed(turn.side, turn.partition, rows, [0] * len(rows), now_ms=turn.now_ms)
        )

    def end(self) -> None:
        for name in self.sides:
            for partition in (0, 1):
                self.note(self.engine.end(name, partition))


DISORDER = st.integers(0, 10)
# Silence is counted anew when an engine begins again, so those that do know none.
IDLE = st.one_of(st.tuples(st.none(), st.booleans()), st.tuples(st.integers(1, 20), st.just(False)))
LATENESS = st.integers(0, 12)


@given(
    turns(),
    DISORDER,
    IDLE,
    LATENESS,
    st.sampled_from(["inner", "left", "full"]),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_interval_joins_with_late_records_are_those_of_the_model(
    turns: list[Turn],
    disorder: int,
    idle: tuple[int | None, bool],
    lateness: int,
    how: Any,
    before: int,
    after: int,
) -> None:
    left, right = (rows_of(side, disorder, idle[0]) for side in SIDES)
    join = left.join_interval(
        right, before=before / 1000, after=after / 1000, how=how, lateness=lateness / 1000
    )
    run = Run(idle[1], out=join, late=join.late)
    clock = Clock(SIDES, disorder, idle[0])
    taken: dict[str, list[Row]] = {"left": [], "right": []}
    late: list[Row] = []
    for turn in turns:
        for row in turn.rows:
            is_late = row[1] + lateness < clock.watermark
            (late if is_late else taken[turn.side]).append(row)
        clock.turn(turn)
        run.turn(turn)
    run.end()

    wanted: list[Any] = [
        (one, other)
        for one in taken["left"]
        for other in taken["right"]
        if one[0] == other[0] and one[1] - before <= other[1] <= one[1] + after
    ]
    paired = {row for pair in wanted for row in pair}
    if how != "inner":
        wanted += [(one, None) for one in taken["left"] if one not in paired]
    if how == "full":
        wanted += [(None, one) for one in taken["right"] if one not in paired]
    assert Counter(run.given["out"]) == Counter(wanted)
    assert [one.value for one in run.given["late"]] == late
    assert list(run.store.scan("join_interval-1")) == []


def as_result(row: Row) -> WindowResult[str, str]:
    """Of the window that ends with its time; one called `-` takes back what was told of that."""
    key, time, name = row
    return WindowResult(key, time - 4, time + 1, name, is_retraction=name[0] == "-")


def coarse(turn: Turn) -> Turn:
    """With few times on the right, so that some take others back."""
    if turn.side == "left":
        return turn
    return turn._replace(rows=[(key, time - time % 5, name) for key, time, name in turn.rows])


@given(
    turns(),
    DISORDER,
    IDLE,
    LATENESS,
    st.sampled_from(["inner", "left"]),
    st.none() | st.integers(0, 15),
)
def test_as_of_joins_with_late_records_are_those_of_the_model(
    turns: list[Turn],
    disorder: int,
    idle: tuple[int | None, bool],
    lateness: int,
    how: Any,
    tolerance: int | None,
) -> None:
    """What is taken back too late is left out here: what it has hidden so far may be gone."""
    left, right = (rows_of(side, disorder, idle[0]) for side in SIDES)
    join = left.join_as_of(
        right.map(as_result),
        how=how,
        tolerance=None if tolerance is None else tolerance / 1000,
        lateness=lateness / 1000,
    )
    run = Run(idle[1], out=join, late=join.late)
    clock = Clock(SIDES, disorder, idle[0])
    rights: list[Row] = []
    waiting: list[Row] = []
    late: list[Row] = []
    wanted: list[Any] = []

    def give(row: Row) -> None:
        reach = row[1] - (10**9 if tolerance is None else tolerance)
        found = [
            (one[1], at)
            for at, one in enumerate(rights)
            if one[0] == row[0] and reach <= one[1] <= row[1]
        ]
        if found:
            wanted.append((row, rights[max(found)[1]][2]))
        elif how == "left":
            wanted.append((row, None))

    def given() -> Counter[Any]:
        return Counter((one, other and other.value) for one, other in run.given["out"])

    for turn in map(coarse, turns):
        if turn.side == "right":
            in_time = [row for row in turn.rows if row[2][0] != "-" or row[1] >= clock.watermark]
            turn = turn._replace(rows=in_time)
        for row in turn.rows:
            if turn.side == "right":
                if row[2][0] == "-":
                    rights = [one for one in rights if one[:2] != row[:2]]
                else:
                    rights.append(row)
            elif row[1] + lateness < clock.watermark:
                late.append(row)
            elif row[1] < clock.watermark:
                give(row)
            else:
                waiting.append(row)
        clock.turn(turn)
        for row in [one for one in waiting if one[1] < clock.watermark]:
            waiting.remove(row)
            give(row)
        run.turn(turn)
        assert given() == Counter(wanted)
    run.end()
    for row in waiting:
        give(row)

    assert given() == Counter(wanted)
    assert [one.value for one in run.given["late"]] == late


# Where some turns end with a new start, silence would be counted anew.
STARTS = st.one_of(
    st.tuples(st.none(), st.frozensets(st.integers(0, 11))),
    st.tuples(st.integers(1, 20), st.just(frozenset[int]())),
)


def told(context: KeyContext[str, None], pair: Any) -> Iterator[Any]:
    yield context.key, context.time_ms, context.watermark_ms, pair


@given(turns(), DISORDER, STARTS, st.sampled_from(["inner", "left"]))
def test_table_joins_are_those_of_the_model(
    turns: list[Turn], disorder: int, idle: tuple[int | None, frozenset[int]], how: Any
) -> None:
    """Rows that are newer, older, of the same time or taken back; with the times and the watermark of what is given."""
    left, right = (rows_of(side, disorder, idle[0]) for side in SIDES)
    join = left.join_table(right.map(as_result), how=how)
    run = Run(False, out=join.process(told, state=lambda: None))
    clock = Clock(("left",), disorder, idle[0])
    table: dict[str, tuple[int, str]] = {}
    wanted: list[Any] = []
    for at, turn in enumerate(map(coarse, turns)):
        for key, time, name in turn.rows:
            held = table.get(key)
            if turn.side == "left":
                if held or how == "left":
                    wanted.append((key, time, clock.watermark, name, held and held[1]))
            elif name[0] == "-":
                if held and held[0] == time:
                    del table[key]
            elif held is None or time >= held[0]:
                table[key] = (time, name)
        clock.turn(turn)
        run.restarts = at in idle[1]
        run.turn(turn)

        assert [
            (*about, one[2], other and other.value) for *about, (one, other) in run.given["out"]
        ] == wanted
        assert {decode_state(key) for key, _ in run.store.scan("join_table-1")} == set(table)


@given(turns(), DISORDER, IDLE, st.integers(0, 20))
def test_patterns_with_late_records_are_those_of_the_model(
    turns: list[Turn], disorder: int, idle: tuple[int | None, bool], within: int
) -> None:
    """Of two logs in one: time comes as far as in the one that is behind."""
    left, right = (rows_of(side, disorder, idle[0]) for side in SIDES)
    found = left.merge(right).pattern(
        lambda row: row[2][0] == "A",
        lambda row: row[2][0] == "B",
        lambda row: row[2][0] == "B",
        within=within / 1000,
    )
    run = Run(idle[1], out=found, late=found.late, unfinished=found.unfinished)
    clock = Clock(SIDES, disorder, idle[0])
    taken: list[Row] = []
    late: list[Row] = []
    for turn in turns:
        for row in turn.rows:
            (late if row[1] < clock.watermark else taken).append(row)
        clock.turn(turn)
        run.turn(turn)
    run.end()

    wanted, unfinished = [], []
    for key in "kl":
        begun: list[list[Row]] = []
        for row in sorted((row for row in taken if row[0] == key), key=lambda row: row[1]):
            unfinished += [one for one in begun if row[1] - one[0][1] > within]
            begun = [one for one in begun if row[1] - one[0][1] <= within]
            if row[2][0] == "B" and begun:
                begun[0].append(row)
                if len(begun[0]) == 3:
                    wanted.append(begun.pop(0))
            elif row[2][0] == "A":
                begun.append([row])
        unfinished += begun
    assert Counter(map(str, run.given["out"])) == Counter(map(str, wanted))
    assert Counter(map(str, run.given["unfinished"])) == Counter(map(str, unfinished))
    assert [one.value for one in run.given["late"]] == late
    assert list(run.store.scan("pattern-1")) == []


# --- timers -----------------------------------------------------------------------------------------


def heard(context: KeyContext[str, list[str]], row: Row) -> Iterator[str]:
    """What is done depends on the row's name, so that the model may do the same."""
    what, number = row[2][0], int(row[2].split(".")[1])
    context.state.append(row[2])
    if what == "A":
        context.set_timer(row[1] + 3 * number, f"at {number}")
        context.set_wall_timer(context.now_ms + 5 * number, "wall")
    elif what == "B":
        context.cancel_timer(row[1] + 3, "at 1")
        context.cancel_wall_timer(context.now_ms + 5, "wall")
        context.set_timer(row[1] + 4, "again")
    else:
        context.clear()
    yield f"{context.key} {row[2]} {len(context.state)} {context.watermark_ms}"


def fired(context: KeyContext[str, list[str]], name: str) -> Iterator[str]:
    context.state.append(name)
    if name == "again" and len(context.state) % 2:
        context.set_timer(context.time_ms + 2, "again")
    if name == "wall":
        context.set_timer(context.watermark_ms, "now")
    if name.startswith("at"):  # of the same time as others, perhaps
        if len(context.state) % 3 != 1:
            context.cancel_timer(context.time_ms, "again")
        if len(context.state) % 3 != 2:
            context.set_timer(context.time_ms, "again")
    yield f"{context.key} {name} {context.time_ms} {len(context.state)}"


class Timers:
    """In a list."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int, str, str]] = []
        self.pending: list[tuple[int, int, str, str]] = []
        self.number = 0

    def set(self, at: int, key: str, name: str) -> None:
        if not any((at, key, name) == (one[0], *one[2:]) for one in self.all + self.pending):
            self.number += 1
            self.all.append((at, self.number, key, name))

    def cancel(self, at: int, key: str, name: str) -> None:
        for kept in (self.all, self.pending):
            kept[:] = [one for one in kept if (one[0], *one[2:]) != (at, key, name)]

    def due(self, now: int) -> Iterator[tuple[int, int, str, str]]:
        """One after the other; those of one time before what is set meanwhile."""
        while self.all and min(self.all)[0] <= now:
            first = min(self.all)[0]
            self.pending = sorted(one for one in self.all if one[0] == first)
            self.all = [one for one in self.all if one[0] != first]
            while self.pending:
                yield self.pending.pop(0)


class TimersModel:
    def __init__(self, clock: Clock) -> None:
        self.clock, self.now = clock, 0
        self.events, self.wall = Timers(), Timers()
        self.states: dict[str, list[str]] = {}
        self.told: list[str] = []

    def state(self, key: str) -> list[str]:
        return self.states.setdefault(key, [])

    def record(self, row: Row) -> None:
        key, time, name = row
        number = int(name.split(".")[1])
        state = self.state(key)
        state.append(name)
        if name[0] == "A":
            self.events.set(time + 3 * number, key, f"at {number}")
            self.wall.set(self.now + 5 * number, key, "wall")
        elif name[0] == "B":
            self.events.cancel(time + 3, key, "at 1")
            self.wall.cancel(self.now + 5, key, "wall")
            self.events.set(time + 4, key, "again")
        else:
            del self.states[key]
        self.told.append(f"{key} {name} {len(state)} {self.clock.watermark}")

    def fire(self, timers: Timers, now: int) -> None:
        for at, _, key, name in timers.due(now):
            state = self.state(key)
            state.append(name)
            watermark = self.clock.watermark
            time = at if timers is self.events or watermark == BEGINNING else watermark
            if name == "again" and len(state) % 2:
                self.events.set(time + 2, key, "again")
            if name == "wall":
                self.events.set(watermark, key, "now")
            if name.startswith("at"):
                if len(state) % 3 != 1:
                    self.events.cancel(time, key, "again")
                if len(state) % 3 != 2:
                    self.events.set(time, key, "again")
            self.told.append(f"{key} {name} {time} {len(state)}")

    def turn(self, turn: Turn) -> None:
        self.now = turn.now_ms
        self.fire(self.wall, self.now)
        if turn.rows:
            for row in turn.rows:
                self.record(row)
            self.fire(self.events, self.clock.watermark)
        before = self.clock.watermark
        self.clock.turn(turn)
        if self.clock.watermark > before:
            self.fire(self.events, self.clock.watermark)


@given(turns(), DISORDER, IDLE)
def test_timers_on_both_clocks_fire_as_in_the_model(
    turns: list[Turn], disorder: int, idle: tuple[int | None, bool]
) -> None:
    turns = [turn._replace(side="left") for turn in turns]
    stream = rows_of("left", disorder, idle[0]).process(heard, state=list, on_timer=fired)
    run = Run(idle[1], out=stream)
    model = TimersModel(Clock(("left",), disorder, idle[0]))
    for turn in turns:
        model.turn(turn)
        run.turn(turn)
        assert run.given["out"] == model.told
