"""Flows of several stages in services: records are split anew, and counts over four partitions are those of SQL."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.commands import MYCELIA
from tests.flows.carriers import (
    BY_CARRIER,
    LEFT,
    PARTITIONS,
    SERVICE,
    ByCarrier,
    Carriers,
    Left,
    by_carrier,
    closing,
    flights,
    sql_counts,
)
from tests.flows.counting import Tally, config, statistics
from tests.processes import Process

from mycelia import Client, Log, Retry, fixed
from mycelia.amqp import Message, Properties
from mycelia.errors import ConfigError
from mycelia.flow import (
    FlowOutput,
    KeyContext,
    Stream,
    count,
    flow,
    tumbling,
)
from mycelia.flow.relay_log import KeyedValue, RelayLog
from mycelia.logs import partition_of
from mycelia.logs.batch_format import encode_columns, entry_properties
from mycelia.testing import eventually, run_services, take_dead_letters

PASSED: Log[Left] = Log("passed", of=Left, partitions=1)
BLOCKED: Log[Left] = Log("blocked", of=Left, partitions=1)


async def append(client: Client, log: Any, records: list[Any], batch: int = 500) -> None:
    for begin in range(0, len(records), batch):
        await client.append_many(log, records[begin : begin + batch])


async def test_keys_that_change_are_counted_over_all_partitions(
    broker: str, tmp_path: Path
) -> None:
    left = flights(10_000)
    wanted = sql_counts(left)
    async with Client(broker) as client:
        await append(client, LEFT, left[:6_000])
        tally = Tally(client, BY_CARRIER)
        async with run_services(Carriers, broker=broker, config=config(tmp_path)) as bed:
            await append(client, LEFT, left[6_000:] + closing())
            await eventually(lambda: tally.has(len(wanted)), 40)
            told = statistics(bed, Carriers)
        await tally.aclose()

    assert by_carrier(tally) == wanted
    assert len(tally.records) == len(wanted), "nothing was there twice"
    assert list(told.stages) == ["carriers.counted", "carriers.counted.key_by-1"]
    assert told.records == 10_000 + PARTITIONS
    assert told.stages["carriers.counted.key_by-1"].records == PARTITIONS + sum(
        one.delay >= 0 for one in left
    )


# --- several logs ---------------------------------------------------------------------------------


@dataclass
class Gate:
    origin: str
    gate: int
    at_ms: int


@dataclass
class AtGate:
    origin: str
    at_ms: int
    gate: int | None


GATES: Log[Gate] = Log("gates", of=Gate, key="origin", partitions=PARTITIONS)
FEW_GATES: Log[Gate] = Log("few-gates", of=Gate, key=lambda one: one.origin, partitions=2)
AT_GATES: Log[AtGate] = Log("at-gates", of=AtGate, key="origin", partitions=2)


def gated(gates: Log[Gate]) -> type:
    class Gated:
        name = "gated"

        @flow(LEFT, gates, commit_every="50ms")
        def at_gates(self, left: Stream[Left], changes: Stream[Gate]) -> FlowOutput:
            flights = left.event_time(lambda one: one.at_ms, unit="ms", disorder="3s")
            of_gates = changes.event_time(lambda one: one.at_ms, unit="ms", disorder="3s")
            return (
                flights.key_by("origin")
                .join_as_of(of_gates.key_by(lambda one: one.origin), how="left")
                .map(
                    lambda pair: AtGate(
                        pair[0].origin, pair[0].at_ms, None if pair[1] is None else pair[1].gate
                    )
                )
                .to(AT_GATES)
            )

    return Gated


def gates(count: int) -> list[Gate]:
    """Of 50 airports, each gate at a time that no other of its airport has."""
    return [Gate(f"A{n * 7 % 50}", n, 1_000_000 + n * 40 + n * 13 % 37) for n in range(count)]


def sql_gates(left: list[Left], changes: list[Gate]) -> Counter[tuple[str, int, int | None]]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE flown (origin TEXT, at_ms INTEGER)")
    db.execute("CREATE TABLE gates (origin TEXT, gate INTEGER, at_ms INTEGER)")
    db.executemany("INSERT INTO flown VALUES (?, ?)", [(o.origin, o.at_ms) for o in left])
    db.executemany(
        "INSERT INTO gates VALUES (?, ?, ?)", [(o.origin, o.gate, o.at_ms) for o in changes]
    )
    rows = db.execute(
        "SELECT origin, at_ms, (SELECT gate FROM gates g WHERE g.origin = f.origin AND g.at_ms <= f.at_ms"
        " ORDER BY g.at_ms DESC LIMIT 1) FROM flown f"
    ).fetchall()
    db.close()
    return Counter(rows)


@pytest.mark.parametrize("log", [GATES, FEW_GATES], ids=["alike", "split-anew"])
async def test_two_logs_are_joined_and_give_what_sql_gives(
    log: Log[Gate], broker: str, tmp_path: Path
) -> None:
    left, changes = flights(2_000), gates(500)
    wanted = sql_gates(left, changes)
    service = gated(log)
    late = [Gate(one.origin, -1, one.at_ms) for one in closing()]
    while {partition_of(one.origin, log.partitions) for one in late} != set(range(log.partitions)):
        late.append(Gate(f"B{len(late)}", -1, late[0].at_ms))
    async with Client(broker) as client:
        tally = Tally(client, AT_GATES)
        async with run_services(service, broker=broker, config=config(tmp_path)) as bed:
            await append(client, log, changes + late, batch=100)
            await append(client, LEFT, left + closing(), batch=200)
            await eventually(lambda: tally.has(len(left)), 40)
            told = statistics(bed, service)
        await tally.aclose()

    found = Counter((o.origin, o.at_ms, o.gate) for o in (r.value for r in tally.by_id().values()))
    assert found == wanted
    assert len(told.stages) == (1 if log is GATES else 2)
    assert sum(one.gate is not None for one in (r.value for r in tally.records)) > 1_000


class OfTables:
    name = "of_tables"

    @flow(LEFT, GATES, start="first", commit_every="50ms")
    def at_gates(self, left: Stream[Left], changes: Stream[Gate]) -> FlowOutput:
        gates = changes.key_by("origin")
        return (
            left.key_by("origin")
            .join_table(gates, how="left")
            .map(
                lambda pair: AtGate(
                    pair[0].origin, pair[0].at_ms, None if pair[1] is None else pair[1].gate
                )
            )
            .to(AT_GATES)
        )


async def test_table_is_read_before_what_is_joined_with_it(broker: str, tmp_path: Path) -> None:
    """The rows that a record finds are many entries into their log, and the record is the first of its own."""
    rows = [Gate(f"A{n % 50}", n, n) for n in range(20_000)]
    last = {one.origin: one.gate for one in rows}
    left = flights(500)
    async with Client(broker) as client:
        await append(client, LEFT, left)
        await append(client, GATES, rows, batch=100)
        tally = Tally(client, AT_GATES)
        async with run_services(OfTables, broker=broker, config=config(tmp_path)):
            await eventually(lambda: tally.has(len(left)), 40)
        await tally.aclose()

    assert {one.origin: one.gate for one in (r.value for r in tally.records)} == last
    assert Counter((r.value.gate is None) for r in tally.records) == {False: len(left)}


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [pytest.param(None, marks=pytest.mark.long), "1s"])
async def test_silent_partition_holds_up_what_is_behind_a_cut_until_it_is_idle(
    idle: str | None, broker: str, tmp_path: Path
) -> None:
    class Silent:
        name = "silent"

        @flow(LEFT, commit_every="50ms")
        def counted(self, left: Stream[Left]) -> FlowOutput:
            timed = left.event_time(lambda one: one.at_ms, unit="ms", idle=idle)
            return (
                timed.key_by("carrier")
                .window(tumbling("1s"))
                .aggregate(count())
                .map(lambda window: ByCarrier(window.key, window.start_ms, window.value, 0))
                .to(BY_CARRIER)
            )

    one, other = (f"A{n}" for n in range(2))
    assert partition_of(one, PARTITIONS) != partition_of(other, PARTITIONS)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        async with run_services(Silent, broker=broker, config=config(tmp_path)) as bed:
            await append(client, LEFT, [Left(one, "C", 0, 100), Left(other, "C", 0, 200)])
            await eventually(
                lambda: statistics(bed, Silent).stages["silent.counted.key_by-1"].records == 2, 20
            )
            await append(client, LEFT, [Left(other, "C", 0, 5_000)])
            if idle is None:
                # Two of the partitions have never had a record; they are left out after 10 s, and the one that has had one is not.
                await asyncio.sleep(12)
                assert not await tally.has(1)
            else:
                await eventually(lambda: tally.has(1), 30)
                assert by_carrier(tally) == {("C", 0): (2, 0, 0)}
        await tally.aclose()


# --- records that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["stateless", "stateful"])
@pytest.mark.timeout(60)
async def test_many_records_that_fail_at_once_are_dead_letters_within_seconds(
    step: str, broker: str, tmp_path: Path
) -> None:
    """200 of 2,000; each letter names stage, operator, key, log, partition and offset."""

    def picky(one: Left) -> Left:
        if one.delay % 10 == 7:
            raise ZeroDivisionError(f"no delay of {one.delay}")
        return one

    def keeping(context: KeyContext[str, list[int]], one: Left) -> Iterator[Left]:
        context.state.append(one.delay)
        yield picky(one)

    class Picky:
        name = "picky"

        @flow(LEFT, commit_every="50ms", on_error="dead-letter")
        def passed(self, left: Stream[Left]) -> FlowOutput:
            keyed = left.key_by("carrier")
            if step == "stateless":
                return (
                    keyed.map(picky)
                    .named("picky")
                    .process(lambda _, one: [one], state=list)
                    .to(PASSED)
                )
            return keyed.process(keeping, state=list).named("picky").to(PASSED)

    left = [Left(f"A{n % 50}", f"C{n % 12}", n, n) for n in range(2_000)]
    async with Client(broker) as client:
        await append(client, LEFT, left, batch=2_000)
        tally = Tally(client, PASSED)
        begun = time.monotonic()
        async with run_services(Picky, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: statistics(bed, Picky).dead >= 200, 40)
            await eventually(lambda: tally.has(1_800), 20)
            took = time.monotonic() - begun
            told = statistics(bed, Picky)
            queue = "log-picky.passed.key_by-1--picky.passed"
            letters = await take_dead_letters(client.link, queue, 200)
        await tally.aclose()

    assert sorted(r.value.delay for r in tally.records) == [n for n in range(2_000) if n % 10 != 7]
    assert told.stages["picky.passed.key_by-1"].dead == told.dead == 200
    reasons = [letter.error for letter in letters]
    for part in (
        'stage "picky.passed.key_by-1"',
        'log "picky.passed.key_by-1"',
        "partition ",
        "offset ",
        'operator "picky',
        "no delay of",
        "key 'C",
    ):
        assert all(part in reason for reason in reasons), (part, reasons[0])
    assert took < 30


async def test_record_that_fails_is_tried_as_often_as_asked_for(
    broker: str, tmp_path: Path
) -> None:
    tried: list[int] = []

    class Tries:
        name = "tries"

        @flow(LEFT, commit_every="20ms", on_error="dead-letter", retry=Retry(3, fixed("50ms")))
        def passed(self, left: Stream[Left]) -> FlowOutput:
            def sometimes(one: Left) -> Left:
                if one.delay in (3, 5):
                    tried.append(one.delay)
                    if one.delay == 5 or tried.count(3) < 3:
                        raise OSError("not now")
                return one

            return left.map(sometimes).to(PASSED)

    async with Client(broker) as client:
        await append(client, LEFT, [Left("A0", "C", n, n) for n in range(10)])
        tally = Tally(client, PASSED)
        async with run_services(Tries, broker=broker, config=config(tmp_path)) as bed:
            await eventually(lambda: tally.has(9), 20)
            told = statistics(bed, Tries)
        await tally.aclose()

    assert sorted(r.value.delay for r in tally.records) == [n for n in range(10) if n != 5]
    # The one that succeeds at its third attempt is computed once more, without the other.
    assert (told.dead, tried.count(5), tried.count(3)) == (1, 3, 4)


# --- what is refused ------------------------------------------------------------------------------


async def test_stage_that_is_gone_is_missed(broker: str, tmp_path: Path) -> None:
    """A flow that was cut, and is not any more, has open windows where nobody would look for them."""

    def uncut() -> type:
        class Other:
            name = "carriers"

            @flow(LEFT)
            def counted(self, left: Stream[Left]) -> FlowOutput:
                return left.to(PASSED)

        return Other

    async with run_services(Carriers, broker=broker, config=config(tmp_path)):
        pass
    with pytest.raises(ConfigError, match=r"state of this flow in carriers\.counted\.key_by-1--"):
        async with run_services(uncut(), broker=broker, config=config(tmp_path)):
            pass


async def test_method_that_takes_other_streams_than_there_are_logs_stops_the_start(
    tmp_path: Path,
) -> None:
    class Both:
        name = "both"

        @flow(LEFT, GATES)
        def one(self, left: Stream[Left]) -> FlowOutput:
            return left.to(PASSED)

    with pytest.raises(
        ConfigError, match=r"takes 1 streams, and @flow names 2 logs \(left, gates\)"
    ):
        async with run_services(Both, config=config(tmp_path)):
            pass


async def test_two_flows_of_a_service_do_not_wait_for_each_other(
    broker: str, tmp_path: Path
) -> None:
    """One whose function blocks, in all of its partitions at once, leaves the other its threads."""
    free = threading.Event()

    class Two:
        name = "two"

        @flow(LEFT, commit_every="20ms")
        def blocked(self, left: Stream[Left]) -> FlowOutput:
            return left.filter(lambda one: free.wait(30)).to(BLOCKED)

        @flow(LEFT, commit_every="20ms")
        def goes(self, left: Stream[Left]) -> FlowOutput:
            return left.key_by("carrier").dedup("delay", within="1h").to(PASSED)

    async with Client(broker) as client:
        tally = Tally(client, PASSED)
        await append(client, LEFT, [Left(f"A{n}", "C", n, n) for n in range(100)])
        async with run_services(Two, broker=broker, config=config(tmp_path)):
            try:
                await eventually(lambda: tally.has(100), 30)
            finally:
                free.set()
        await tally.aclose()


async def test_silent_key_still_closes_its_windows_in_a_process_of_the_command(
    rabbit_uri: str, tmp_path: Path
) -> None:
    """One carrier is heard once, and never again; others go on, from other partitions."""
    (tmp_path / "carriers.py").write_text(SERVICE.read_text())
    (tmp_path / "config.yaml").write_text(f"AMQP_URI: {rabbit_uri}\n")
    heard = [Left("A1", "once", 7, 1_000_100)]
    others = [Left(f"A{n % 50}", f"C{n % 3}", 1, 1_000_000 + n * 100) for n in range(200)]
    async with Client(rabbit_uri) as client:
        await append(client, LEFT, heard + others)
        tally = Tally(client, BY_CARRIER)

        async def is_told() -> bool:
            await tally.read()
            return ("once", 1_000_000) in by_carrier(tally)

        with Process(*MYCELIA, "run", "carriers", "--config", "config.yaml", cwd=tmp_path):
            await eventually(is_told, 40)
        await tally.aclose()

    assert by_carrier(tally)["once", 1_000_000] == (1, 7, 24)


async def test_what_others_write_between_stages_is_a_dead_letter(
    broker: str, tmp_path: Path
) -> None:
    """A plain message, and a batch that reads as one of the flow's but for who wrote it."""
    between = "carriers.counted.key_by-1"
    strange = RelayLog(between, PARTITIONS, None, None)
    body = encode_columns(["C0"], [5], None, [strange.shape.codec.encode([KeyedValue("C0", 7)])])
    plain = Properties(content_type="application/json", delivery_mode=2)
    left = flights(1_000)
    wanted = sql_counts(left)
    async with Client(broker) as client:
        tally = Tally(client, BY_CARRIER)
        async with run_services(Carriers, broker=broker, config=config(tmp_path)) as bed:
            for properties, of in (
                (plain, b'{"carrier": "C0"}'),
                (entry_properties(1, "x", 0), body),
            ):
                await client.link.publish(Message(between, "0", of, properties, mandatory=True))
            await append(client, LEFT, left + closing())
            await eventually(lambda: tally.has(len(wanted)), 40)
            letters = await take_dead_letters(client.link, f"log-{between}--carriers.counted", 2)
            told = statistics(bed, Carriers)
        await tally.aclose()

    assert by_carrier(tally) == wanted
    assert told.faults == 2
    assert {letter.reason for letter in letters} == {"undecodable"}
    assert any("no stage of the flow wrote this" in letter.error for letter in letters)
