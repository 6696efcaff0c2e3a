"""A flow with tables, as a service: the newest flight of each airport, and flights by hour for each airport and carrier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mycelia import Log
from mycelia.flow import FlowOutput, Stream, count, flow, tumbling

__all__ = ["LANDED", "PARTITIONS", "SERVICE", "Landed", "Ranking"]

PARTITIONS = 4


@dataclass
class Landed:
    airport: str
    carrier: str
    at_ms: int


LANDED: Log[Landed] = Log("landed", of=Landed, key="airport", partitions=PARTITIONS)


class Ranking:
    name = "ranking"

    @flow(LANDED, commit_every="50ms")
    def landed(self, flights: Stream[Landed]) -> tuple[FlowOutput, ...]:
        timed = flights.event_time(lambda one: one.at_ms, unit="ms")
        pairs = timed.key_by(lambda one: (one.airport, one.carrier))
        hours = pairs.window(tumbling("1h"), emit="update").aggregate(count())
        return timed.key_by("airport").as_table("latest"), hours.as_table("hours")


SERVICE = Path(__file__)
"""As a module, for a command."""
