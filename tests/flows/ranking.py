"""A flow that is asked, as a service: the newest flight of each airport and flights by hour for each airport and carrier as tables; the hours that
are open still, and what a function keeps of each airport."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mycelia import Log
from mycelia.flow import FlowOutput, KeyContext, Stream, count, flow, tumbling

__all__ = ["LANDED", "PARTITIONS", "SERVICE", "Landed", "Ranking", "Seen"]

PARTITIONS = 4


@dataclass
class Landed:
    airport: str
    carrier: str
    at_ms: int


@dataclass
class Seen:
    flights: int = 0
    last: dict[tuple[str, str], int] = field(default_factory=dict)
    """By airport and carrier, when: not what JSON has keys for."""


def see(context: KeyContext[str, Seen], flight: Landed) -> Iterable[None]:
    context.state.flights += 1
    context.state.last[flight.airport, flight.carrier] = flight.at_ms
    return ()


LANDED: Log[Landed] = Log("landed", of=Landed, key="airport", partitions=PARTITIONS)


class Ranking:
    name = "ranking"

    @flow(LANDED, commit_every="50ms")
    def landed(self, flights: Stream[Landed]) -> tuple[FlowOutput, ...]:
        timed = flights.event_time(lambda one: one.at_ms, unit="ms")
        pairs = timed.key_by(lambda one: (one.airport, one.carrier))
        hours = pairs.window(tumbling("1h"), emit="update").aggregate(count())
        airports = timed.key_by("airport")
        return (
            airports.as_table("latest"),
            hours.as_table("hours"),
            hours.as_state("open_hours"),
            airports.process(see, state=Seen).as_state("seen"),
        )


SERVICE = Path(__file__)
"""As a module, for a command."""
