"""Windows against plain models that know nothing of batches, slices, timers or merging state: each emission, lateness and mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.flow.batches import Records, columns, save, taken

from mycelia.flow import MemoryStore, collect, count, source, sum_of, tumbling
from mycelia.flow.aligned_windows import AlignedWindows
from mycelia.flow.column_batch import END_OF_TIME
from mycelia.flow.emission import AfterRecords, Emission, EveryPeriod, Mode
from mycelia.flow.session_windows import MergingWindows
from mycelia.flow.sliding_windows import TrailingWindows
from mycelia.flow.windows import HoppingWindows, SessionWindows, SlidingWindows
from mycelia.testing import FlowDriver

Span = tuple[int, int]
Told = tuple[Any, ...]


@dataclass
class Window:
    """What a model holds of a window of a key."""

    span: Span
    records: list[Any] = field(default_factory=list)
    fresh: list[Any] = field(default_factory=list)
    is_closed: bool = False
    index: int = 0
    told: list[tuple[Span, int, list[Any]]] = field(default_factory=list)
    begun_at: int = -(2**62)
    """The watermark as its last records came."""


class Model(ABC):
    """Keeps windows in a list and looks at all of them whenever anything happens.

    Time goes by in steps of a millisecond, so that what is due at one is seen at that one.
    """

    def __init__(self, emission: Emission, lateness: int) -> None:
        self.emission, self.lateness = emission, lateness
        self.watermark = -(2**62)
        self.windows: dict[Any, list[Window]] = {}
        self.told: list[Told] = []
        self.late: list[tuple[Any, Any]] = []

    def batch(self, records: Records) -> None:
        by_key: dict[Any, list[tuple[int, Any]]] = {}
        for key, time, value in records:
            by_key.setdefault(key, []).append((time, value))
        for key, own in by_key.items():
            touched = self.let_in(key, own)
            for window in [one for one in self.windows.get(key, []) if one in touched]:
                window.begun_at = self.watermark
                self.after_records(key, window)

    @abstractmethod
    def let_in(self, key: Any, records: list[tuple[int, Any]]) -> list[Window]:
        """Take a key's records of one batch; returns the windows that they are in."""

    def after_records(self, key: Any, window: Window) -> None:
        early = self.emission.early
        if window.span[1] <= self.watermark:
            if len(window.fresh) >= self.emission.late.count:
                self.tell(key, window, "late", False)
        elif isinstance(early, AfterRecords) and len(window.fresh) >= early.count:
            self.tell(key, window, "early", False)

    def advance(self, watermark: int, through: int) -> None:
        """Each millisecond up to `through`, and then at once."""
        steps = range(self.watermark + 1, min(watermark, through)) if self.watermark > -100 else ()
        for now in [*steps, watermark]:
            before, self.watermark = self.watermark, now
            for key, windows in self.windows.items():
                for window in list(windows):
                    self.passed(key, window, windows, before, now)
        self.watermark = watermark

    def passed(
        self, key: Any, window: Window, windows: list[Window], before: int, now: int
    ) -> None:
        end = window.span[1]
        early = self.emission.early
        if isinstance(early, EveryPeriod) and early.clock == "event" and window.fresh:
            # The first multiple behind its beginning, and behind the watermark as its records came.
            since = max(window.begun_at, window.span[0])
            at = since - since % early.period_ms + early.period_ms
            if before < at <= now and at < end:
                self.tell(key, window, "early", False)
        if end <= now and not window.is_closed and before < end:
            self.tell(key, window, "on time", not self.lateness)
        if end + self.lateness <= now:
            if window.fresh:
                self.tell(key, window, "late", True)
            windows.remove(window)

    def tick(self, before: int, now: int) -> None:
        early = self.emission.early
        if isinstance(early, EveryPeriod) and early.clock == "processing":
            period = early.period_ms
            if before // period < now // period:
                for key, windows in self.windows.items():
                    for window in windows:
                        if window.fresh and window.span[1] > self.watermark:
                            self.tell(key, window, "early", False)

    def value(self, key: Any, window: Window) -> list[Any]:
        return list(window.fresh if self.emission.mode == "discard" else window.records)

    def tell(self, key: Any, window: Window, timing: str, is_final: bool) -> None:
        value = sorted(self.value(key, window))
        for span, index, was in window.told:
            self.told.append((key, *span, tuple(was), timing, index, False, True))
        window.told.clear()
        self.told.append((key, *window.span, tuple(value), timing, window.index, is_final, False))
        if self.emission.mode == "retract":
            window.told.append((window.span, window.index, value))
        window.index += 1
        window.fresh.clear()
        window.is_closed = window.is_closed or timing != "early"


class AlignedModel(Model):
    def __init__(self, kind: HoppingWindows, emission: Emission, lateness: int) -> None:
        super().__init__(emission, lateness)
        self.kind = kind

    def let_in(self, key: Any, records: list[tuple[int, Any]]) -> list[Window]:
        kind, touched = self.kind, []
        windows = self.windows.setdefault(key, [])
        for time, value in records:
            missed = False
            for start in range(time - kind.size_ms + 1, time + 1):
                if (start - kind.offset_ms) % kind.every_ms:
                    continue
                span = (start, start + kind.size_ms)
                if span[1] + self.lateness <= self.watermark:
                    missed = True
                    continue
                window = next((one for one in windows if one.span == span), None)
                if window is None:
                    window = Window(span)
                    windows.append(window)
                window.records.append(value)
                window.fresh.append(value)
                touched.append(window)
            if missed:
                self.late.append((key, value))
        return touched


class SlidingModel(Model):
    """Keeps all records of a key for ever."""

    def __init__(self, kind: SlidingWindows, emission: Emission, lateness: int) -> None:
        super().__init__(emission, lateness)
        self.size = kind.size_ms
        self.all: dict[Any, list[tuple[int, Any]]] = {}

    def let_in(self, key: Any, records: list[tuple[int, Any]]) -> list[Window]:
        windows, held = self.windows.setdefault(key, []), self.all.setdefault(key, [])
        touched: list[Window] = []
        for time, value in sorted(records, key=lambda one: one[0]):
            if time + 1 + self.lateness <= self.watermark:
                self.late.append((key, value))
            elif all(one.span[1] != time + 1 for one in windows):
                windows.append(Window((time + 1 - self.size, time + 1)))
            held.append((time, value))
            for window in windows:
                if window.span[0] <= time < window.span[1]:
                    window.fresh.append(value)
                    touched.append(window)
        return touched

    def value(self, key: Any, window: Window) -> list[Any]:
        start, end = window.span
        return [value for time, value in self.all[key] if start <= time < end]


class SessionModel(Model):
    """A batch's records of a key are put in order of time; what overlaps in `[time, time + gap)` is one session."""

    def __init__(self, kind: SessionWindows, emission: Emission, lateness: int) -> None:
        super().__init__(emission, lateness)
        self.gap = kind.gap_ms

    def let_in(self, key: Any, records: list[tuple[int, Any]]) -> list[Window]:
        windows = self.windows.setdefault(key, [])
        touched: list[Window] = []
        runs: list[Window] = []
        for time, value in sorted(records, key=lambda one: one[0]):
            if runs and time < runs[-1].span[1]:
                runs[-1].span = (runs[-1].span[0], time + self.gap)
            else:
                runs.append(Window((time, time + self.gap)))
            runs[-1].records.append(value)
            runs[-1].fresh.append(value)
        for run in runs:
            met = [
                one for one in windows if one.span[0] < run.span[1] and run.span[0] < one.span[1]
            ]
            span = (
                min(one.span[0] for one in [run, *met]),
                max(one.span[1] for one in [run, *met]),
            )
            if span[1] + self.lateness <= self.watermark:
                self.late += [(key, value) for value in run.records]
                continue
            same = next((one for one in met if one.span == span), None)
            run.span = span
            for one in met:
                run.records += one.records
                run.fresh += one.fresh
                run.told += one.told
                windows.remove(one)
            if same is not None:
                run.index, run.is_closed = same.index, same.is_closed
            windows.append(run)
            windows.sort(key=lambda one: one.span)
            touched = [*(one for one in touched if one not in met), run]
        return touched


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[Records, int, int]]:
    """Batches; after each how far the watermark goes, and the time on the wall."""
    found = []
    watermark = now = 0
    for number in range(draw(st.integers(1, 7))):
        batch = draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60)), max_size=6))
        watermark += draw(st.integers(0, 25))
        now += draw(st.integers(0, 25))
        records = [(key, time, f"{number}.{at}") for at, (key, time) in enumerate(batch)]
        found.append((records, watermark, now))
    return found


def emissions(modes: list[Mode], *, periods: bool = True) -> st.SearchStrategy[Emission]:
    counts = st.builds(AfterRecords, st.integers(1, 3))
    early: st.SearchStrategy[Any] = st.none() | counts
    if periods:
        clocks = st.sampled_from(["event", "processing"])
        early = early | st.builds(EveryPeriod, st.integers(1, 15), clocks)
    return st.builds(Emission, early, counts, st.sampled_from(modes))


MODES: list[Mode] = ["accumulate", "discard", "retract"]
LATENESS = st.integers(0, 25)


def as_told(results: list[Any]) -> list[Told]:
    return [
        (
            one.key,
            one.start_ms,
            one.end_ms,
            tuple(sorted(one.value)),
            one.timing,
            one.index,
            one.is_final,
            one.is_retraction,
        )
        for one in results
    ]


def compare(make: Any, model: Model, turns: list[tuple[Records, int, int]], restarts: bool) -> None:
    store = MemoryStore()
    windows = make(store)
    windows.advance(0)
    model.watermark = 0
    before = 0
    for records, watermark, now in [*turns, ([], END_OF_TIME, 1_000)]:
        windows.tick(now)
        model.tick(before, now)
        before = now
        if records:
            windows.process(0, columns(records))
            model.batch(records)
        if watermark > windows.watermark:
            windows.advance(watermark)
            model.advance(watermark, through=200)
        assert Counter(as_told(taken(windows))) == Counter(model.told)
        assert Counter((one.key, one.value) for one in taken(windows, 1)) == Counter(model.late)
        model.told.clear()
        model.late.clear()
        if restarts:
            save(windows, store)
            again = make(store)
            again.watermark = windows.watermark
            windows = again
            windows.tick(now)
    save(windows, store)
    left = {space for space in store._spaces if store.scan(space) and not space.endswith("~wall")}
    assert left == set()


@st.composite
def hoppings(draw: st.DrawFn) -> HoppingWindows:
    step = draw(st.integers(1, 20))
    return HoppingWindows(draw(st.integers(1, 20)), step, draw(st.integers(0, step - 1)))


LENGTHS = st.integers(1, 25)
KINDS: dict[str, tuple[Any, Any, st.SearchStrategy[Any], st.SearchStrategy[Emission]]] = {
    "tumbling and hopping": (AlignedWindows, AlignedModel, hoppings(), emissions(MODES)),
    "sliding": (
        TrailingWindows,
        SlidingModel,
        st.builds(SlidingWindows, LENGTHS),
        emissions(["accumulate", "retract"], periods=False),
    ),
    "session": (MergingWindows, SessionModel, st.builds(SessionWindows, LENGTHS), emissions(MODES)),
}
"""Of each the operator, its model, and what may be asked of them."""


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), turns(), LATENESS, st.booleans())
def test_windows_give_what_the_model_gives(
    kind: str, data: st.DataObject, turns: Any, lateness: int, restarts: bool
) -> None:
    operator, model, shapes, emissions = KINDS[kind]
    shape, emission = data.draw(shapes, "shape"), data.draw(emissions, "emission")
    make = partial(operator, "w", shape, collect(), emission, lateness)
    compare(make, model(shape, emission, lateness), turns, restarts)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 120)), max_size=40),
    st.integers(0, 30),
    st.integers(1, 10),
    st.integers(0, 100),
    st.sampled_from([0.0, 0.2]),
)
def test_signed_sums_over_retractions_are_those_of_the_records(
    records: list[tuple[str, int]], disorder: int, batch: int, seed: int, crash_rate: float
) -> None:
    """Whatever was told too early is taken back in the windows behind as well, where those take late results for as long."""
    late_ms = 500
    numbers = (
        source("in", tuple)
        .event_time(lambda one: one[1], unit="ms", disorder=disorder / 1000)
        .key_by(lambda one: one[0])
        .window(tumbling(0.01), lateness=late_ms / 1000, emit="update", mode="retract")
        .aggregate(count())
    )
    sums = numbers.window(tumbling(0.04), lateness=late_ms / 1000, emit="update").aggregate(
        sum_of(lambda one: -one.value if one.is_retraction else one.value)
    )
    driver = FlowDriver({"out": sums}, partitions=2, seed=seed, crash_rate=crash_rate)
    for partition in (0, 1):
        driver.append("in", records[partition::2], partition=partition, batch=batch)
    driver.end()

    stands = {(one.key, one.start_ms): one.value for one in driver.given("out")}
    assert stands == Counter((key, time - time % 40) for key, time in records)
