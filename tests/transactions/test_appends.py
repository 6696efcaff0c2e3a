"""Records of a log that are appended if, and only if, the transaction that they were written in commits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tests.transactions.bank import Payment, count_of, silence

from mycelia import (
    Call,
    CallKind,
    Client,
    Direction,
    Log,
    Middleware,
    Next,
    Outbox,
    Outcome,
    Target,
    rpc,
)
from mycelia.errors import ConfigError, ContractError, PublishRejected, UnserializableValueError
from mycelia.logs import LogEntry, partition_of
from mycelia.logs.batch_format import producer_of
from mycelia.logs.sequences import SEQUENCE_WINDOW, SeenSequences
from mycelia.policies.retry import Retry, exponential
from mycelia.providers.transactions.log_outlet import RowNumbers, record_row, without_number
from mycelia.testing import eventually, run_services


@dataclass
class Paid:
    account: str
    number: int
    at_ms: int = 0


PAID: Log[Paid] = Log("paid", of=Paid, key="account", partitions=3, linger=0)
LOOSE: Log[Any] = Log("loose", partitions=2, linger=0)


def bank_of(engine: Any, **options: Any) -> type:
    class Bank:
        name = "bank"
        outbox = Outbox(engine, poll="50ms", **{"logs": [PAID, LOOSE], **options})

        @rpc
        def pay(self, number: int, how: str = "commit") -> None:
            with Session(engine) as session:
                session.add(Payment(number=number))
                self.outbox(session).append(PAID, Paid(f"a{number % 4}", number))
                getattr(session, how)()

        @rpc
        def pay_many(self, numbers: list[int]) -> None:
            with Session(engine) as session, session.begin():
                outbox = self.outbox(session)
                for number in numbers:
                    outbox.append(PAID, Paid(f"a{number % 4}", number))
                    undone = session.begin_nested()
                    outbox.append(PAID, Paid(f"a{number % 4}", -1))
                    undone.rollback()

        @rpc
        def tell(self, value: Any, key: Any = None) -> None:
            with Session(engine) as session, session.begin():
                at = datetime(2013, 1, 1, tzinfo=UTC)
                self.outbox(session).append(LOOSE, value, key=key, time=at, headers={"a": 1})

    return Bank


async def entries(client: Client, log: Log[Any], partition: int) -> AsyncIterator[LogEntry[Any]]:
    async with log.reader(client.link, partition) as reader:
        while (entry := await reader.take(1.0)) is not None:
            yield entry


async def all_of(client: Client, log: Log[Any]) -> list[Any]:
    """What a reader has of the log, one partition after the other."""
    found = []
    for partition in range(log.partitions):
        async with aclosing(entries(client, log, partition)) as reading:  # type: ignore[type-var]
            async for entry in reading:
                found += entry.values
    return found


async def written(engine: sa.Engine) -> None:
    await eventually(lambda: count_of(engine, "mycelia_outbox") == 0, 20)


async def test_record_is_appended_iff_its_transaction_commits(
    broker: str, engine: sa.Engine
) -> None:
    async with run_services(bank_of(engine), broker=broker) as bed:
        for number in range(20):
            how = "rollback" if number % 5 == 3 else "commit"
            await bed.client.call("bank", "pay", number, how)
        await written(engine)
        found = await all_of(bed.client, PAID)

    assert sorted(one.number for one in found) == [n for n in range(20) if n % 5 != 3]


async def test_records_of_a_key_are_in_order_and_where_a_writer_puts_them(
    broker: str, engine: sa.Engine
) -> None:
    async with run_services(bank_of(engine), broker=broker) as bed:
        for begin in range(0, 200, 50):
            await bed.client.call("bank", "pay_many", list(range(begin, begin + 50)))
        await written(engine)
        for partition in range(3):
            found = []
            async with aclosing(entries(bed.client, PAID, partition)) as reading:  # type: ignore[type-var]
                async for entry in reading:
                    found += entry.values
                    assert entry.keys == [entry.values[0].account]
            numbers = [one.number for one in found]
            assert numbers == sorted(numbers)
            wanted = [n for n in range(200) if partition_of(f"a{n % 4}", 3) == partition]
            assert numbers == wanted


async def test_key_time_and_headers_are_those_that_are_told(broker: str, engine: sa.Engine) -> None:
    async with run_services(bank_of(engine), broker=broker) as bed:
        for number in range(6):
            await bed.client.call("bank", "tell", {"n": number}, "k" if number % 2 else None)
        await written(engine)
        found = []
        for partition in range(2):
            async with aclosing(entries(bed.client, LOOSE, partition)) as reading:  # type: ignore[type-var]
                async for entry in reading:
                    found += entry.records

    assert sorted((one.value["n"], one.key) for one in found) == [
        (n, "k" if n % 2 else None) for n in range(6)
    ]
    assert {one.time for one in found} == {1_356_998_400_000}
    assert all(one.headers == {"a": 1} for one in found)


@pytest.mark.long_variants("memory-sqlite", "rabbit-sqlite")
async def test_async_session_appends_as_well(
    broker: str, engine: sa.Engine, async_url: str
) -> None:
    async_engine = create_async_engine(async_url)

    class Bank:
        name = "bank"
        outbox = Outbox(async_engine, poll="50ms", logs=[PAID])

        @rpc
        async def pay(self, number: int) -> None:
            async with AsyncSession(async_engine) as session, session.begin():
                self.outbox(session).append(PAID, Paid("a", number))

    async with run_services(Bank, broker=broker) as bed:
        for number in range(3):
            await bed.client.call("bank", "pay", number)
        await written(engine)
        found = await all_of(bed.client, PAID)
    await async_engine.dispose()

    assert [one.number for one in found] == [0, 1, 2]


async def test_what_no_log_can_have_is_an_error_of_the_transaction(engine: sa.Engine) -> None:
    unknown: Log[Any] = Log("unknown")
    bank = bank_of(engine)
    told: list[Exception] = []

    class Wrong(bank):  # type: ignore[valid-type,misc]
        @rpc
        def fail(self) -> None:
            with Session(engine) as session:
                outbox = self.outbox(session)
                for log, value, key in (
                    (unknown, 1, None),
                    (PAID, 5, "a"),
                    (LOOSE, 5, 1.5),
                    (LOOSE, object(), "a"),
                ):
                    try:
                        outbox.append(log, value, key=key)
                    except (ConfigError, ContractError, UnserializableValueError) as exc:
                        told.append(exc)
                session.commit()

    async with run_services(Wrong) as bed:
        await bed.client.call("bank", "fail")

    assert len(told) == 4
    assert 'log "unknown" is not one that its relay knows' in str(told[0])
    assert count_of(engine, "mycelia_outbox") == 0
    with pytest.raises(ConfigError, match="expected a list of Logs"):
        Outbox(engine, logs=["paid"])  # type: ignore[list-item]


async def test_rows_of_a_log_that_is_not_named_any_more_are_parked(
    broker: str, engine: sa.Engine
) -> None:
    bank = bank_of(engine)
    async with run_services(bank, broker=broker) as bed:
        await silence(bed, "bank")
        await bed.client.call("bank", "pay", 1)
    async with run_services(bank_of(engine, logs=[LOOSE]), broker=broker):

        def reason() -> str | None:
            with engine.connect() as connection:
                return connection.scalar(
                    sa.text("SELECT reason FROM mycelia_outbox WHERE parked_at IS NOT NULL")
                )

        await eventually(lambda: 'log "paid" is not among logs= any more' in (reason() or ""), 20)


class Refusing:
    """Middleware that refuses one number for a while."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.left = number, times

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        async def refuse(call: Call, go_on: Next) -> Outcome:
            (record,) = call.args[0]
            if record.value.number == self.number and self.left:
                self.left -= 1
                return Outcome(error=PublishRejected("no"))
            return await go_on(call)

        is_ours = direction is Direction.OUTBOUND and target.kind is CallKind.LOG
        return refuse if is_ours else None


@pytest.mark.long_variants("sqlite*")
async def test_row_that_waits_holds_up_its_partition_and_is_not_taken_for_one_that_has_come(
    engine: sa.Engine,
) -> None:
    """It is refused first, parked then, and sent again when more numbers have passed than readers remember."""
    options = {"when_refused": Retry(attempts=3, backoff=exponential("20ms")), "batch": 1000}
    refusing = Refusing(7, times=3)
    async with run_services(bank_of(engine, **options), middleware=[refusing]) as bed:
        numbers = [n * 4 + 3 for n in range(SEQUENCE_WINDOW + 50)]
        await bed.client.call("bank", "pay_many", numbers, timeout=60)
        await eventually(lambda: count_of(engine, "mycelia_outbox") == 1, 60)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE mycelia_outbox SET parked_at = NULL, attempts = 0"))
        await written(engine)
        found = [one.number for one in await all_of(bed.client, PAID)]
        producers = set()
        async with aclosing(entries(bed.client, PAID, partition_of("a3", 3))) as reading:  # type: ignore[type-var]
            async for entry in reading:
                producers.add(producer_of(entry.delivery.properties.headers)[0])  # type: ignore[index]

    assert found == [*(n for n in numbers if n != 7), 7]
    assert len(producers) > 1, "numbers begin anew behind rows that were given back"


class Tracing:
    """Middleware that has calls of the service be of a trace."""

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        async def trace(call: Call, go_on: Next) -> Outcome:
            call.headers["traceparent"] = TRACE
            return await go_on(call)

        return trace if direction is Direction.INBOUND and target.kind is CallKind.RPC else None


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_record_is_of_the_trace_that_it_was_written_in(
    broker: str, engine: sa.Engine
) -> None:
    async with run_services(bank_of(engine), broker=broker, middleware=[Tracing()]) as bed:
        await bed.client.call("bank", "pay", 1)
        async with PAID.reader(bed.client.link, partition_of("a1", 3)) as reader:
            entry = await reader.take(20)

    assert entry is not None
    assert (entry.delivery.properties.headers or {})["traceparent"] == TRACE


# --- numbers --------------------------------------------------------------------------------------


def test_numbers_are_given_once_and_those_of_a_partition_never_go_back() -> None:
    chance = Random(1)
    relays = [RowNumbers(f"r{n}") for n in range(3)]
    rows = []
    for number in range(3000):
        key = None if number % 7 == 0 else f"k{number % 11}"
        rows.append(record_row(LOOSE, number, key, None, None))
    seen: dict[str, SeenSequences] = {}
    for message, line in rows:
        numbered = chance.choice(relays).of(message, line)
        assert numbered is not None
        assert all(one.of(numbered, line) is None for one in relays), "it has one"
        told = producer_of(numbered.all_headers())
        assert told is not None
        assert seen.setdefault(line, SeenSequences()).is_new(*told)
        assert not seen[line].is_new(*told)
        assert without_number(numbered) == message


def test_no_row_is_taken_for_a_repetition_whatever_is_given_back() -> None:
    """Rows are claimed by their ids, far more at once than readers remember, and given back; others are committed late, with lower ids."""
    numbers, seen = RowNumbers("r"), SeenSequences()
    table: dict[int, Any] = {}

    def commit(ids: range) -> None:
        table.update({id_: record_row(LOOSE, id_, "k", None, None) for id_ in ids})

    def claim(limit: int) -> list[int]:
        claimed = sorted(table)[:limit]
        for id_ in claimed:
            message, line = table[id_]
            table[id_] = numbers.of(message, line) or message, line
        return claimed

    def publish(ids: list[int]) -> None:
        for id_ in ids:
            told = producer_of(table.pop(id_)[0].all_headers())
            assert told is not None
            assert seen.is_new(*told), f"row {id_} would be lost"

    commit(range(2001, 5001))
    publish(claim(3000)[:500])
    numbers.begin_anew()  # as the relay does: the others are given back
    commit(range(1, 2001))
    while table:
        publish(claim(3000))


def test_other_rows_have_no_number() -> None:
    message, _ = record_row(LOOSE, 1, "k", None, None)
    event = message.__class__(
        **{**{n: getattr(message, n) for n in message.__slots__}, "kind": "event"}
    )  # type: ignore[attr-defined]

    assert RowNumbers("r").of(event, "k") is None
