"""What sources know of where they stand: gaps in numbers, ids that have come, positions of generators."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.errors import ConfigError, FlowError
from mycelia.flow import events, iterator, queue, sql_changes, ticks
from mycelia.flow.sources.events import SeenIds
from mycelia.flow.sources.pulled import PulledReader
from mycelia.flow.sources.sql_changes import GapWatch
from mycelia.logs import LogPosition

NO_LINK: Any = None


# --- numbers whose transactions are open still ----------------------------------------------------


def test_row_behind_a_missing_number_waits_until_it_is_there_or_settled() -> None:
    gaps = GapWatch(settle=10)
    assert gaps.ready(3, [4, 5, 7, 8], now=0) == 2
    assert gaps.ready(5, [7, 8], now=9) == 0
    assert gaps.ready(5, [6, 7, 8], now=9.5) == 3, "it came"
    assert gaps.ready(8, [10], now=20) == 0
    assert gaps.ready(8, [10, 11], now=31) == 2, "it was rolled back"


def test_gaps_that_are_seen_together_are_waited_for_together() -> None:
    gaps = GapWatch(settle=10)
    numbers = [2, 4, 6, 8]
    assert gaps.ready(None, numbers, now=0) == 0
    assert gaps.ready(None, numbers, now=11) == 4


def test_what_is_no_number_has_no_gaps() -> None:
    moments = [datetime(2013, 1, day, tzinfo=UTC) for day in (1, 5)]
    assert GapWatch(settle=10).ready(None, moments, now=0) == 2


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_each_row_is_taken_once_in_order_whatever_order_transactions_commit_in(
    seed: int, count: int
) -> None:
    """Some never do. None takes longer than `settle`."""
    chance = Random(seed)
    began = sorted(chance.uniform(0, 50) for _ in range(count))
    commits = {
        number: at + chance.uniform(0, 9.9)
        for number, at in enumerate(began, 1)
        if chance.random() < 0.8
    }
    gaps, last, taken, now = GapWatch(settle=10), None, [], 0.0
    while now < 100:
        there = sorted(n for n, at in commits.items() if at <= now and n > (last or 0))
        ready = there[: gaps.ready(last, there, now)]
        taken += ready
        last = ready[-1] if ready else last
        now += chance.uniform(0.1, 3)

    assert taken == sorted(commits)


# --- ids ------------------------------------------------------------------------------------------


def test_ids_are_known_within_the_window_and_over_a_restart() -> None:
    seen = SeenIds(3)
    assert [seen.is_new(one) for one in ("a", "b", "a", "c")] == [True, True, False, True]
    again = SeenIds(3, seen.to_bytes())
    assert not again.is_new("a")
    assert again.is_new("d")
    assert again.is_new("a"), "the oldest is forgotten"
    assert len(again.to_bytes()) == 3 * 8


# --- rows of a table -------------------------------------------------------------------------------


def table_of(path: Path, kind: str, values: list[Any]) -> str:
    """A table whose column `at` has these values, in no order of its own."""
    with closing(sqlite3.connect(path / "rows.db")) as database, database:
        database.execute(f"CREATE TABLE IF NOT EXISTS rows (name INTEGER, at {kind})")
        named = [(number, value) for number, value in enumerate(values)]
        database.executemany("INSERT INTO rows VALUES (?, ?)", named)
    return f"sqlite:///{path / 'rows.db'}"


async def taken_behind(url: str, position: LogPosition | None, count: int) -> tuple[list[Any], Any]:
    """So many rows behind a position, or what they fail with; and the position behind them."""
    reader = sql_changes(url, "rows", by="at", every="1ms").reader(NO_LINK, 0, position or "first")
    await reader.open()
    try:
        return [row["at"] for row in await values_of(reader, count)], reader.position
    finally:
        await reader.aclose()


async def test_rows_of_more_than_a_page_are_each_taken_once(tmp_path: Path) -> None:
    values = [f"{number:05}" for number in range(2_500)]
    url = table_of(tmp_path, "TEXT", values[::-1])

    taken, position = await taken_behind(url, None, 2_500)
    table_of(tmp_path, "TEXT", ["02500"])
    more, _ = await taken_behind(url, position, 1)

    assert (taken, more) == (values, ["02500"])


@pytest.mark.parametrize("twin", [0, 998, 999, 1000])
async def test_two_rows_of_one_value_are_told_wherever_a_page_ends(
    tmp_path: Path, twin: int
) -> None:
    values = [f"{number:05}" for number in range(1_500)]
    url = table_of(tmp_path, "TEXT", [*values, values[twin]])

    with pytest.raises(FlowError, match=f"two rows have the at '{values[twin]}'"):
        await taken_behind(url, None, 1_501)


async def test_row_that_comes_later_with_the_last_value_is_told(tmp_path: Path) -> None:
    url = table_of(tmp_path, "TEXT", ["a", "b"])
    _, position = await taken_behind(url, None, 2)
    table_of(tmp_path, "TEXT", ["b", "c"])

    with pytest.raises(FlowError, match="two rows have the at 'b'"):
        await taken_behind(url, position, 2)


async def test_row_without_a_value_is_told_and_none_is_taken_twice(tmp_path: Path) -> None:
    url = table_of(tmp_path, "TEXT", ["a"])
    _, position = await taken_behind(url, None, 1)
    table_of(tmp_path, "TEXT", [None, "b"])

    with pytest.raises(FlowError, match=r"a row has no at \(NULL\)"):
        await taken_behind(url, position, 1)
    with pytest.raises(FlowError, match=r"a row has no at \(NULL\)"):
        await taken_behind(url, None, 1)


# --- generators -----------------------------------------------------------------------------------


async def numbers(position: int | None) -> AsyncGenerator[tuple[int, int], None]:
    for number in range(0 if position is None else position + 1, 1200):
        yield number, number * 10


async def values_of(reader: PulledReader, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        entry = await reader.take(5)
        assert entry is not None
        found += entry.values
    return found


async def test_reader_goes_on_behind_its_position() -> None:
    source = iterator(numbers)
    reader = source.reader(NO_LINK, 0)
    assert reader.position is None
    await reader.open()
    begun = await values_of(reader, 1)
    position = reader.position
    await reader.aclose()
    assert position is not None
    assert position.offset == len(begun)

    reader = source.reader(NO_LINK, 0, LogPosition(offset=position.offset, seen=position.seen))
    await reader.open()
    rest = await values_of(reader, 1200 - len(begun))
    assert await reader.take(0.01) is None, "at its end it is silent"
    assert reader.position is not None
    assert reader.position.offset == 1200
    await reader.aclose()

    assert begun + rest == [number * 10 for number in range(1200)]


async def test_generator_that_raises_is_told_after_what_it_gave_before() -> None:
    async def failing(position: int | None) -> AsyncGenerator[tuple[int, int], None]:
        yield 1, 1
        raise ConnectionError("away")

    reader = iterator(failing).reader(NO_LINK, 0)
    await reader.open()
    entry = await reader.take(5)
    assert entry is not None
    assert entry.values == [1]
    with pytest.raises(FlowError, match="source failing: ConnectionError: away"):
        await reader.take(5)
    await reader.aclose()


@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_generator_that_ends_its_task_is_one_that_raises(raised: BaseException) -> None:
    async def odd(position: int | None) -> AsyncGenerator[tuple[int, int], None]:
        yield 1, 1
        raise raised

    reader = iterator(odd).reader(NO_LINK, 0)
    await reader.open()
    assert await values_of(reader, 1) == [1]
    with pytest.raises(FlowError, match=f"it ended with {type(raised).__name__}"):
        await reader.take(5)
    await reader.aclose()


async def test_generator_waits_for_who_takes_and_is_closed() -> None:
    given: list[int] = []
    closed = asyncio.Event()

    async def endless(position: int | None) -> AsyncGenerator[tuple[int, int], None]:
        try:
            for number in range(10**9):
                given.append(number)
                yield number, number
        finally:
            closed.set()

    reader = iterator(endless).reader(NO_LINK, 0)
    await reader.open()
    assert await reader.take(5) is not None
    await asyncio.sleep(0.05)
    assert len(given) < 3000
    await reader.aclose()
    assert closed.is_set()


async def test_value_without_its_key_is_a_fault_and_no_record() -> None:
    async def some(position: int | None) -> AsyncGenerator[tuple[int, Any], None]:
        for number, value in enumerate([{"k": "a"}, {}, {"k": "b"}]):
            yield number, value

    reader = iterator(some, key="k").reader(NO_LINK, 0)
    await reader.open()
    await asyncio.sleep(0.01)
    entry = await reader.take(5)
    await reader.aclose()
    assert entry is not None
    assert (entry.keys, list(entry.indexes)) == (["a", "b"], [0, 2])
    assert [fault.index for fault in entry.faults] == [1]


async def test_ticks_are_multiples_of_their_interval_each_once_over_restarts() -> None:
    source = ticks("10ms")
    reader = source.reader(NO_LINK, 0)
    await reader.open()
    first = await values_of(reader, 3)
    position = reader.position
    await reader.aclose()
    await asyncio.sleep(0.05)
    assert position is not None
    reader = source.reader(NO_LINK, 0, position)
    await reader.open()
    more = await values_of(reader, 5)
    await reader.aclose()

    at = [round(one.timestamp() * 1000) for one in first + more]
    assert at == list(range(at[0], at[0] + 10 * len(at), 10))
    assert at[0] % 10 == 0


def test_what_cannot_be_a_source_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="expected a function"):
        iterator(nothing)
    with pytest.raises(ConfigError, match="1 ms or more"):
        ticks(0)
    with pytest.raises(ConfigError, match="window=10"):
        events("tower", "departed", window=10)
    with pytest.raises(ConfigError, match="expected a Queue, or a name"):
        queue("")
    with pytest.raises(ConfigError, match="names of a table and of a column"):
        sql_changes("sqlite:///x", "")
