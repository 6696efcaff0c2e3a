"""Which sources are tables, and that they are read first."""

from __future__ import annotations

import asyncio
from typing import Any

from mycelia.flow import FlowPlan, Stream, source, stages_of, tumbling
from mycelia.flow import count as counted
from mycelia.flow.inflow import Inflow
from mycelia.flow.table_sources import table_sources
from mycelia.logs import LogPosition

FLIGHTS = source("flights", dict).key_by("tail")


def sources_of(*streams: Stream[Any]) -> frozenset[str]:
    return table_sources(FlowPlan({f"out{n}": one.port for n, one in enumerate(streams)}))


def test_source_of_a_table_is_one_over_steps_without_state() -> None:
    planes = source("planes", dict).filter(lambda one: one["seats"]).map(lambda one: one)

    assert sources_of(FLIGHTS.join_table(planes.key_by("tail"))) == {"planes"}


def test_source_with_another_use_is_none() -> None:
    planes = source("planes", dict).key_by("tail")
    joined = FLIGHTS.join_table(planes)

    assert sources_of(joined, planes) == frozenset()
    assert sources_of(joined, planes.window(tumbling("1h")).aggregate(counted())) == frozenset()
    assert sources_of(FLIGHTS.merge(planes)) == frozenset()


def test_table_with_state_before_it_and_one_joined_with_itself_are_none() -> None:
    planes = source("planes", dict).key_by("tail")

    assert sources_of(FLIGHTS.join_table(planes.dedup("id", within="1h"))) == frozenset()
    assert sources_of(FLIGHTS.join_table(FLIGHTS)) == frozenset()


def test_what_comes_from_a_stage_before_is_none() -> None:
    planes = source("planes", dict).key_by("tail").named("cut")
    whole = FlowPlan({"out": FLIGHTS.join_table(planes).port})

    assert [table_sources(part) for part in stages_of(whole, ["cut", "key_by-1"])] == [
        frozenset(),
        frozenset(),
        frozenset(),
    ]


class Entry:
    size = 0

    def __init__(self, value: str) -> None:
        self.values = [value]


class Reader:
    """Has entries, one for each `take()`; what is not there yet comes when it is put."""

    def __init__(self, *values: str, end: int | None = None) -> None:
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()
        for value in values:
            self._waiting.put_nowait(Entry(value))
        self._end = len(values) if end is None else end
        self._next = 0

    @property
    def position(self) -> LogPosition | None:
        return LogPosition(offset=self._next) if self._next else None

    def put(self, value: str) -> None:
        self._waiting.put_nowait(Entry(value))

    async def open(self) -> None: ...

    async def end(self) -> int | None:
        return self._end

    async def take(self, timeout: float | None = None) -> Any:
        if not timeout:
            entry = None if self._waiting.empty() else self._waiting.get_nowait()
        else:
            try:
                entry = await asyncio.wait_for(self._waiting.get(), timeout)
            except TimeoutError:
                return None
        self._next += entry is not None
        return entry

    def committed(self, position: LogPosition) -> None: ...

    async def aclose(self) -> None: ...


def told(taken: dict[str, list[Any]]) -> dict[str, list[str]]:
    return {name: [one.values[0] for one in entries] for name, entries in taken.items()}


async def test_table_is_read_to_its_end_before_anything_else() -> None:
    planes = Reader("N1", "N2", end=3)  # the third is on its way
    inflow = Inflow({"flights": Reader("AA1"), "planes": planes}, {"planes"})
    await inflow.open()

    first = told(await inflow.gather(0.01))
    second = told(await inflow.gather(0.01))
    planes.put("N3")
    third = told(await inflow.gather(1))
    fourth = told(await inflow.gather(0.01))

    assert (first, second, third, fourth) == (
        {"planes": ["N1", "N2"]},
        {},
        {"planes": ["N3"]},
        {"flights": ["AA1"]},
    )


async def test_table_without_anything_holds_up_nothing() -> None:
    inflow = Inflow({"flights": Reader("AA1"), "planes": Reader()}, {"planes"})
    await inflow.open()

    assert told(await inflow.gather(0.01)) == {"flights": ["AA1"]}
