"""Flows that are cut into stages: over any number of partitions, through crashes anywhere, they give what they give in one piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from tests.unit.flow.staged import StagedRun, stages

from mycelia import Log
from mycelia.flow import (
    Engine,
    FlowOutput,
    FlowPlan,
    KeyContext,
    KeyedStream,
    Stream,
    collect,
    count,
    outgoing,
    source,
    tumbling,
)
from mycelia.logs import partition_of

CLOSES_MS = 1_000_000


@dataclass
class Ride:
    taxi: str
    zone: str
    at_ms: int


@dataclass
class Fare:
    taxi: str
    zone: str
    amount: int
    at_ms: int


def rides(count: int, seed: int) -> list[Ride]:
    chance = Random(f"{seed} rides")
    return [
        Ride(f"t{chance.randrange(9)}", f"z{chance.randrange(5)}", n * 10 + chance.randrange(40))
        for n in range(count)
    ]


def fares(count: int, seed: int) -> list[Fare]:
    chance = Random(f"{seed} fares")
    return [
        Fare(
            f"t{chance.randrange(9)}",
            f"z{chance.randrange(5)}",
            n,
            n * 10 + chance.randrange(40),
        )
        for n in range(count)
    ]


def closing(log: Log[Any], make: Any) -> list[Any]:
    """A record for each partition that closes all windows of before."""
    found: dict[int, Any] = {}
    number = 0
    while len(found) < log.partitions:
        found.setdefault(partition_of(f"c{number}", log.partitions), make(f"c{number}"))
        number += 1
    return list(found.values())


def timed(log: Log[Any], of: type[Any]) -> Stream[Any]:
    return source(log.name, of).event_time(lambda one: one.at_ms, unit="ms", disorder=0.2)


def run(
    outputs: Sequence[FlowOutput],
    records: dict[Log[Any], list[Any]],
    to: Log[Any],
    *,
    seed: int = 0,
    crash_rate: float = 0.0,
    quiet_ms: int = 400,
) -> list[Any]:
    staged = StagedRun(stages(outputs, list(records)), seed=seed, crash_rate=crash_rate)
    for log, its in records.items():
        half = len(its) // 2
        staged.append(log, its[:half])
        staged.run(50)
        staged.append(log, its[half:])
    staged.run(quiet_ms)
    assert crash_rate == 0 or staged.crashes > 0
    return staged.values(to)


def whole(outputs: Sequence[FlowOutput], records: dict[Log[Any], list[Any]]) -> list[Any]:
    """What the flow gives in one engine, with one partition of each source, record by record in order of time."""
    engine = Engine(
        FlowPlan({one.name: one.port for one in outputs}), {log.name: [0] for log in records}
    )
    values: list[Any] = []
    every = [(one.at_ms, log.name, one) for log, its in records.items() for one in its]
    for at_ms, name, one in sorted(every, key=lambda one: one[0]):
        for given in engine.feed(name, 0, [one], [at_ms]):
            values += given.values
    for log in records:
        for given in engine.end(log.name, 0):
            values += given.values
    return values


def shown(values: list[Any]) -> Counter[str]:
    return Counter(map(repr, values))


def without_closing(values: list[Any]) -> list[Any]:
    return [one for one in values if "1000000" not in repr(one) and "'c" not in repr(one)]


OUT: Log[Any] = Log("out", partitions=2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_counts_by_another_key_are_those_of_one_partition(
    partitions: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what a commit gives to a partition is more than one entry, and read in pieces."""
    monkeypatch.setattr(outgoing, "_RECORDS_AT_ONCE", 3)
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=partitions)

    def outputs(crashing: bool = True) -> list[FlowOutput]:
        results = timed(taxis, Ride).key_by("zone").window(tumbling(0.1)).aggregate(count())
        return [results.map(lambda one: [one.key, one.start_ms, one.value]).to(OUT)]

    wanted = Counter((ride.zone, ride.at_ms // 100 * 100) for ride in rides(300, seed))
    records: dict[Log[Any], list[Any]] = {
        taxis: rides(300, seed) + closing(taxis, lambda taxi: Ride(taxi, "end", CLOSES_MS))
    }
    for crash_rate in (0.0, 0.15):
        found = run(outputs(), records, OUT, seed=seed, crash_rate=crash_rate)
        assert {(zone, start): n for zone, start, n in found} == wanted
        assert len(found) == len(wanted)


JOINS = {
    "interval": lambda a, b: a.join_interval(b, before=0.1, after=0.2),
    "as of": lambda a, b: a.join_as_of(b, how="left"),
    "window": lambda a, b: a.join_window(b, tumbling(0.1), how="full").map(lambda one: one.value),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("key", ["taxi", "zone"])
@pytest.mark.parametrize("partitions", [(2, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize("join", JOINS)
def test_joins_of_two_logs_are_those_of_one_engine(
    join: str, partitions: tuple[int, int], key: str, seed: int
) -> None:
    """Split alike or not, by the key of the join or not."""
    of_rides: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=partitions[0])
    of_fares: Log[Fare] = Log("fares", of=Fare, key="taxi", partitions=partitions[1])

    def outputs() -> list[FlowOutput]:
        left = timed(of_rides, Ride).key_by(key)
        right = timed(of_fares, Fare).key_by(key)
        pairs: KeyedStream[Any, Any] = JOINS[join](left, right)
        return [pairs.map(lambda pair: list(map(repr, pair))).to(OUT)]

    # No two records of one time: which is "the newest" then depends on the order in which they come.
    left = [
        Ride(one.taxi, one.zone, one.at_ms * 4 + n % 2) for n, one in enumerate(rides(80, seed))
    ]
    right = [
        Fare(one.taxi, one.zone, one.amount, one.at_ms * 4 + 2 + n % 2)
        for n, one in enumerate(fares(80, seed))
    ]
    ends: dict[Log[Any], list[Any]] = {
        of_rides: closing(of_rides, lambda taxi: Ride(taxi, "end", CLOSES_MS)),
        of_fares: closing(of_fares, lambda taxi: Fare(taxi, "end", -1, CLOSES_MS)),
    }
    wanted = shown(without_closing(whole(outputs(), {of_rides: left, of_fares: right})))
    records = {of_rides: left + ends[of_rides], of_fares: right + ends[of_fares]}
    for crash_rate in (0.0, 0.1):
        found = run(outputs(), records, OUT, seed=seed, crash_rate=crash_rate)
        assert shown(without_closing(found)) == wanted


@pytest.mark.parametrize("seed", range(4))
def test_flow_that_is_cut_twice(seed: int) -> None:
    """Zones by taxi and window; and of these windows, how many had so many rides: by a key that is a number."""
    of_rides: Log[Ride] = Log("rides", of=Ride, key="zone", partitions=3)
    by_taxi = timed(of_rides, Ride).key_by(lambda ride: (ride.taxi, 1)).window(tumbling(0.1))
    sizes = (
        by_taxi.aggregate(count())
        .key_by(lambda one: float(one.value))
        .window(tumbling(0.5))
        .aggregate(count(), collect())
    )
    outputs = [sizes.map(lambda one: [one.key, one.start_ms, one.value[0]]).to(OUT)]
    assert [one.name for one in stages(outputs, [of_rides])] == ["g", "g.key_by-1", "g.key_by-2"]

    first = Counter((ride.taxi, ride.at_ms // 100 * 100) for ride in rides(300, seed))
    wanted = Counter((float(n), start // 500 * 500) for (_, start), n in first.items())
    records: dict[Log[Any], list[Any]] = {
        of_rides: rides(300, seed) + closing(of_rides, lambda zone: Ride("end", zone, CLOSES_MS))
    }
    found = run(outputs, records, OUT, seed=seed, crash_rate=0.1)
    counted = {(size, start): n for size, start, n in found if start < CLOSES_MS - 1000}
    assert counted == wanted


# --- silence --------------------------------------------------------------------------------------


def counted_zones(taxis: Log[Ride], idle: str | None) -> list[FlowOutput]:
    stream = source(taxis.name, Ride).event_time(
        lambda one: one.at_ms, unit="ms", disorder=0.05, idle=idle
    )
    results = stream.key_by("zone").window(tumbling(0.1)).aggregate(count())
    return [results.map(lambda one: [one.key, one.start_ms, one.value]).to(OUT)]


def one_taxi(partitions: int, partition: int) -> str:
    return next(f"t{n}" for n in range(1000) if partition_of(f"t{n}", partitions) == partition)


def test_partition_in_which_nothing_ever_came_holds_nobody_up_behind_a_cut() -> None:
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=4)
    staged = StagedRun(stages(counted_zones(taxis, None), [taxis]))
    staged.append(taxis, [Ride(one_taxi(4, 2), "z", ms) for ms in (5, 10, 500)])
    staged.run(5_000)
    assert staged.values(OUT) == []

    staged.run(11_000)
    assert staged.values(OUT) == [["z", 0, 2]]


@pytest.mark.parametrize("crash_rate", [0.0, 0.05])
def test_partition_that_falls_silent_holds_nobody_up_once_it_is_idle(crash_rate: float) -> None:
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=2)
    silent, goes_on = one_taxi(2, 0), one_taxi(2, 1)
    for idle, wanted in ((None, []), ("2s", [["z", 0, 2]])):
        staged = StagedRun(stages(counted_zones(taxis, idle), [taxis]), crash_rate=crash_rate)
        staged.append(taxis, [Ride(silent, "z", 5), Ride(goes_on, "z", 10)])
        staged.run()
        staged.append(taxis, [Ride(goes_on, "z", 500)])
        staged.run(20_000)
        assert staged.values(OUT) == wanted

        # It comes back, and counts for what is still open.
        staged.append(taxis, [Ride(silent, "z", 520), Ride(goes_on, "z", 900)])
        staged.append(taxis, [Ride(silent, "z", 900)])
        staged.run(20_000)
        assert [one for one in staged.values(OUT) if one[1] == 500] == [["z", 500, 2]]


def test_silent_stream_of_a_join_holds_nobody_up_once_it_is_idle() -> None:
    of_rides: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=1)
    of_fares: Log[Fare] = Log("fares", of=Fare, key="taxi", partitions=1)
    left = source("rides", Ride).event_time(lambda one: one.at_ms, unit="ms").key_by("taxi")
    right = (
        source("fares", Fare).event_time(lambda one: one.at_ms, unit="ms", idle="1s").key_by("taxi")
    )
    pairs = left.join_as_of(right, how="left").map(lambda pair: [pair[0].at_ms, pair[1] is None])
    staged = StagedRun(stages([pairs.to(OUT)], [of_rides, of_fares]))
    staged.append(of_fares, [Fare("t", "z", 1, 5)])
    staged.run()
    staged.append(of_rides, [Ride("t", "z", ms) for ms in (10, 20, 30, 40)])
    staged.run(500)
    assert staged.values(OUT) == []

    staged.run(2_000)
    assert staged.values(OUT) == [[10, False], [20, False], [30, False]]


@pytest.mark.parametrize("key", ["taxi", "zone"])
@pytest.mark.parametrize("idle", [None, "1s"])
def test_log_in_which_nothing_ever_came_is_waited_for_by_a_join(idle: str | None, key: str) -> None:
    """Whoever starts its feed later finds its partners, whether the logs are split anew or not; unless it is said how long to wait."""
    of_rides: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=2)
    of_fares: Log[Fare] = Log("fares", of=Fare, key="taxi", partitions=2)
    left = source("rides", Ride).event_time(lambda one: one.at_ms, unit="ms", idle="1s")
    right = source("fares", Fare).event_time(lambda one: one.at_ms, unit="ms", idle=idle)
    pairs = left.key_by(key).join_as_of(right.key_by(key), how="left")
    told = pairs.map(lambda pair: [pair[0].at_ms, pair[1] is None])
    staged = StagedRun(stages([told.to(OUT)], [of_rides, of_fares]))
    staged.append(of_rides, [Ride("t", "z", ms) for ms in (10, 20, 30)])
    staged.run(15_000)
    assert staged.values(OUT) == ([[10, True], [20, True]] if idle else [])

    staged.append(of_fares, [Fare("t", "z", 1, 5), Fare("t", "z", 2, 25)])
    staged.run(15_000)
    if idle is None:
        assert staged.values(OUT) == [[10, False], [20, False]]


# --- what fails -----------------------------------------------------------------------------------


def test_all_records_of_a_batch_that_fail_are_told_at_once_and_left_out_whole() -> None:
    """Also of what the step before gave elsewhere; and the step is run twice, not as often as there are bad ones."""
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=1)
    calls = 0

    def picky(ride: Ride) -> Ride:
        nonlocal calls
        calls += 1
        if ride.at_ms % 10 == 3:
            raise ZeroDivisionError(ride.at_ms)
        return ride

    stream = source("rides", Ride).filter(lambda ride: ride.zone != "out")
    raw: Log[Any] = Log("raw", partitions=1)
    outputs = [stream.to(raw), stream.map(picky).map(lambda ride: ride.at_ms).to(OUT)]
    staged = StagedRun(stages(outputs, [taxis]), buries=True)
    some = [Ride("t", "out" if n % 7 == 0 else "z", n) for n in range(1000)]
    staged.append(taxis, some, batch=1000)
    staged.run()

    good = [one.at_ms for one in some if one.zone != "out" and one.at_ms % 10 != 3]
    bad = [one.at_ms for one in some if one.zone != "out" and one.at_ms % 10 == 3]
    assert sorted(staged.values(OUT)) == good
    assert [one["at_ms"] for one in staged.values(raw)] == good
    assert len(staged.dead) == len(bad) > 80
    assert f"offset 0, record {bad[1]}" in staged.dead[1]
    assert calls < 4 * len(some)


def test_record_that_fails_in_several_steps_is_one_that_failed() -> None:
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=1)

    def picky(ride: Ride) -> Ride:
        if ride.zone == "bad":
            raise ZeroDivisionError(ride.at_ms)
        return ride

    stream = source("rides", Ride)
    first: Log[Any] = Log("first", partitions=1)
    second: Log[Any] = Log("second", partitions=1)
    outputs = [stream.map(picky).to(first), stream.filter(picky).to(second)]
    staged = StagedRun(stages(outputs, [taxis]), buries=True)
    staged.append(taxis, [Ride("t", "bad" if n == 3 else "z", n) for n in range(10)])
    staged.run()

    assert len(staged.values(first)) == len(staged.values(second)) == 9
    assert len(staged.dead) == 1


def test_records_of_many_keys_that_fail_where_there_is_state_are_told_at_once() -> None:
    """One of each of 300 keys: the step is run twice, and not 300 times."""
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=1)
    calls = 0

    def picky(context: KeyContext[Any, list[int]], ride: Ride) -> list[str]:
        nonlocal calls
        calls += 1
        context.state.append(ride.at_ms)
        if ride.zone == "bad":
            raise ZeroDivisionError(ride.at_ms)
        return [f"{context.key} {len(context.state)}"]

    stream = source("rides", Ride).key_by("taxi").process(picky, state=list)
    raw: Log[Any] = Log("raw", partitions=1)
    staged = StagedRun(stages([stream.to(raw)], [taxis]), buries=True)
    some = [
        Ride(f"t{n}", "bad" if number == 1 else "z", n) for number in range(3) for n in range(300)
    ]
    staged.append(taxis, some, batch=900)
    staged.run()

    assert staged.values(raw) == [f"t{n} {number}" for number in (1, 2) for n in range(300)]
    assert len(staged.dead) == 300
    assert calls < 3 * len(some)


@pytest.mark.parametrize("seed", range(3))
def test_records_that_fail_in_any_step_are_left_out_and_the_others_count(seed: int) -> None:
    """Before a cut and behind it, in steps with state and without."""
    taxis: Log[Ride] = Log("rides", of=Ride, key="taxi", partitions=2)

    def fails(*ends: int) -> Any:
        def function(ride: Ride) -> Ride:
            if ride.at_ms % 100 in ends:
                raise ValueError(ride.at_ms)
            return ride

        return function

    def with_state(context: Any, ride: Ride) -> Any:
        context.state.append(ride.at_ms)
        fails(41, 42)(ride)
        yield [ride.zone, len(context.state), ride.at_ms]

    stream = timed(taxis, Ride).map(fails(1, 2)).key_by("zone")
    # Its records are those of the log, so it has to be told that they are.
    outputs = [stream.map(fails(21, 22)).process(with_state, state=list).to(OUT)]
    staged = StagedRun(stages(outputs, [taxis]), seed=seed, crash_rate=0.05, buries=True)
    some = rides(400, seed)
    staged.append(taxis, some, batch=30)
    staged.run()

    good = [one for one in some if one.at_ms % 100 not in (1, 2, 21, 22, 41, 42)]
    found = staged.values(OUT)
    assert Counter(at for _, _, at in found) == Counter(one.at_ms for one in good)
    for zone in {one.zone for one in good}:
        numbers = sorted(number for of, number, _ in found if of == zone)
        assert numbers == list(range(1, len(numbers) + 1)), "a failed record is not in the state"
    assert len(set(staged.dead)) == len(some) - len(good)
    assert any('stage "g.key_by-1", log "g.key_by-1"' in one for one in staged.dead)
