"""A service that puts what comes from sources that are no logs into tables. Run as it is by a command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mycelia.flow import (
    FlowOutput,
    Stream,
    events,
    flow,
    iterator,
    sql_changes,
    sql_table,
    ticks,
)

__all__ = ["SERVICE", "SOURCES", "Heard", "ReadingOn"]

SERVICE = Path(__file__)
SOURCES = ("events", "iterated", "rows", "ticks")


@dataclass
class Heard:
    number: int


async def counting(position: int | None) -> AsyncGenerator[tuple[int, Heard], None]:
    for number in range(0 if position is None else position + 1, 10**9):
        await asyncio.sleep(0.002)
        yield number, Heard(number)


class ReadingOn:
    name = "reading_on"

    @flow(events("meters", "read", of=Heard), commit_every="20ms")
    def events(self, heard: Stream[Heard]) -> FlowOutput:
        return heard.to(sql_table("sqlite:///events.db", "given", of=Heard, create=True))

    @flow(iterator(counting, of=Heard), commit_every="20ms")
    def iterated(self, heard: Stream[Heard]) -> FlowOutput:
        return heard.to(sql_table("sqlite:///iterated.db", "given", of=Heard, create=True))

    @flow(
        sql_changes("sqlite:///meters.db", "readings", of=Heard, every="10ms", settle="100ms"),
        commit_every="20ms",
    )
    def rows(self, heard: Stream[Heard]) -> FlowOutput:
        return heard.to(sql_table("sqlite:///rows.db", "given", of=Heard, create=True))

    @flow(ticks("5ms"), commit_every="20ms")
    def ticks(self, moments: Stream[datetime]) -> FlowOutput:
        return moments.map(lambda at: Heard(round(at.timestamp() * 1000))).to(
            sql_table("sqlite:///ticks.db", "given", of=Heard, create=True)
        )
