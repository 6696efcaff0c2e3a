"""Sliding windows and windows of a number of records."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.flow.batches import Records, brief, columns, save, taken

from mycelia.errors import ConfigError, FlowFunctionError
from mycelia.flow import (
    MemoryStore,
    after,
    collect,
    counting,
    every,
    hopping,
    mean,
    session,
    sliding,
    sum_of,
    tumbling,
)
from mycelia.flow.column_batch import END_OF_TIME
from mycelia.flow.count_windows import FillingWindows
from mycelia.flow.emission import Emission, emission_of
from mycelia.flow.sliding_windows import TrailingWindows
from mycelia.flow.windows import HoppingWindows


def trailing(
    size: int,
    emission: Emission | None = None,
    lateness: int = 0,
    store: Any = None,
    aggregation: Any = None,
) -> TrailingWindows:
    return TrailingWindows(
        "w", sliding(size / 1000), aggregation or collect(), emission or Emission(), lateness, store
    )


def test_sliding_window_of_a_time_holds_what_came_in_the_size_up_to_it() -> None:
    windows = trailing(10)
    windows.process(0, columns([("a", 0, 1), ("a", 9, 2), ("a", 10, 3), ("b", 10, 9)]))
    windows.advance(10)
    assert brief(taken(windows)) == [("a", -9, 1, [1], "on time"), ("a", 0, 10, [1, 2], "on time")]

    windows.advance(11)
    assert brief(taken(windows)) == [("a", 1, 11, [2, 3], "on time"), ("b", 1, 11, [9], "on time")]


def test_late_record_changes_the_sliding_windows_after_it() -> None:
    windows = trailing(10, lateness=20)
    windows.process(0, columns([("a", 10, 1)]))
    windows.advance(15)
    taken(windows)
    windows.process(0, columns([("a", 5, 2)]))

    assert brief(taken(windows)) == [("a", -4, 6, [2], "late"), ("a", 1, 11, [2, 1], "late")]


def test_record_too_late_for_its_own_sliding_window_is_told_and_counts_in_later_ones() -> None:
    windows = trailing(10)
    windows.process(0, columns([("a", 12, 1)]))
    windows.advance(8)
    windows.process(0, columns([("a", 5, 2)]))
    assert [one.value for one in taken(windows, 1)] == [2]

    windows.advance(END_OF_TIME)
    assert brief(taken(windows)) == [("a", 3, 13, [2, 1], "on time")]


def test_a_sliding_windows_result_leaves_the_records_as_they_are() -> None:
    windows = trailing(10, Emission(early=after(1)))
    for time in (1, 2, 3):
        windows.process(0, columns([("a", time, time)]))
    taken(windows)
    windows.advance(END_OF_TIME)

    assert [one.value for one in taken(windows)] == [[1], [1, 2], [1, 2, 3]]


@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), min_size=1, max_size=6),
        max_size=5,
    ),
    size=st.integers(1, 25),
    restarts=st.booleans(),
)
def test_sliding_windows_are_those_of_each_time_and_key(
    batches: list[list[tuple[str, int]]], size: int, restarts: bool
) -> None:
    store = MemoryStore()
    windows = trailing(size, store=store)
    records: Records = []
    for number, batch in enumerate(batches):
        some: Records = [(key, time, (number, at)) for at, (key, time) in enumerate(batch)]
        records += some
        windows.process(0, columns(some))
        if restarts:
            save(windows, store)
            windows = trailing(size, store=store)
    windows.advance(END_OF_TIME)

    wanted = {
        (key, time + 1): sorted(
            value for other, at, value in records if other == key and time - size < at <= time
        )
        for key, time, _ in records
    }
    results = taken(windows)
    assert len(results) == len(wanted)
    assert {(one.key, one.end_ms): sorted(one.value) for one in results} == wanted
    save(windows, store)
    assert len(store) == 0


# --- numbers of records ---------------------------------------------------------------------------


def test_window_of_a_number_closes_as_it_is_full() -> None:
    windows = FillingWindows("w", counting(2), collect())
    windows.process(0, columns([("a", 5, 1), ("b", 1, 9), ("a", 3, 2), ("a", 8, 3)]))

    (one,) = taken(windows)
    assert (one.key, one.start_ms, one.end_ms, one.value, one.index) == ("a", 3, 6, [1, 2], 0)
    windows.process(0, columns([("a", 7, 4), ("a", 7, 5), ("a", 7, 6), ("a", 7, 7)]))
    assert [(one.value, one.index) for one in taken(windows)] == [([3, 4], 1), ([5, 6], 2)]


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1), max_size=6), st.integers(1, 5))
def test_windows_of_a_number_do_not_depend_on_the_batches(
    batches: list[list[str]], size: int
) -> None:
    store = MemoryStore()
    seen: dict[str, list[int]] = {"a": [], "b": []}
    results: Counter[Any] = Counter()
    number = 0
    for batch in batches:
        windows = FillingWindows("w", counting(size), collect(), store)
        records: Records = []
        for key in batch:
            records.append((key, number, number))
            seen[key].append(number)
            number += 1
        windows.process(0, columns(records))
        results.update((one.key, tuple(one.value)) for one in taken(windows))
        save(windows, store)

    assert results == Counter(
        (key, tuple(values[at : at + size]))
        for key, values in seen.items()
        for at in range(0, len(values) - size + 1, size)
    )


def test_errors_in_them_name_the_record() -> None:
    bad = columns([("a", 1, 1), ("a", 2, 0)])
    for windows in (
        FillingWindows("w", counting(3), sum_of(lambda value: 1 // value)),
        trailing(5, aggregation=mean(lambda value: 1 // value)),
    ):
        with pytest.raises(FlowFunctionError, match="record 1 of the batch, key 'a'"):
            windows.process(0, bad)


# --- what is written of windows -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tumbling("1h"), "tumbling(1h)"),
        (lambda: tumbling("1d", offset="5h"), "tumbling(1d, offset=5h)"),
        (lambda: hopping("10m", every="1m"), "hopping(10m, every=1m)"),
        (lambda: sliding("90s"), "sliding(90s)"),
        (lambda: session("30m"), "session(30m)"),
        (lambda: counting(5), "counting(5)"),
        (lambda: every("1m"), "every 1m"),
        (lambda: every("1s", clock="processing"), "every 1s of processing time"),
        (lambda: after(1), "update"),
    ],
)
def test_windows_and_emissions_read_as_they_are_written(make: Any, text: str) -> None:
    assert str(make()) == text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tumbling("1 hour"), "tumbling(): '1 hour' is no duration"),
        (lambda: tumbling(0), "tumbling(): 0 is too short"),
        (lambda: tumbling(0.0005), "no whole number of milliseconds"),
        (
            lambda: tumbling("1h", offset="1h"),
            "tumbling(offset=): '1h' is not shorter than the step",
        ),
        (lambda: hopping("1h", every="0s"), "hopping(every=)"),
        (lambda: session(0), "session(): 0 is too short"),
        (lambda: counting(0), "counting(0): expected a whole number of records"),
        (lambda: counting(True), "counting(True)"),
        (lambda: after(0), "after(0)"),
        (lambda: every("1m", clock="wall"), 'expected "event" or "processing"'),  # type: ignore[arg-type]
        (
            lambda: emission_of("closing", "update", "discard", "window(x)"),
            "window(x): emit='closing'",
        ),
        (lambda: emission_of("close", "never", "discard", "window(x)"), "late='never'"),
        (lambda: emission_of("close", "update", "upsert", "window(x)"), "mode='upsert'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 29), st.integers(-100, 100))
def test_starts_and_slices_of_windows(size: int, step: int, offset: int, time: int) -> None:
    kind = HoppingWindows(size, step, offset % step)
    starts = kind.starts(time)

    assert starts == [
        one for one in range(time - size + 1, time + 1) if (one - kind.offset_ms) % step == 0
    ]
    slice_start = time - (time - kind.offset_ms) % kind.slice_ms()
    for inside in range(slice_start, slice_start + kind.slice_ms()):
        assert kind.starts(inside) == starts
