"""What becomes of committed rows in trouble: refused messages, brokers and databases that are away, several instances."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from tests.postgres import PrivatePostgres, fresh_database
from tests.transactions.bank import Listener, count_of, listening

from mycelia import (
    Call,
    CallKind,
    Direction,
    Middleware,
    Next,
    Outbox,
    Outcome,
    Retry,
    Target,
    fixed,
    rpc,
)
from mycelia.broker.node import PrivateNode
from mycelia.call import PublishOptions
from mycelia.errors import BrokerUnavailable, ConfigError, MessageTooLarge
from mycelia.providers.transactions import claims
from mycelia.providers.transactions.database import Database
from mycelia.providers.transactions.fate import Park, PutOff
from mycelia.providers.transactions.log_outlet import RowNumbers
from mycelia.providers.transactions.outbox_message import OutboxMessage
from mycelia.providers.transactions.tables import OutboxRow
from mycelia.testing import ServiceBed, eventually, run_services

PAUSES = Retry(attempts=3, backoff=fixed("200ms"))


def bank_of(database: Any, engine: sa.Engine, **options: Any) -> type:
    class Bank:
        name = "bank"
        outbox = Outbox(database, **({"poll": "50ms", "when_refused": PAUSES} | options))

        @rpc
        def pay(self, number: Any, key: str | None = None) -> None:
            with Session(engine) as session, session.begin():
                self.outbox(session).emit("paid", number, key=key)

        @rpc
        def pay_all(self, numbers: list[Any], key: str | None = None) -> None:
            with Session(engine) as session, session.begin():
                for number in numbers:
                    self.outbox(session).emit("paid", number, key=key)

        @rpc
        def send(self, exchange: str, payload: Any = 1, key: str | None = None) -> None:
            with Session(engine) as session, session.begin():
                self.outbox(session).publish(payload, exchange=exchange, key=key)

        @rpc
        def send_to_nobody(self) -> None:
            with Session(engine) as session, session.begin():
                self.outbox(session).publish(1, routing_key="no-such-queue", mandatory=True)

    return Bank


def told(bed: ServiceBed, service: type) -> Any:
    (found,) = [
        one
        for name, one in bed.container(service).statistics().extensions.items()
        if name.startswith("Outbox:")
    ]
    return found


def rows(engine: sa.Engine) -> list[Any]:
    table = Outbox.metadata.tables["mycelia_outbox"]
    with engine.connect() as connection:
        return list(connection.execute(sa.select(table).order_by(table.c.id)))


# --- refused -------------------------------------------------------------------------------------------


async def test_message_for_no_exchange_is_parked_with_the_reason_and_holds_up_nobody(
    engine: sa.Engine, broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mycelia.outbox")
    heard = listening()
    bank = bank_of(engine, engine)
    async with run_services(bank, Listener, broker=broker, timeout=20) as bed:
        await bed.client.call("bank", "send", "no-such-exchange", 1, "k")
        await bed.client.call("bank", "pay", 2, "k")
        await bed.client.call("bank", "pay", 3)
        await eventually(lambda: sorted(heard) == [2, 3], 20)
        await eventually(lambda: told(bed, bank).parked == 1)

    (row,) = rows(engine)
    assert row.parked_at is not None
    assert "no-such-exchange" in row.reason
    (line,) = [one for one in caplog.messages if one.startswith("outbox_parked")]
    assert "to=no-such-exchange/" in line


async def test_message_that_is_refused_for_good_is_parked_and_its_neighbours_leave(
    engine: sa.Engine, rabbit_uri: str
) -> None:
    heard = listening()
    bank = bank_of(engine, engine)

    class Small:
        """Says what the link says of bodies over the broker's limit, without 128 MiB."""

        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            if direction is not Direction.OUTBOUND or target.kind is not CallKind.EVENT:
                return None

            async def refuse(call: Call, next: Next) -> Outcome:
                if len(call.args[0]) > 1000:
                    raise MessageTooLarge("bank.events", len(call.args[0]), 1000)
                return await next(call)

            return refuse

    async with run_services(
        bank, Listener, broker=rabbit_uri, timeout=20, middleware=[Small()]
    ) as bed:
        await bed.client.call("bank", "pay_all", [1, "x" * 2000, 3])
        await eventually(lambda: sorted(heard) == [1, 3])
        await eventually(lambda: told(bed, bank).parked == 1)

    (row,) = rows(engine)
    assert row.reason.startswith("MessageTooLarge")


async def test_message_that_nobody_takes_is_tried_again_and_then_parked(
    engine: sa.Engine, broker: str
) -> None:
    bank = bank_of(engine, engine)
    async with run_services(bank, broker=broker, timeout=20) as bed:
        await bed.client.call("bank", "send_to_nobody")
        await eventually(lambda: told(bed, bank).parked == 1, 30)
        assert told(bed, bank).put_off == 2

    (row,) = rows(engine)
    assert row.attempts == 3
    assert row.reason.startswith("Unroutable")


async def test_parked_row_is_put_back_by_one_statement(engine: sa.Engine, broker: str) -> None:
    """As docs/transactions.md has it."""
    bank = bank_of(engine, engine)
    async with run_services(bank, broker=broker, timeout=20) as bed:
        await bed.client.call("bank", "send", "amq.topic.gone")
        await eventually(lambda: [row.reason for row in rows(engine) if row.parked_at])
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE mycelia_outbox SET parked_at = NULL, attempts = 0, source = 'amq.topic'"
                )
            )
        await eventually(lambda: rows(engine) == [])


class Failing:
    """A middleware that fails for events by what they hold, some times."""

    def __init__(self, times: dict[bytes, int]) -> None:
        self.times = times
        self.sent: list[bytes] = []

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        if direction is not Direction.OUTBOUND or target.kind is not CallKind.EVENT:
            return None

        async def fail(call: Call, next: Next) -> Outcome:
            body = call.args[0]
            if self.times.get(body, 0) > 0:
                self.times[body] -= 1
                raise ValueError("not now")
            self.sent.append(body)
            return await next(call)

        return fail


async def test_key_keeps_its_order_over_an_attempt_that_fails(engine: sa.Engine) -> None:
    heard = listening()
    failing = Failing({b"2": 2})
    bank = bank_of(engine, engine)
    async with run_services(bank, Listener, middleware=[failing]) as bed:
        await bed.client.call("bank", "pay_all", [1, 2, 3], "a")
        await bed.client.call("bank", "pay", 4, "a")
        await bed.client.call("bank", "pay_all", [101, 102], "b")
        await eventually(lambda: len(heard) == 6)
        assert told(bed, bank).put_off == 2

    assert [n for n in heard if n < 100] == [1, 2, 3, 4]
    assert heard.index(102) < heard.index(2)


async def test_broker_that_goes_away_in_the_middle_is_waited_for_and_no_attempt(
    engine: sa.Engine,
) -> None:
    """Nobody else looks for an hour; and the row is not claimed in a hot loop."""
    heard = listening()
    away = [3]
    attempts: list[float] = []

    class Away:
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            if direction is not Direction.OUTBOUND or target.kind is not CallKind.EVENT:
                return None

            async def fail(call: Call, next: Next) -> Outcome:
                attempts.append(time.monotonic())
                if away[0]:
                    away[0] -= 1
                    raise BrokerUnavailable("gone")
                return await next(call)

            return fail

    bank = bank_of(engine, engine, poll="1h", when_refused=Retry(attempts=1))
    async with run_services(bank, Listener, middleware=[Away()]) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: rows(engine) == [])

        assert len(attempts) == 4
        assert told(bed, bank).parked == told(bed, bank).put_off == 0


async def test_row_that_cannot_be_read_is_parked_and_holds_up_nobody(engine: sa.Engine) -> None:
    """Of a later version of Mycelia, perhaps."""
    heard = listening()
    bank = bank_of(engine, engine)
    strange = message(1)
    with Session(engine) as session, session.begin():
        session.add(OutboxRow("bank", replace(strange, kind="pigeon"), "k", 0.0))
        session.add(OutboxRow("bank", replace(strange, headers=b"\xff"), "k", 0.0))
        session.add(OutboxRow("bank", replace(strange, options=b"\xff"), "k", 0.0))
        session.add(OutboxRow("bank", message(2), "k", 0.0))
    async with run_services(bank, Listener):
        await eventually(lambda: heard == [2], 30)

    assert len([row for row in rows(engine) if row.parked_at]) == 3


# --- several instances ---------------------------------------------------------------------------------


async def test_instances_publish_each_row_once_and_each_key_in_order(
    engine: sa.Engine, rabbit_uri: str
) -> None:
    heard = listening()
    sent: list[bytes] = []

    class Count:
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            if direction is not Direction.OUTBOUND or target.kind is not CallKind.EVENT:
                return None

            async def count(call: Call, next: Next) -> Outcome:
                sent.append(call.args[0])
                return await next(call)

            return count

    keys, each = 20, 30
    banks = [bank_of(engine, engine, batch=7) for _ in range(3)]

    def runs(bank: type) -> Any:
        return run_services(bank, broker=rabbit_uri, timeout=30, middleware=[Count()])

    async with run_services(Listener, broker=rabbit_uri, timeout=30) as bed:
        async with runs(banks[0]) as one, runs(banks[1]) as two, runs(banks[2]) as three:
            for key in range(keys):
                numbers = [[key, n] for n in range(each)]
                await bed.client.call("bank", "pay_all", numbers[: each // 2], f"k{key}")
                await bed.client.call("bank", "pay_all", numbers[each // 2 :], f"k{key}")
            await eventually(lambda: len(heard) == keys * each, 30)
            shares = [told(*at).sent for at in zip((one, two, three), banks, strict=True)]
        assert sum(shares) == len(sent) == keys * each

    for key in range(keys):
        assert [n for k, n in heard if k == key] == list(range(each))
    assert rows(engine) == []


def message(number: int) -> OutboxMessage:
    return OutboxMessage.made(
        CallKind.EVENT,
        "bank",
        "paid",
        ("application/json", "utf-8", b"%d" % number),
        {},
        PublishOptions(),
        message_id=f"m{number}",
        now=0.0,
    )


@pytest.fixture
def table(engine: sa.Engine) -> Iterator[sa.Engine]:
    """Rows 0 to 9 of keys a and b in turn, 10 and 11 without."""
    with Session(engine) as session, session.begin():
        for number in range(12):
            key = None if number >= 10 else "ab"[number % 2]
            session.add(OutboxRow("bank", message(number), key, 0.0))
    return engine


async def test_claimed_key_is_nobody_else_s_until_the_lease_is_over(table: sa.Engine) -> None:
    database = Database(table, "test")

    async def claimed(who: str, limit: int, lease: float = 60.0) -> list[str]:
        found = await database.run(
            lambda c: claims.claim(c, "bank", who, limit, lease, RowNumbers("test"))
        )
        return [row.message.message_id for row in found]

    assert await claimed("one", 1, lease=1.0) == ["m0"]
    assert await claimed("two", 3) == ["m1", "m3", "m5"]
    assert await claimed("three", 100) == ["m10", "m11"]
    assert await claimed("four", 100) == []
    await asyncio.sleep(1.1)  # the database's clock is awaited
    assert await claimed("four", 100) == ["m0", "m2", "m4", "m6", "m8"]


async def test_what_became_of_rows_is_written_for_those_that_are_still_one_s_own(
    table: sa.Engine,
) -> None:
    database = Database(table, "test")
    mine = await database.run(lambda c: claims.claim(c, "bank", "me", 12, 0.0, RowNumbers("test")))
    ids = [row.id for row in mine]
    theirs = await database.run(
        lambda c: claims.claim(c, "bank", "they", 5, 60.0, RowNumbers("test"))
    )
    assert [row.id for row in theirs] == ids[:5]

    def write(connection: sa.Connection) -> None:
        claims.settle(
            connection,
            "me",
            done=[ids[0]],
            failed=[
                (mine[1], Park("mine no more")),
                (mine[5], Park("refused")),
                (mine[6], PutOff(60.0, "full")),
            ],
            back=[ids[2], ids[7]],
        )

    await database.run(write)

    left = {row.id: row for row in rows(table)}
    assert ids[0] not in left
    assert left[ids[1]].parked_at is None
    assert left[ids[2]].claimed_by == "they"
    assert (left[ids[5]].parked_at is not None, left[ids[5]].reason) == (True, "refused")
    assert (left[ids[6]].attempts, left[ids[6]].reason) == (1, "full")
    assert left[ids[7]].claimed_by is None


async def test_many_that_claim_at_once_get_each_row_once(table: sa.Engine) -> None:
    with Session(table) as session, session.begin():
        for number in range(100, 400):
            session.add(OutboxRow("bank", message(number), f"k{number % 50}", 0.0))
    database = Database(table, "test")
    got: list[list[tuple[str | None, int]]] = []

    async def work(who: str) -> None:
        while True:
            found = await database.run(
                lambda c: claims.claim(c, "bank", who, 5, 60.0, RowNumbers("test"))
            )
            if not found and not rows(table):
                return
            got.append([(row.key, row.id) for row in found])
            await database.run(
                partial(
                    claims.settle,
                    claimed_by=who,
                    done=[row.id for row in found],
                    failed=[],
                    back=[],
                )
            )

    await asyncio.gather(*(work(f"w{n}") for n in range(4)))

    claimed = [one for some in got for one in some]
    assert len(claimed) == len(set(claimed)) == 312
    for key in {key for key, _ in claimed if key is not None}:
        ids = [id_ for k, id_ in claimed if k == key]
        assert ids == sorted(ids)


# --- the broker is away --------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.settling
async def test_what_is_committed_while_the_broker_is_down_leaves_when_it_is_back(
    engine: sa.Engine, own_rabbit_node: PrivateNode
) -> None:
    heard = listening()
    bank = bank_of(engine, engine)
    async with run_services(bank, Listener, broker=own_rabbit_node.uri(), timeout=30) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        ours = bed.container(bank).dependencies
        outbox = next(one for one in ours if isinstance(one, Outbox)).shared_dependency(False)
        await asyncio.to_thread(own_rabbit_node.stop)
        for number in range(2, 52):
            with Session(engine) as session, session.begin():
                outbox(session).emit("paid", number)
        await asyncio.to_thread(own_rabbit_node.start, leash=True)
        await eventually(lambda: set(heard) == set(range(1, 52)), 60)
        await eventually(lambda: rows(engine) == [], 30)

        assert told(bed, bank).parked == told(bed, bank).put_off == 0


# --- the database is away ------------------------------------------------------------------------------


async def test_relay_goes_on_when_postgresql_is_back(
    own_postgres: PrivatePostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mycelia.outbox")
    heard = listening()
    with fresh_database(own_postgres) as uri:
        engine = sa.create_engine(uri.replace("://", "+psycopg://"), pool_pre_ping=True)
        Outbox.metadata.create_all(engine)
        bank = bank_of(engine, engine)
        async with run_services(bank, Listener, timeout=20) as bed:
            await bed.client.call("bank", "pay", 1)
            await eventually(lambda: heard == [1])
            await asyncio.to_thread(own_postgres.kill)
            await eventually(lambda: told(bed, bank).is_database_away, 20)
            with pytest.raises(Exception, match="OperationalError"):
                await bed.client.call("bank", "pay", 2)
            await asyncio.to_thread(own_postgres.start)
            await bed.client.call("bank", "pay", 3)
            await eventually(lambda: 3 in heard, 20)
            await eventually(lambda: not told(bed, bank).is_database_away)
        engine.dispose()

    assert set(heard) == {1, 3}
    said = [one.partition(" ")[0] for one in caplog.messages]
    assert said.count("outbox_database_away") == said.count("outbox_database_back") == 1


async def test_service_starts_while_postgresql_is_down(
    own_postgres: PrivatePostgres, caplog: pytest.LogCaptureFixture
) -> None:
    heard = listening()
    with fresh_database(own_postgres) as uri:
        url = uri.replace("://", "+psycopg://")
        engine = sa.create_engine(url, pool_pre_ping=True)
        Outbox.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            session.add(OutboxRow("bank", message(7), None, 0.0))
        await asyncio.to_thread(own_postgres.kill)
        async with run_services(bank_of(url, engine), Listener, timeout=20):
            assert "database_away_at_start" in caplog.text
            await asyncio.to_thread(own_postgres.start)
            await eventually(lambda: heard == [7], 30)
        engine.dispose()


async def test_locked_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'bank.db'}", connect_args={"timeout": 0.2})
    Outbox.metadata.create_all(engine)
    heard = listening()
    bank = bank_of(engine, engine)
    async with run_services(bank, Listener) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: rows(engine) == [])
        with Session(engine) as session, session.begin():
            session.add(OutboxRow("bank", message(2), None, 0.0))
            session.flush()
            session.connection().exec_driver_sql("UPDATE mycelia_outbox SET reason = 'mine'")
            ended = threading.Event()
            await asyncio.to_thread(ended.wait, 0.5)
        await eventually(lambda: 2 in heard, 30)
    engine.dispose()


# --- what cannot be ------------------------------------------------------------------------------------


async def test_tables_that_are_missing_stop_the_start_unless_they_are_to_be_created(
    url: str,
) -> None:
    engine = sa.create_engine(url)
    with pytest.raises(ConfigError, match=r"no table mycelia_inbox and no table mycelia_outbox"):
        async with run_services(bank_of(url, engine)):
            pass

    heard = listening()
    banks = [bank_of(url, engine, create_tables=True) for _ in range(4)]
    broker = "memory://tables"
    beds = [run_services(bank, broker=broker) for bank in banks]
    async with run_services(Listener, broker=broker) as bed:
        await asyncio.gather(*(one.__aenter__() for one in beds))  # all at once
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        for one in beds:
            await one.__aexit__(None, None, None)
    assert count_of(engine, "mycelia_outbox") == 0
    engine.dispose()


@pytest.mark.parametrize(
    ("database", "said"),
    [
        (None, r"which database\? Give its URL or engine, or set mycelia.database"),
        ("sqlite://", "in memory is another one for each connection"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory is another one"),
        ("mysql+nodriver://u:secret@h/d", "no URL that SQLAlchemy can read"),
        ("no url", "no URL that SQLAlchemy can read"),
        (5, "5 is no database"),
    ],
)
async def test_database_that_cannot_be_is_told_at_start(database: Any, said: str) -> None:
    class Bank:
        name = "bank"
        outbox = Outbox(database)

        @rpc
        def pay(self) -> None: ...

    with pytest.raises(ConfigError, match=said) as failure:
        async with run_services(Bank):
            pass
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "config",
    [
        {"mycelia": {"database": "{url}"}},
        {"DB_URIS": {"bank:Base": "{url}", "shop:Base": "sqlite:///elsewhere.db"}},
    ],
    ids=["mycelia.database", "DB_URIS"],
)
async def test_database_may_be_configured(
    engine: sa.Engine, url: str, config: dict[str, dict[str, str]]
) -> None:
    given = {
        section: {key: value.replace("{url}", url) for key, value in keys.items()}
        for section, keys in config.items()
    }
    heard = listening()
    async with run_services(bank_of(None, engine), Listener, config=given) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])


async def test_session_of_another_database_is_refused(engine: sa.Engine, tmp_path: Path) -> None:
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Outbox.metadata.create_all(other)
    async with run_services(bank_of(engine, other)) as bed:
        with pytest.raises(Exception, match="Give both the same database"):
            await bed.client.call("bank", "pay", 1)
    other.dispose()


def test_alembic_sees_the_tables(engine: sa.Engine, url: str) -> None:
    """A database that has them differs in nothing; one that has them not gets both by autogenerate."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = compare_metadata(context, Outbox.metadata)
        assert [one for one in found if one[0] != "remove_table"] == []
    Outbox.metadata.drop_all(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = compare_metadata(context, Outbox.metadata)
    assert {one[1].name for one in found if one[0] == "add_table"} == {
        "mycelia_inbox",
        "mycelia_outbox",
    }
