"""What aggregations, patterns and timers fail with is named, and may be a dead letter as any other record; the rest of its batch counts."""

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
    KeyContext,
    KeyedStream,
    Stream,
    aggregation,
    counting,
    flow,
    hopping,
    max_of,
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


@dataclass
class Read:
    scale: str
    says: int | str | None
    at_ms: int


READ = Log("read", of=Read, key="scale", partitions=1)


def heard(context: KeyContext[str, int], read: Read) -> list[Sum]:
    context.state += 1
    context.set_timer(read.at_ms + 1)
    context.set_wall_timer(1)
    return []


def timed(context: KeyContext[str, int], name: str) -> list[Sum]:
    context.state += 1_000  # of the one that raises nothing is kept
    if context.key == "bad":
        raise ValueError("no such scale")
    return [Sum("timers", context.state)]


def odd_total() -> Aggregation[Read, int]:
    def result(records: int) -> int:
        if records == 4:
            raise ValueError("four are too many")
        return records

    return aggregation(of=len, merge=lambda a, b: a + b, result=result, name="total")


def reading(**options: Any) -> type:
    class Reading:
        name = "reading"

        @flow(READ, commit_every="20ms", group="reading", **options)
        def sums(self, read: Stream[Read]) -> FlowOutput:
            by_scale = read.event_time(lambda one: one.at_ms, unit="ms").key_by("scale")
            greatest = by_scale.window(tumbling("1s")).aggregate(max_of("says")).named("greatest")
            totals = by_scale.window(session("1s")).aggregate(odd_total()).named("totals")
            rising = by_scale.pattern(
                lambda one: one.says > 4,  # type: ignore[operator]  # as it is tried
                lambda one: one.says > 5,  # type: ignore[operator]
                within="1s",
            ).named("rising")
            timers = by_scale.process(heard, state=int, on_timer=timed).named("timers")
            sums: Stream[Sum] = timers
            sums = sums.merge(greatest.map(lambda one: Sum("greatest", one.value)))
            sums = sums.merge(totals.map(lambda one: Sum("totals", one.value)))
            sums = sums.merge(rising.map(lambda pair: Sum("rising", len(pair))))
            return sums.to(SUMS)

    return Reading


def told_by(tally: Tally, *of: str) -> list[int]:
    return sorted(one.value.kg for one in tally.records if one.value.of in of)


READINGS = [
    Read("a", 5, 1_000),
    Read("a", "x", 1_100),  # goes with no other, in whatever batch
    Read("a", 7, 1_200),
    Read("a", None, 1_300),
    Read("bad", 1, 1_000),
    *(Read("four", number, 1_000 + number) for number in range(4)),
    Read("a", 0, CLOSES_MS),
]


async def test_what_does_not_go_together_results_and_timers_become_dead_letters_and_the_rest_counts(
    broker: str, tmp_path: Path
) -> None:
    """Each reading is a batch of its own, and most are a commit: what raises was taken long before."""
    service = reading(on_error="dead-letter")
    async with Client(broker) as client:
        tally = Tally(client, SUMS)
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            for number, one in enumerate(READINGS):
                await client.append(READ, one)
                taken = number + 1 - (number >= 1) - (number >= 3)
                await eventually(
                    lambda taken=taken: statistics(bed, service).records >= taken,  # type: ignore[misc]
                    30,
                )
            letters = await take_dead_letters(client.link, "log-read--reading", 5)
            await eventually(lambda: tally.has(6 + 9), 20)
            told = statistics(bed, service)
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await client.append(READ, Read("a", 0, CLOSES_MS + 10_000))
            await eventually(lambda: statistics(bed, service).records, 30)
            again = statistics(bed, service)
        await tally.aclose()

    assert told_by(tally, "greatest") == [1, 3, 7]
    assert told_by(tally, "totals") == [1, 2]
    assert told_by(tally, "rising") == [2]
    assert told.dead == len(letters) == 5
    assert again.dead == 0, "a timer that was given up is gone"
    assert not told.standing_still
    errors = " ".join(letter.error for letter in letters)
    for part in ("greatest", "four are too many", "no such scale"):
        assert part in errors
    timers = [one.payload for one in letters if one.headers.get("x-flow-output") == "timers"]
    assert [(one["key"], one["clock"], one["time_ms"]) for one in timers] == [
        ("bad", "event", 1001),
        ("bad", "wall", 1),
    ]
