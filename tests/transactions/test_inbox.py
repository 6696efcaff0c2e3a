"""A handler's transaction is run once for each message, however often it is delivered."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from tests.transactions.bank import Payment, count_of, numbers_in

from mycelia import EventDispatcher, Inbox, Outbox, Retry, event_handler, fixed, rpc
from mycelia.testing import ServiceBed, eventually, run_services

PAUSES = Retry(attempts=3, backoff=fixed("10ms"))


class Source:
    name = "source"
    emit = EventDispatcher()

    @rpc
    async def send(self, number: int, message_id: str, times: int = 1) -> None:
        for _ in range(times):
            await self.emit("happened", number, message_id=message_id)


async def send(bed: ServiceBed, number: int, message_id: str, times: int = 1) -> None:
    await bed.client.call("source", "send", number, message_id, times)


class Gate:
    """Holds up transactions inside, until it is opened."""

    def __init__(self) -> None:
        self.entered = 0
        self.asked = 0
        self.opened = threading.Event()


def ledger_of(engine: sa.Engine, gate: Gate | None = None, fails: int = 0) -> type:
    """A service that writes a payment for each message; the first `fails` transactions are rolled back."""
    left = [fails]

    class Ledger:
        name = "ledger"
        inbox = Inbox(engine).blocking

        @event_handler("source", "happened", concurrency=4, retry=PAUSES)
        def happened(self, number: int) -> None:
            if gate is not None:
                gate.asked += 1
            with Session(engine) as session, session.begin():
                if not self.inbox.is_first(session):
                    return
                session.add(Payment(number=number))
                session.flush()
                if gate is not None:
                    gate.entered += 1
                    gate.opened.wait(20)
                if left[0]:
                    left[0] -= 1
                    raise ValueError("rolled back")

    return Ledger


def handled(bed: ServiceBed, service: type) -> Any:
    """What the inbox of a service has seen."""
    (found,) = [
        one
        for name, one in bed.container(service).statistics().extensions.items()
        if name.startswith("Inbox")
    ]
    return found


async def test_repeated_message_runs_its_transaction_once(engine: sa.Engine, broker: str) -> None:
    ledger = ledger_of(engine)
    async with run_services(Source, ledger, broker=broker) as bed:
        await send(bed, 1, "a", times=3)
        await send(bed, 2, "b")
        await eventually(lambda: handled(bed, ledger).repeated == 2)
        await eventually(lambda: numbers_in(engine) == [1, 2])

        assert handled(bed, ledger).first == 2
    assert count_of(engine, "mycelia_inbox") == 2


async def test_rolled_back_message_is_first_again(engine: sa.Engine) -> None:
    ledger = ledger_of(engine, fails=2)
    async with run_services(Source, ledger) as bed:
        await send(bed, 1, "a")
        await eventually(lambda: numbers_in(engine) == [1])

        assert handled(bed, ledger).first == 3


@pytest.mark.parametrize("fails", [0, 1], ids=["commits", "rolls back"])
async def test_second_delivery_waits_for_the_end_of_the_first(
    engine: sa.Engine, fails: int
) -> None:
    """If the first commits the second skips; if it is rolled back the second runs."""
    gate = Gate()
    ledger = ledger_of(engine, gate, fails)
    async with run_services(Source, ledger) as bed:
        await send(bed, 1, "a", times=2)
        await eventually(lambda: gate.asked == 2)
        await eventually(lambda: gate.entered == 1)
        assert handled(bed, ledger).repeated == 0
        gate.opened.set()
        await eventually(lambda: handled(bed, ledger).repeated >= 1)

        assert numbers_in(engine) == [1]
        assert gate.entered == 1 + fails


async def test_each_handler_has_messages_of_its_own(engine: sa.Engine) -> None:
    class Ledger:
        name = "ledger"
        inbox = Inbox(engine).blocking

        @event_handler("source", "happened")
        def one(self, number: int) -> None:
            self.write(number)

        @event_handler("source", "happened")
        def two(self, number: int) -> None:
            self.write(number + 100)

        def write(self, number: int) -> None:
            sessions = scoped_session(sessionmaker(engine))
            if self.inbox.is_first(sessions):
                sessions.add(Payment(number=number))
            sessions.commit()
            sessions.remove()

    async with run_services(Source, Ledger) as bed:
        await send(bed, 1, "a", times=2)
        await eventually(lambda: handled(bed, Ledger).repeated == 2)

    assert numbers_in(engine) == [1, 101]


async def test_async_methods_use_async_sessions(engine: sa.Engine, async_url: str) -> None:
    asynchronous = create_async_engine(async_url)

    class Ledger:
        name = "ledger"
        inbox = Inbox(asynchronous)

        @event_handler("source", "happened", concurrency=4)
        async def happened(self, number: int) -> None:
            async with AsyncSession(asynchronous) as session, session.begin():
                if await self.inbox.is_first(session):
                    session.add(Payment(number=number))

    try:
        async with run_services(Source, Ledger) as bed:
            await send(bed, 1, "a", times=3)
            await eventually(lambda: handled(bed, Ledger).repeated == 2)
    finally:
        await asynchronous.dispose()

    assert numbers_in(engine) == [1]


async def test_session_of_the_wrong_kind_is_told(engine: sa.Engine, async_url: str) -> None:
    asynchronous = create_async_engine(async_url)

    class Ledger:
        name = "ledger"
        inbox = Inbox(engine)

        @rpc
        async def blocks(self) -> None:
            with Session(engine) as session:
                await self.inbox.is_first(session, message_id="a")  # type: ignore[arg-type]

        @rpc
        def awaits(self) -> None:
            session = AsyncSession(asynchronous)
            self.inbox.is_first(session, message_id="a")  # type: ignore[unused-coroutine]

        @rpc
        def neither(self) -> None:
            self.inbox.is_first(engine, message_id="a")  # type: ignore[arg-type, unused-coroutine]

    async with run_services(Ledger) as bed:
        with pytest.raises(Exception, match="would block the event loop"):
            await bed.client.call("ledger", "blocks")
        with pytest.raises(Exception, match="cannot be used in a `def` method"):
            await bed.client.call("ledger", "awaits")
        with pytest.raises(Exception, match="is no session of SQLAlchemy"):
            await bed.client.call("ledger", "neither")


async def test_without_a_message_id_another_must_be_given(engine: sa.Engine) -> None:
    class Ledger:
        name = "ledger"
        inbox = Inbox(engine).blocking

        @rpc
        def record(self, number: int, its_id: str | None = None) -> bool:
            with Session(engine) as session, session.begin():
                return self.inbox.is_first(session, message_id=its_id)

    async with run_services(Ledger) as bed:
        with pytest.raises(
            Exception, match=r"has no message_id.*is_first\(session, message_id=…\)"
        ):
            await bed.client.call("ledger", "record", 1)
        assert await bed.client.call("ledger", "record", 1, "order-1") is True
        assert await bed.client.call("ledger", "record", 1, "order-1") is False


async def test_what_is_old_is_forgotten_of_this_service_alone(engine: sa.Engine) -> None:
    now = time.time()
    old = [("ledger.happened", f"m{n}", now - 100) for n in range(2500)]
    kept = [("ledger.happened", "new", now + 1000), ("ledgers.happened", "old", now - 100)]
    with engine.begin() as connection:
        rows = [
            {"handler": handler, "message_id": message_id, "handled_at": at}
            for handler, message_id, at in old + kept
        ]
        connection.execute(sa.insert(Inbox.metadata.tables["mycelia_inbox"]), rows)

    class Ledger:
        name = "ledger"
        inbox = Inbox(engine, keep="2s")

        @rpc
        def ping(self) -> None: ...

    async with run_services(Ledger) as bed:
        await eventually(lambda: count_of(engine, "mycelia_inbox") == 2, 20)
        await eventually(lambda: handled(bed, Ledger).expired == 2500)


async def test_inbox_and_outbox_share_the_transaction(engine: sa.Engine) -> None:
    """What a handler emits leaves once, though its message comes three times and its first transaction is rolled back."""
    failures = [1]

    class Ledger:
        name = "ledger"
        inbox = Inbox(engine).blocking
        outbox = Outbox(engine)

        @event_handler("source", "happened", retry=PAUSES)
        def happened(self, number: int) -> None:
            with Session(engine) as session, session.begin():
                if self.inbox.is_first(session):
                    self.outbox(session).emit("recorded", number)
                    if failures[0]:
                        failures[0] -= 1
                        raise ValueError("rolled back")

    recorded: list[int] = []

    class Audit:
        name = "audit"

        @event_handler("ledger", "recorded")
        async def recorded(self, number: int) -> None:
            recorded.append(number)

    async with run_services(Source, Ledger, Audit) as bed:
        await send(bed, 1, "a", times=3)
        await eventually(lambda: handled(bed, Ledger).repeated >= 2)
        await send(bed, 2, "b")
        await eventually(lambda: 2 in recorded)

    assert sorted(recorded) == [1, 2]
