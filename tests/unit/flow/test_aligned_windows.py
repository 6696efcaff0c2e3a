"""Tumbling and hopping windows: by example, and against a plain model record by record."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.flow.batches import Records, brief, columns, save, taken
from tests.unit.flow.slow_windows import SlowWindows

from mycelia.errors import FlowFunctionError
from mycelia.flow import MemoryStore, after, collect, count, every, hopping, sum_of, tumbling
from mycelia.flow.aligned_windows import AlignedWindows
from mycelia.flow.column_batch import END_OF_TIME
from mycelia.flow.emission import Emission, emission_of
from mycelia.flow.results import LateRecord, WindowResult
from mycelia.flow.windows import HoppingWindows


def operator(
    kind: HoppingWindows,
    aggregation: Any = None,
    emission: Emission | None = None,
    lateness: int = 0,
    store: Any = None,
) -> AlignedWindows:
    return AlignedWindows(
        "w", kind, aggregation or collect(), emission or Emission(), lateness, store
    )


def test_a_window_gives_its_result_when_its_end_has_come_by() -> None:
    windows = operator(tumbling(0.01))
    windows.process(0, columns([("a", 0, 1), ("b", 9, 2), ("a", 9, 3), ("a", 10, 4)]))

    windows.advance(9)
    assert taken(windows) == []

    windows.advance(10)
    assert brief(taken(windows)) == [("a", 0, 10, [1, 3], "on time"), ("b", 0, 10, [2], "on time")]


def test_result_has_the_last_moment_of_its_window_as_event_time() -> None:
    windows = operator(tumbling(0.01))
    windows.process(0, columns([("a", 0, 1)]))
    windows.advance(10)

    assert windows.out[0][1].times == [9]
    assert windows.out[0][1].keys == ["a"]


def test_silent_key_still_closes_its_windows() -> None:
    windows = operator(tumbling(0.01))
    windows.process(0, columns([("silent", 5, 1)]))
    windows.process(0, columns([("loud", 25, 2)]))
    windows.advance(25)

    assert [one.key for one in taken(windows)] == ["silent"]


def test_record_in_several_windows_is_missing_only_from_those_that_are_gone() -> None:
    windows = operator(hopping(0.01, every=0.005))
    windows.process(0, columns([("a", 12, "first")]))
    windows.advance(15)
    taken(windows)

    windows.process(0, columns([("a", 11, "late")]))
    assert [(one.value, [span.start_ms for span in one.missed]) for one in taken(windows, 1)] == [
        ("late", [5])
    ]
    windows.advance(20)
    assert brief(taken(windows)) == [("a", 10, 20, ["first", "late"], "on time")]


def test_each_of_several_windows_has_an_accumulator_of_its_own() -> None:
    windows = operator(hopping(0.01, every=0.005))
    windows.process(0, columns([("a", 7, 1)]))
    windows.process(0, columns([("a", 2, 2)]))
    windows.process(0, columns([("a", 12, 3)]))
    windows.advance(END_OF_TIME)

    assert brief(taken(windows)) == [
        ("a", -5, 5, [2], "on time"),
        ("a", 0, 10, [1, 2], "on time"),
        ("a", 5, 15, [1, 3], "on time"),
        ("a", 10, 20, [3], "on time"),
    ]


def test_what_is_late_within_the_lateness_gives_another_result_and_beyond_it_is_told() -> None:
    windows = operator(tumbling(0.01), lateness=5)
    windows.process(0, columns([("a", 1, 1)]))
    windows.advance(12)
    assert [(one.is_final, one.index) for one in taken(windows)] == [(False, 0)]

    windows.process(0, columns([("a", 2, 2), ("b", 2, 9)]))
    assert brief(taken(windows)) == [("a", 0, 10, [1, 2], "late"), ("b", 0, 10, [9], "late")]

    windows.advance(15)
    assert taken(windows) == []
    windows.process(0, columns([("a", 3, 3)]))
    (late,) = taken(windows, 1)
    assert late == LateRecord("a", 3, 3, 15, late.missed)
    assert (late.missed[0].start_ms, late.missed[0].end_ms) == (0, 10)
    assert windows.counts() == {"late": 1}


def test_late_records_too_few_for_a_result_are_told_as_the_lateness_ends() -> None:
    windows = operator(tumbling(0.01), emission=Emission(late=after(3)), lateness=5)
    windows.process(0, columns([("a", 1, 1)]))
    windows.advance(10)
    taken(windows)
    windows.process(0, columns([("a", 1, 2)]))
    assert taken(windows) == []

    windows.advance(15)

    assert [(one.value, one.timing, one.is_final) for one in taken(windows)] == [
        ([1, 2], "late", True)
    ]


def test_every_period_gives_what_is_new_and_nothing_else() -> None:
    windows = operator(
        tumbling(0.1), emission=emission_of(every(0.01), "update", "accumulate", "w")
    )
    windows.process(0, columns([("a", 1, 1)]))
    windows.advance(15)
    assert brief(taken(windows)) == [("a", 0, 100, [1], "early")]
    windows.advance(35)
    assert taken(windows) == []
    windows.process(0, columns([("a", 38, 2)]))
    windows.advance(39)
    assert taken(windows) == []
    windows.advance(40)
    assert brief(taken(windows)) == [("a", 0, 100, [1, 2], "early")]


def test_every_period_of_processing_time_needs_no_watermark() -> None:
    emission = emission_of(every("1s", clock="processing"), "update", "discard", "w")
    windows = operator(tumbling("1h"), emission=emission)
    windows.tick(500)
    windows.process(0, columns([("a", 1, 1)]))
    windows.tick(999)
    assert taken(windows) == []
    windows.tick(1000)
    assert [(one.value, one.timing) for one in taken(windows)] == [([1], "early")]


def test_error_of_a_function_names_the_operator_the_key_and_the_record() -> None:
    windows = operator(tumbling(0.01), sum_of(lambda value: 1 // value))

    with pytest.raises(FlowFunctionError) as caught:
        windows.process(0, columns([("a", 1, 1), ("b", 1, 1), ("b", 2, 0), ("b", 3, 1)]))

    assert str(caught.value).startswith(
        "operator \"w\", record 2 of the batch, key 'b': ZeroDivisionError"
    )
    assert (caught.value.operator, caught.value.position, caught.value.key) == ("w", 2, "b")


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[Records, int]]:
    """Batches, and after each how far the watermark goes."""
    found = []
    watermark = -50
    for number in range(draw(st.integers(1, 6))):
        batch = draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-30, 60)), max_size=8))
        watermark += draw(st.integers(0, 30))
        found.append(
            (
                [(key, time, f"{number}.{index}") for index, (key, time) in enumerate(batch)],
                watermark,
            )
        )
    return found


KINDS = st.one_of(
    st.builds(
        lambda size, offset: HoppingWindows(size, size, offset % size),
        st.integers(1, 20),
        st.integers(0, 20),
    ),
    st.builds(
        lambda size, step, offset: HoppingWindows(size, step, offset % step),
        st.integers(1, 20),
        st.integers(1, 20),
        st.integers(0, 20),
    ),
)


def spans_of(kind: HoppingWindows, time: int) -> list[tuple[int, int]]:
    """By looking at each start in reach."""
    return [
        (start, start + kind.size_ms)
        for start in range(time - kind.size_ms + 1, time + 1)
        if (start - kind.offset_ms) % kind.every_ms == 0
    ]


def as_set(results: list[WindowResult[Any, Any]]) -> Counter[Any]:
    return Counter(
        (
            r.key,
            r.start_ms,
            r.end_ms,
            tuple(sorted(r.value)),
            r.timing,
            r.index,
            r.is_final,
            r.is_retraction,
        )
        for r in results
    )


@given(
    turns=turns(),
    kind=KINDS,
    lateness=st.integers(0, 25),
    early=st.none() | st.integers(1, 3),
    late=st.integers(1, 3),
    mode=st.sampled_from(["accumulate", "discard", "retract"]),
    restarts=st.booleans(),
)
def test_whole_batches_give_what_single_records_would(
    turns: list[tuple[Records, int]],
    kind: HoppingWindows,
    lateness: int,
    early: int | None,
    late: int,
    mode: str,
    restarts: bool,
) -> None:
    emission = emission_of("close" if early is None else after(early), after(late), mode, "w")
    store = MemoryStore()
    fast = operator(kind, emission=emission, lateness=lateness, store=store)
    slow = SlowWindows(lambda time: spans_of(kind, time), lateness, early, late, mode)
    for records, watermark in [*turns, ([], END_OF_TIME)]:
        if records:
            fast.process(0, columns(records))
            slow.batch(records)
        if watermark > fast.watermark:
            fast.advance(watermark)
        slow.advance(watermark)

        assert as_set(taken(fast)) == as_set(slow.results)
        assert Counter(
            (one.key, one.value, tuple((span.start_ms, span.end_ms) for span in one.missed))
            for one in taken(fast, 1)
        ) == Counter(slow.missed)
        slow.results.clear()
        slow.missed.clear()
        if restarts:
            save(fast, store)
            again = operator(kind, emission=emission, lateness=lateness, store=store)
            again.watermark = fast.watermark
            fast = again
    save(fast, store)
    assert len(store) == 0  # nothing is left of windows that are gone


def test_counts_of_tumbling_windows_are_those_of_sql_like_grouping() -> None:
    windows = operator(tumbling(0.01), count())
    records: Records = [(f"k{index % 7}", index * 3 % 101, index) for index in range(500)]
    for at in range(0, 500, 13):
        windows.process(0, columns(records[at : at + 13]))
    windows.advance(END_OF_TIME)

    assert Counter({(one.key, one.start_ms): one.value for one in taken(windows)}) == Counter(
        (key, time - time % 10) for key, time, _ in records
    )
