"""A flow whose keys change on the way, as a service: flights of a log by origin, counted by carrier; and what SQL counts."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.flows.counting import Tally

from mycelia import Log
from mycelia.flow import FlowOutput, Stream, count, flow, sum_of, tumbling
from mycelia.logs import partition_of

__all__ = [
    "BY_CARRIER",
    "LEFT",
    "PARTITIONS",
    "SERVICE",
    "ByCarrier",
    "Carriers",
    "Delayed",
    "Left",
    "by_carrier",
    "closing",
    "flights",
    "sql_counts",
]

PARTITIONS = 4
SPAN_MS = 2_000
CLOSES_MS = 100_000_000


@dataclass
class Left:
    origin: str
    carrier: str
    delay: int
    at_ms: int


@dataclass
class Delayed:
    """A flight with what has been looked up of it: how far its origin's number is from the middle."""

    carrier: str
    delay: int
    off: int
    at_ms: int


@dataclass
class ByCarrier:
    carrier: str
    start_ms: int
    flights: int
    delay: int
    off: int = 0


LEFT: Log[Left] = Log("left", of=Left, key="origin", partitions=PARTITIONS)
BY_CARRIER: Log[ByCarrier] = Log("by-carrier", of=ByCarrier, key="carrier", partitions=2)


def enriched(one: Left) -> Delayed:
    return Delayed(one.carrier, one.delay, abs(int(one.origin[1:] or 0) - 25), one.at_ms)


class Carriers:
    name = "carriers"

    @flow(LEFT, commit_every="50ms")
    def counted(self, left: Stream[Left]) -> FlowOutput:
        return (
            left.event_time(lambda one: one.at_ms, unit="ms", disorder="5s")
            .filter(lambda one: one.delay >= 0)
            .map(enriched)
            .key_by(lambda one: one.carrier)
            .window(tumbling("2s"))
            .aggregate(count(), sum_of("delay"), sum_of("off"))
            .map(lambda window: ByCarrier(window.key, window.start_ms, *window.value))
            .to(BY_CARRIER)
        )


SERVICE = Path(__file__)
"""As a module, for a command."""


def flights(count: int, seed: int = 1) -> list[Left]:
    """From 50 airports by 12 carriers, a hundred a second, up to 2 s out of order; one in ten with a delay that is none."""
    chance = Random(seed)
    return [
        Left(
            f"A{chance.randrange(50)}",
            f"C{chance.randrange(12)}",
            chance.randrange(-5, 50),
            1_000_000 + n * 10 + chance.randrange(2000),
        )
        for n in range(count)
    ]


def by_carrier(tally: Tally) -> dict[tuple[str, int], tuple[int, int, int]]:
    """What a reader of the results has, by carrier and window."""
    found: dict[tuple[str, int], tuple[int, int, int]] = {}
    for record in tally.by_id().values():
        one: ByCarrier = record.value
        assert (one.carrier, one.start_ms) not in found, f"{one} has another result"
        found[one.carrier, one.start_ms] = one.flights, one.delay, one.off
    return found


def closing() -> list[Left]:
    """A flight in each partition, a day later: it closes all windows before."""
    found: dict[int, Left] = {}
    number = 0
    while len(found) < PARTITIONS:
        origin = f"A{1000 + number}"
        found.setdefault(partition_of(origin, PARTITIONS), Left(origin, "last", 0, CLOSES_MS))
        number += 1
    return list(found.values())


def sql_counts(left: list[Left]) -> dict[tuple[str, int], tuple[int, int, int]]:
    """By carrier and window."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE flown (origin TEXT, carrier TEXT, delay INTEGER, at_ms INTEGER)")
    db.executemany(
        "INSERT INTO flown VALUES (?, ?, ?, ?)",
        ((one.origin, one.carrier, one.delay, one.at_ms) for one in left),
    )
    rows: list[Any] = db.execute(
        f"SELECT carrier, at_ms / {SPAN_MS} * {SPAN_MS}, COUNT(*), SUM(delay), SUM(ABS(CAST(SUBSTR(origin, 2) AS INTEGER) - 25))"
        " FROM flown WHERE delay >= 0 GROUP BY 1, 2"
    ).fetchall()
    db.close()
    return {(carrier, start): (flights, *sums) for carrier, start, flights, *sums in rows}
