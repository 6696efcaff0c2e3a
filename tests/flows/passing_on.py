"""A service that passes what comes to it on to files and a table, through a step that awaits. Run as it is by a command."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from mycelia import Log
from mycelia.flow import FlowOutput, Stream, flow, json_lines, sql_table

__all__ = ["MOVED", "SERVICE", "Moved", "PassingOn"]

SERVICE = Path(__file__)


@dataclass
class Moved:
    plane: str
    number: int


MOVED: Log[Moved] = Log("moved", of=Moved, key="plane", partitions=2)


async def slowly(one: Moved) -> Moved:
    await asyncio.sleep(0.001)
    return one


class PassingOn:
    name = "passing_on"

    @flow(MOVED, commit_every="20ms", commit_records=200)
    def on(self, moved: Stream[Moved]) -> tuple[FlowOutput, ...]:
        awaited = moved.map_async(slowly, concurrency=64)
        return (
            awaited.to(json_lines("out", every="200ms", max_records=700)),
            awaited.to(sql_table("sqlite:///results.db", "moved", of=Moved, create=True)),
        )
