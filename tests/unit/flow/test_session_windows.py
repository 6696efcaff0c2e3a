"""Sessions grow, merge and close; in whatever order their records come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.flow.batches import Records, brief, columns, save, taken

from mycelia.errors import FlowFunctionError
from mycelia.flow import MemoryStore, after, collect, every, max_of, session
from mycelia.flow.column_batch import END_OF_TIME
from mycelia.flow.emission import Emission, emission_of
from mycelia.flow.session_windows import MergingWindows

GAP = 10


def sessions(
    emission: Emission | None = None, lateness: int = 0, store: Any = None, aggregation: Any = None
) -> MergingWindows:
    return MergingWindows(
        "s", session(GAP / 1000), aggregation or collect(), emission or Emission(), lateness, store
    )


def test_session_ends_a_gap_after_its_last_record() -> None:
    windows = sessions()
    windows.process(0, columns([("a", 0, 1), ("a", 9, 2), ("a", 19, 3)]))
    windows.advance(28)
    assert brief(taken(windows)) == [("a", 0, 19, [1, 2], "on time")]  # 19 is a gap after 9
    windows.advance(29)
    assert brief(taken(windows)) == [("a", 19, 29, [3], "on time")]


def test_record_between_two_sessions_makes_one_of_them() -> None:
    windows = sessions()
    windows.process(0, columns([("a", 0, 1)]))
    windows.process(0, columns([("a", 18, 3)]))
    windows.process(0, columns([("a", 9, 2)]))
    windows.advance(END_OF_TIME)

    assert brief(taken(windows)) == [("a", 0, 28, [1, 3, 2], "on time")]


def test_late_record_opens_a_session_of_before_again_within_its_lateness() -> None:
    windows = sessions(lateness=20)
    windows.process(0, columns([("a", 0, 1)]))
    windows.advance(12)
    assert brief(taken(windows)) == [("a", 0, 10, [1], "on time")]

    windows.process(0, columns([("a", 9, 2)]))  # until 19 now, which has not come by
    windows.advance(18)
    assert taken(windows) == []
    windows.advance(19)
    assert brief(taken(windows)) == [("a", 0, 19, [1, 2], "on time")]

    windows.process(0, columns([("a", 5, 3)]))
    assert brief(taken(windows)) == [("a", 0, 19, [1, 2, 3], "late")]


def test_what_comes_after_the_lateness_is_told() -> None:
    windows = sessions(lateness=5)
    windows.process(0, columns([("a", 0, 1)]))
    windows.advance(16)
    taken(windows)

    windows.process(0, columns([("a", 1, 2), ("a", 14, 3)]))

    assert [(one.value, one.missed[0].end_ms) for one in taken(windows, 1)] == [(2, 11)]
    windows.advance(END_OF_TIME)
    assert brief(taken(windows)) == [("a", 14, 24, [3], "on time")]


def test_merging_takes_back_what_was_told_of_each() -> None:
    windows = sessions(Emission(early=after(1), mode="retract"))
    windows.process(0, columns([("a", 0, 1), ("a", 18, 3)]))
    taken(windows)
    windows.process(0, columns([("a", 9, 2)]))

    assert [(r.start_ms, r.end_ms, r.value, r.is_retraction) for r in taken(windows)] == [
        (0, 10, [1], True),
        (18, 28, [3], True),
        (0, 28, [1, 3, 2], False),
    ]


def test_every_period_gives_a_growing_session() -> None:
    windows = sessions(emission_of(every(0.005), "update", "accumulate", "w"))
    windows.process(0, columns([("a", 0, 1)]))
    windows.advance(5)
    assert brief(taken(windows)) == [("a", 0, 10, [1], "early")]


def test_session_that_grows_has_one_timer() -> None:
    windows = sessions()
    for time in range(0, 500, 5):
        windows.process(0, columns([("a", time, time)]))
        windows.advance(time)

    assert len(windows._timers) == 1
    windows.advance(END_OF_TIME)
    assert [len(one.value) for one in taken(windows)] == [100]


def test_error_names_the_record() -> None:
    windows = sessions(aggregation=max_of(lambda value: 1 // value))
    with pytest.raises(FlowFunctionError, match=r'operator "s", record 1 of the batch, key \'a\''):
        windows.process(0, columns([("a", 5, 1), ("a", 0, 0)]))


BATCHES = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 80)), min_size=1, max_size=6),
    max_size=6,
)


def numbered(batches: list[list[tuple[str, int]]]) -> list[Records]:
    return [
        [(key, time, f"{number}.{index}") for index, (key, time) in enumerate(batch)]
        for number, batch in enumerate(batches)
    ]


def unions(records: Records) -> Counter[Any]:
    """The sessions of all records at once: those of a key in order of time, cut where a gap lies between."""
    found: Counter[Any] = Counter()
    for key in {record[0] for record in records}:
        runs: list[list[tuple[int, str]]] = []
        for time, value in sorted((time, value) for one, time, value in records if one == key):
            if runs and time - runs[-1][-1][0] < GAP:
                runs[-1].append((time, value))
            else:
                runs.append([(time, value)])
        for run in runs:
            held = tuple(sorted(value for _, value in run))
            found[key, run[0][0], run[-1][0] + GAP, held] += 1
    return found


@given(batches=BATCHES, restarts=st.booleans(), early=st.none() | st.just(1))
def test_sessions_are_the_same_in_whatever_order_and_batches_their_records_come(
    batches: list[list[tuple[str, int]]], restarts: bool, early: int | None
) -> None:
    store = MemoryStore()
    emission = Emission(early=None if early is None else after(early))
    windows = sessions(emission, store=store)
    records = numbered(batches)
    for batch in records:
        windows.process(0, columns(batch))
        if restarts:
            save(windows, store)
            given_before, windows = windows.out, sessions(emission, store=store)
            windows.out = given_before
    windows.advance(END_OF_TIME)

    results = [one for one in taken(windows) if one.timing == "on time"]
    assert Counter(
        (one.key, one.start_ms, one.end_ms, tuple(sorted(one.value))) for one in results
    ) == unions([record for batch in records for record in batch])
    save(windows, store)
    assert len(store) == 0


@given(
    batches=BATCHES,
    steps=st.lists(st.integers(0, 40), min_size=6, max_size=6),
    lateness=st.integers(0, 30),
    late=st.integers(1, 3),
)
def test_with_retractions_each_record_is_told_of_exactly_once_or_is_late(
    batches: list[list[tuple[str, int]]], steps: list[int], lateness: int, late: int
) -> None:
    windows = sessions(Emission(late=after(late), mode="retract"), lateness)
    watermark = 0
    standing: Counter[Any] = Counter()
    given_late: list[str] = []
    records = numbered(batches)

    def read() -> None:
        for one in taken(windows):
            standing[one.key, one.start_ms, one.end_ms, tuple(sorted(one.value))] += (
                -1 if one.is_retraction else 1
            )
        given_late.extend(one.value for one in taken(windows, 1))

    for batch, step in zip(records, steps, strict=False):
        windows.process(0, columns(batch))
        watermark += step
        if step:
            windows.advance(watermark)
        read()
    windows.advance(END_OF_TIME)
    read()

    told = [value for (_, _, _, values), many in standing.items() for value in values * many]
    assert all(many in (0, 1) for many in standing.values())
    assert Counter(told + given_late) == Counter(
        value for batch in records for _, _, value in batch
    )
