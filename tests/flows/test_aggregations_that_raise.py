"""A record with which an aggregation fails alone is named, and may be a dead letter as any other; the rest of its batch counts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from tests.flows.counting import Tally, config, statistics

from mycelia import Client, Log
from mycelia.flow import (
    Aggregation,
    FlowOutput,
    KeyedStream,
    Stream,
    aggregation,
    counting,
    flow,
    hopping,
    session,
    sliding,
    tumbling,
)
from mycelia.testing import eventually, run_services, take_dead_letters


@dataclass
class Weighed:
    scale: str
    kg: int
    at_ms: int


@dataclass
class Sum:
    of: str
    kg: int


WEIGHED = Log("weighed", of=Weighed, key="scale", partitions=1)
SUMS = Log("sums", of=Sum, key="of", partitions=1)
WINDOWS: dict[str, tuple[int, Any]] = {
    # Each fails with a record of its own.
    "tumbling": (3, tumbling("1s")),
    "hopping": (8, hopping("2s", every="1s")),
    "sliding": (13, sliding("1s")),
    "session": (18, session("1s")),
    "counting": (23, counting(5)),
}
GROUP = "weighing.sums"
CLOSES_MS = 100_000_000


def total(but: int) -> Aggregation[Weighed, int]:
    def of(weighed: list[Weighed]) -> int:
        if any(one.kg == but for one in weighed):
            raise ValueError(f"no scale says {but}")
        return sum(one.kg for one in weighed)

    return aggregation(of=of, merge=lambda a, b: a + b, result=lambda kg: kg, name="total")


def weighing(**options: Any) -> type:
    class Weighing:
        name = "weighing"

        @flow(WEIGHED, commit_every="20ms", **options)
        def sums(self, weighed: Stream[Weighed]) -> FlowOutput:
            by_scale = weighed.event_time(lambda one: one.at_ms, unit="ms").key_by("scale")
            results = [made(by_scale, name, *of) for name, of in WINDOWS.items()]
            return reduce(lambda one, other: one.merge(other), results).to(SUMS)

    return Weighing


def made(by_scale: KeyedStream[Any, Weighed], name: str, bad: int, window: Any) -> Stream[Sum]:
    results = by_scale.window(window).aggregate(total(bad)).named(name)
    return results.map(lambda one: Sum(name, one.value))


def weighings() -> list[Weighed]:
    """Thirty in one batch, and one that closes all windows."""
    times = [1_000_000 + number * 100 for number in range(1, 31)]
    found = [Weighed("a", number, at) for number, at in enumerate(times, 1)]
    return [*found, Weighed("a", 0, CLOSES_MS)]


async def test_records_over_which_an_aggregation_raises_become_dead_letters_and_the_rest_counts(
    broker: str, tmp_path: Path
) -> None:
    bad = {number for number, _ in WINDOWS.values()}
    good = [one.kg for one in weighings() if one.kg not in bad]
    service = weighing(on_error="dead-letter")
    async with Client(broker) as client:
        tally = Tally(client, SUMS)
        await client.append_many(WEIGHED, weighings())
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: statistics(bed, service).records == len(good), 30)
            letters = await take_dead_letters(client.link, f"log-weighed--{GROUP}", len(bad))
            await eventually(lambda: tally.has(30), 20)
            told = statistics(bed, service)
        await tally.aclose()

    sums: dict[str, list[int]] = defaultdict(list)
    for record in tally.records:
        sums[record.value.of].append(record.value.kg)
    assert told.dead == len(bad)
    assert not told.standing_still
    assert len(letters) == len(bad)
    assert sum(sums["tumbling"]) == sum(sums["session"]) == sum(sums["counting"]) == sum(good)
    assert sum(sums["hopping"]) == 2 * sum(good)
    assert len(sums["sliding"]) >= len(good) - 1


async def test_without_it_the_record_stops_its_partition_and_is_named(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = weighing()
    async with Client(broker) as client:
        await client.append_many(WEIGHED, weighings())
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: statistics(bed, service).standing_still, 30)

    (line, *_) = [one for one in caplog.messages if "flow_stands_still" in one]
    for part in ("offset=0", "record=2", "operator=tumbling ", "no scale says 3"):
        assert part in line
