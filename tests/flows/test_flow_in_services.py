"""`@flow` in services: every record counted once, whoever has its partition; what cannot be used or computed is said."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.flows.counting import (
    DEPARTED,
    PARTITIONS,
    Counting,
    Departed,
    Tally,
    append,
    config,
    departures,
    expected,
    sentinels,
    statistics,
)
from tests.flows.moving import count_while_partitions_move

from mycelia import Client, Log, event_handler
from mycelia.errors import ConfigError
from mycelia.flow import (
    FlowOutput,
    Stream,
    count,
    counting,
    flow,
    json_lines,
    owned_partition,
    state_file,
)
from mycelia.logs import partition_of
from mycelia.testing import eventually, run_services, take_dead_letters

PASSED: Log[Departed] = Log("passed", of=Departed, partitions=1)


async def test_every_record_of_a_log_is_counted_once(broker: str, tmp_path: Path) -> None:
    flights = departures(20_000)
    wanted = expected(flights)
    async with Client(broker) as client:
        await append(client, flights[:12_000])
        tally = Tally(client)
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await append(client, flights[12_000:] + sentinels())
            await eventually(lambda: tally.has(len(wanted)), 40)
            told = statistics(bed)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted), "nothing was there twice"
    assert tally.repeated == 0
    assert told.partitions == list(range(PARTITIONS))
    assert told.records == 20_000 + PARTITIONS
    assert {record.key for record in tally.records} == {one.origin for one in flights}


async def test_restarts_go_on_from_what_was_committed(broker: str, tmp_path: Path) -> None:
    """Windows that were open at a stop are counted on by the next."""
    flights = departures(6_000)
    wanted = expected(flights)
    async with Client(broker) as client:
        tally = Tally(client)
        for begin in range(0, 6_000, 2_000):
            async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
                await append(client, flights[begin : begin + 2_000])
                if begin == 4_000:
                    await append(client, sentinels())
                await eventually(lambda bed=bed: statistics(bed).records >= 2_000, 30)  # type: ignore[misc]
        await eventually(lambda: tally.has(len(wanted)), 20)
        await tally.aclose()

    assert tally.counts() == wanted
    assert len(tally.records) == len(wanted)


async def test_instances_share_partitions_which_move_without_loss(
    rabbit_uri: str, tmp_path: Path
) -> None:
    flights = departures(20_000)
    wanted = expected(flights)

    tally = await count_while_partitions_move(rabbit_uri, config(tmp_path), flights, len(wanted))

    assert tally.counts() == wanted
    assert len(tally.by_id()) == len(wanted)


# --- what cannot be used or computed --------------------------------------------------------------


def failing_on(number: int, **options: Any) -> type:
    class Failing:
        name = "failing"

        @flow(DEPARTED, **{"commit_every": "20ms", **options})
        def doubled(self, flights: Stream[Departed]) -> tuple[FlowOutput, FlowOutput]:
            def picky(one: Departed) -> Departed:
                if one.at_ms == number:
                    raise ZeroDivisionError("no such time")
                return one

            good = flights.key_by("origin").map(picky).named("picky")
            return good.to(PASSED), good.filter(lambda one: one.at_ms == 3).emit("third")

    return Failing


async def test_failing_function_stops_its_partition_and_is_named(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = failing_on(5)
    async with Client(broker) as client:
        tally = Tally(client, PASSED)
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await append(client, [Departed("A", number) for number in range(10)], batch=1)
            others = [Departed(f"B{number}", 100 + number) for number in range(40)]
            await append(client, others)
            partition = partition_of("A", PARTITIONS)
            elsewhere = [o for o in others if partition_of(o.origin, PARTITIONS) != partition]
            await eventually(lambda: tally.has(len(elsewhere)), 20)
            await eventually(lambda: partition in statistics(bed, service).standing_still, 20)
            told = statistics(bed, service).standing_still
        await tally.aclose()

    assert list(told) == [partition]
    (line, *_) = [one for one in caplog.messages if "flow_stands_still" in one]
    for part in ("failing.doubled", f"partition={partition}", "offset=5", "record=0", "'A'"):
        assert part in line
    assert "operator='picky: map(picky)'" in line
    assert {record.value.at_ms for record in tally.records} <= {
        *range(5),
        *(one.at_ms for one in others),
    }


async def test_record_that_fails_may_become_a_dead_letter(broker: str, tmp_path: Path) -> None:
    events: list[int] = []

    class Hears:
        name = "hears"

        @event_handler("failing", "third")
        def third(self, flight: dict[str, Any]) -> None:
            events.append(flight["at_ms"])

    service = failing_on(5, on_error="dead-letter")
    async with Client(broker) as client:
        tally = Tally(client, PASSED)
        async with run_services(service, Hears, broker=broker, config=config(tmp_path)) as bed:
            await append(client, [Departed("A", number) for number in range(10)], batch=4)
            await eventually(lambda: tally.has(9), 20)
            await eventually(lambda: bool(events), 20)
            letters = await take_dead_letters(client.link, "log-departed--failing.doubled", 1)
            told = statistics(bed, service)
        await tally.aclose()

    assert [record.value.at_ms for record in tally.records] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert told.dead == 1
    assert events == [3]
    assert letters


class Odd:
    """Of no type that can be written anywhere."""


def leaving_oddly(directory: Path, **options: Any) -> type:
    class Odder:
        name = "odder"

        @flow(DEPARTED, commit_every="20ms", **options)
        def all(self, flights: Stream[Departed]) -> tuple[FlowOutput, ...]:
            odd: Stream[Any] = flights.map(lambda one: Odd() if one.at_ms == 5 else one)
            anew = odd.key_by(lambda one: getattr(one, "at_ms", 5) % 7).process(
                lambda context, one: [one], state=list
            )
            keyless = flights.key_by("origin").window(counting(1)).aggregate(count())
            return (
                odd.to(PASSED),
                odd.emit("odd"),
                odd.to(json_lines(directory, max_records=1)),
                anew.to(ANEW),
                keyless.key_by(lambda window: None).window(counting(1)).aggregate(count()).to(NONE),
            )

    return Odder


ANEW: Log[Departed] = Log("anew", of=Departed, partitions=1)
NONE: Log[Any] = Log("none", partitions=1)


async def test_results_that_cannot_leave_become_dead_letters_and_the_others_leave(
    broker: str, tmp_path: Path
) -> None:
    """By a log, as an event, into a file, and to the next stage; and results without a key."""
    service = leaving_oddly(tmp_path / "out", on_error="dead-letter")
    async with Client(broker) as client:
        passed, anew = Tally(client, PASSED), Tally(client, ANEW)
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await append(client, [Departed("A", number) for number in range(10)], batch=4)
            await eventually(lambda: passed.has(9), 20)
            await eventually(lambda: anew.has(9), 20)
            letters = await take_dead_letters(client.link, "log-departed--odder.all", 4 + 10)
            assert not statistics(bed, service).standing_still
            await eventually(lambda: len(list((tmp_path / "out").glob("*.jsonl"))) == 9, 20)
        await passed.aclose()
        await anew.aclose()

    others = [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [record.value.at_ms for record in passed.records] == others
    assert sorted(record.value.at_ms for record in anew.records) == others
    outputs = [str(letter.headers["x-flow-output"]) for letter in letters]
    assert sum("gives it no key (None)" in letter.error for letter in letters) == 10
    assert sum(one.startswith("key_by-") for one in outputs) == 11, "and that for the next stage"
    assert {"passed", "odd", str(tmp_path / "out")} < set(outputs)


async def test_result_that_cannot_leave_stops_its_partition_and_is_named(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = leaving_oddly(tmp_path / "out")
    async with Client(broker) as client:
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await append(client, [Departed("A", number) for number in range(10)], batch=4)
            await eventually(lambda: bool(statistics(bed, service).standing_still), 20)
            (why,) = statistics(bed, service).standing_still.values()

    assert 'output "passed", record odder.all/' in why
    assert "key 'A', event time" in why
    assert 'on_error="dead-letter"' in why
    (line, *_) = [one for one in caplog.messages if "flow_stands_still" in one]
    assert "operator='output \"passed\"'" in line


async def test_state_that_is_elsewhere_is_missed(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not begun anew in silence: its windows would count a second time, or not all."""
    async with Client(broker) as client:
        await append(client, departures(2_000))
        async with run_services(Counting, broker=broker, config=config(tmp_path / "here")) as bed:
            await eventually(lambda: statistics(bed).records == 2_000, 20)
        async with run_services(Counting, broker=broker, config=config(tmp_path / "there")) as bed:
            await eventually(lambda: len(statistics(bed).standing_still) == PARTITIONS, 20)
            assert statistics(bed).records == 0
        async with run_services(Counting, broker=broker, config=config(tmp_path / "here")) as bed:
            await append(client, departures(100))
            await eventually(lambda: statistics(bed).records == 100, 20)

    assert "and here is no state" in caplog.text
    assert "mycelia.flows.state" in caplog.text


async def test_directory_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"counting\.by_origin: its state cannot be kept in "):
        async with run_services(Counting, config=config(tmp_path / "file")):
            pass


async def test_locked_state_is_told_and_goes_on_when_it_is_free(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(owned_partition, "PAUSES", (0.1,))
    async with Client(broker) as client:
        await append(client, departures(2_000))
        async with run_services(Counting, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: statistics(bed).records == 2_000, 20)
            place = "departed--counting.by_origin"
            files = [tmp_path / place / f"{number}.sqlite3" for number in range(PARTITIONS)]
            locks = [sqlite3.connect(file, isolation_level=None) for file in files]
            for lock in locks:
                lock.execute("BEGIN IMMEDIATE")
            await append(client, departures(2_000, seed=2))
            await eventually(lambda: len(statistics(bed).standing_still) == PARTITIONS, 20)
            for lock in locks:
                lock.execute("ROLLBACK")
                lock.close()
            await eventually(lambda: statistics(bed).records == 4_000, 20)
            assert not statistics(bed).standing_still

    assert "database is locked" in caplog.text
    assert str(files[0]) in caplog.text


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (lambda flights: flights, r"returned Stream\(.*return stream\.to\(LOG\)"),
        (lambda flights: (), "A flow says where its streams go"),
        (lambda flights: (flights.to(PASSED), flights.to(PASSED)), 'two streams go to "passed"'),
        (lambda flights: flights.to("passed"), "expected a Log"),
        (lambda flights: flights.emit(""), "expected the type of an event"),
    ],
)
async def test_description_that_leads_nowhere_stops_the_start(
    returned: Any, problem: str, tmp_path: Path
) -> None:
    class Nowhere:
        name = "nowhere"

        @flow(DEPARTED)
        def hourly(self, flights: Stream[Departed]) -> Any:
            return returned(flights)

    with pytest.raises(ConfigError, match=problem):
        async with run_services(Nowhere, config=config(tmp_path)):
            pass


def _quits(flights: Stream[Departed]) -> Any:
    sys.exit(3)


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        (lambda flights: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda flights: flights.map(None), r"map\(\): expected a function"),
        (_quits, "SystemExit: 3"),
    ],
)
async def test_description_that_raises_names_its_flow_and_the_line(
    described: Any, problem: str, tmp_path: Path
) -> None:
    """Also where it ends with `sys.exit()`, which would be a silent end of the process."""

    class Raises:
        name = "raises"

        @flow(DEPARTED)
        def hourly(self, flights: Stream[Departed]) -> Any:
            return described(flights)

    where = r"raises\.hourly: the description .* at test_flow_in_services\.py:\d+: "
    with pytest.raises(ConfigError, match=where + problem):
        async with run_services(Raises, config=config(tmp_path)):
            pass


@pytest.mark.parametrize(
    "options",
    [{"commit_every": "soon"}, {"commit_records": 0}, {"on_error": "ignore"}, {"start": "now"}],
)
def test_options_that_cannot_be_are_refused_where_they_are_written(options: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        failing_on(1, **options)
