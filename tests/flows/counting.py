"""A windowed count as a service, what it is to count, and what plain Python counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from mycelia import Client, Log, Record
from mycelia.flow import FlowHandler, FlowOutput, FlowStatistics, Stream, count, flow, tumbling
from mycelia.logs import partition_of

if TYPE_CHECKING:  # a service of its own has no need of it
    from mycelia.testing import ServiceBed

__all__ = [
    "COUNTED",
    "DEPARTED",
    "PARTITIONS",
    "SERVICE",
    "Counted",
    "Counting",
    "Departed",
    "Failing",
    "Tally",
    "append",
    "config",
    "departures",
    "expected",
    "sentinels",
    "statistics",
]

PARTITIONS = 4
SPAN_MS = 2_000
SENTINEL = "sentinel"


@dataclass
class Departed:
    origin: str
    at_ms: int


@dataclass
class Counted:
    origin: str
    start_ms: int
    flights: int


DEPARTED: Log[Departed] = Log("departed", of=Departed, key="origin", partitions=PARTITIONS)
COUNTED: Log[Counted] = Log("counted", of=Counted, key="origin", partitions=2)


class Counting:
    name = "counting"

    @flow(DEPARTED, commit_every="50ms")
    def by_origin(self, flights: Stream[Departed]) -> FlowOutput:
        return (
            flights.event_time(lambda one: one.at_ms, unit="ms", disorder="5s")
            .key_by(lambda one: one.origin)
            .window(tumbling("2s"))
            .aggregate(count())
            .map(lambda window: Counted(window.key, window.start_ms, window.value))
            .to(COUNTED)
        )


class Failing:
    name = "failing"

    @flow(DEPARTED, commit_every="50ms")
    def checked(self, flights: Stream[Departed]) -> FlowOutput:
        return flights.map(_checked).named("check").emit("checked")


def _checked(one: Departed) -> str:
    if one.origin == "BAD":
        raise ValueError("no such airport")
    return one.origin


SERVICE = Path(__file__)
"""As a module, for a command."""


def config(state: Path) -> dict[str, Any]:
    return {"mycelia": {"flows": {"state": str(state)}}}


def statistics(bed: ServiceBed, service: type = Counting) -> FlowStatistics:
    """Of the one flow of `service`."""
    (handler,) = [one for one in bed.container(service).entrypoints if isinstance(one, FlowHandler)]
    return handler.statistics()


def departures(count: int, seed: int = 1) -> list[Departed]:
    """Flights of 50 airports, a hundred a second, up to 2 s out of order."""
    chance = Random(seed)
    return [
        Departed(f"A{chance.randrange(50)}", 1_000_000 + n * 10 + chance.randrange(2000))
        for n in range(count)
    ]


def sentinels() -> list[Departed]:
    """One flight for each partition, a day later: it closes all windows before."""
    found: dict[int, Departed] = {}
    number = 0
    while len(found) < PARTITIONS:
        name = f"{SENTINEL}{number}"
        found.setdefault(partition_of(name, PARTITIONS), Departed(name, 100_000_000))
        number += 1
    return list(found.values())


def expected(flights: list[Departed]) -> dict[tuple[str, int], int]:
    return dict(Counter((one.origin, one.at_ms // SPAN_MS * SPAN_MS) for one in flights))


async def append(client: Client, flights: list[Departed], batch: int = 500) -> None:
    for begin in range(0, len(flights), batch):
        await client.append_many(DEPARTED, flights[begin : begin + batch])


class Tally:
    """Reads all that is in the log of the results, as it comes."""

    def __init__(self, client: Client, log: Log[Any] = COUNTED) -> None:
        self._client = client
        self._log = log
        self.records: list[Record[Any]] = []
        self.repeated = 0
        """Batches that were there twice, and were dropped by the reader."""
        self._readers: list[Any] = []

    async def read(self) -> None:
        """What there is by now."""
        if not self._readers:
            await self._log.declare(self._client.link)
            for partition in range(self._log.partitions):
                reader = self._log.reader(self._client.link, partition)
                await reader.open()
                self._readers.append(reader)
        for reader in self._readers:
            while (entry := await reader.take(0.05)) is not None:
                self.records += entry.records
        self.repeated = sum(reader.statistics().repeated for reader in self._readers)

    async def has(self, wanted: int) -> bool:
        await self.read()
        return len(self.by_id()) >= wanted

    def by_id(self) -> dict[str, Record[Any]]:
        return {record.headers["id"]: record for record in self.records if record.headers}

    def counts(self) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for record in self.by_id().values():
            place = (record.value.origin, record.value.start_ms)
            assert place not in found, f"{place} has two results with different ids"
            found[place] = record.value.flights
        return found

    async def aclose(self) -> None:
        for reader in self._readers:
            await reader.aclose()
