"""Events leave if, and only if, the transaction that they were emitted in commits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from tests.transactions.bank import (
    Listener,
    Payment,
    count_of,
    listening,
    numbers_in,
    silence,
)

from mycelia import (
    Call,
    CallKind,
    Direction,
    Middleware,
    Next,
    Outbox,
    Outcome,
    PublishOptions,
    Queue,
    Target,
    consume,
    context,
    event_handler,
    get_current_call,
    rpc,
)
from mycelia.errors import UnserializableValueError
from mycelia.testing import eventually, run_services


def bank_of(engine: Any, **options: Any) -> type:
    """A service whose methods run a transaction each; `how` says how it goes."""

    class Bank:
        name = "bank"
        outbox = Outbox(engine, **options)

        @rpc
        def pay(self, number: int, how: str = "commit") -> str:
            with Session(engine) as session:
                session.add(Payment(number=number))
                message_id = self.outbox(session).emit("paid", number)
                getattr(session, how)()
            return message_id

        @rpc
        def pay_in_savepoints(self, number: int) -> None:
            """One that stays, one that is rolled back, one that is nested in one that is rolled back."""
            with Session(engine) as session, session.begin():
                outbox = self.outbox(session)
                outbox.emit("paid", number)
                with session.begin_nested():
                    outbox.emit("paid", number + 1)
                undone = session.begin_nested()
                outbox.emit("paid", number + 2)
                with session.begin_nested():
                    outbox.emit("paid", number + 3)
                undone.rollback()
                session.add(Payment(number=number))

        @rpc
        def pay_in_two_sessions(self, number: int) -> None:
            with Session(engine) as kept, Session(engine) as undone:
                self.outbox(undone).emit("paid", number + 1)
                self.outbox(kept).emit("paid", number)
                undone.rollback()
                kept.commit()

        @rpc
        def pay_again_and_again(self, number: int) -> None:
            """One session for three transactions, of which the middle one is rolled back."""
            with Session(engine) as session:
                outbox = self.outbox(session)
                outbox.emit("paid", number)
                session.commit()
                outbox.emit("paid", number + 1)
                session.rollback()
                self.outbox(session).emit("paid", number + 2)
                session.commit()

        @rpc
        def pay_scoped(self, number: int) -> None:
            sessions = scoped_session(sessionmaker(engine))
            self.outbox(sessions).emit("paid", number)
            sessions.commit()
            sessions.remove()

        @rpc
        def pay_many(self, first: int, count: int) -> None:
            with Session(engine) as session, session.begin():
                for number in range(first, first + count):
                    session.add(Payment(number=number))
                    self.outbox(session).emit("paid", number, key="all")

    return Bank


async def test_event_leaves_with_the_commit_and_its_row_is_gone(engine: sa.Engine) -> None:
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: count_of(engine, "mycelia_outbox") == 0)

    assert numbers_in(engine) == [1]


@pytest.mark.parametrize("how", ["rollback", "close", "expunge_all"])
async def test_what_is_not_committed_never_leaves(engine: sa.Engine, how: str) -> None:
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay", 1, how)
        await bed.client.call("bank", "pay", 2)
        await eventually(lambda: 2 in heard)

    assert heard == [2]
    assert numbers_in(engine) == [2]


async def test_commit_that_fails_takes_the_event_along(engine: sa.Engine) -> None:
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay", 1)
        with pytest.raises(Exception, match=r"(?i)unique"):
            await bed.client.call("bank", "pay", 1)
        await bed.client.call("bank", "pay", 2)
        await eventually(lambda: 2 in heard)

    assert heard == [1, 2]
    assert count_of(engine, "mycelia_outbox") == 0


async def test_savepoint_that_is_rolled_back_takes_its_events_along(engine: sa.Engine) -> None:
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay_in_savepoints", 10)
        await bed.client.call("bank", "pay", 2)
        await eventually(lambda: 2 in heard)

    assert sorted(heard) == [2, 10, 11]


async def test_each_session_has_its_own_transaction(engine: sa.Engine) -> None:
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay_in_two_sessions", 10)
        await bed.client.call("bank", "pay_again_and_again", 20)
        await bed.client.call("bank", "pay_scoped", 30)
        await eventually(lambda: 30 in heard)
        await eventually(lambda: len(heard) == 4)

    assert sorted(heard) == [10, 20, 22, 30]


# --- when it leaves -------------------------------------------------------------------------------------


async def test_commit_wakes_the_relay_at_once(engine: sa.Engine) -> None:
    """Nobody looks by himself for an hour."""
    heard = listening()
    async with run_services(bank_of(engine, poll="1h"), Listener) as bed:
        await bed.client.call("bank", "pay_in_savepoints", 10)
        await eventually(lambda: sorted(heard) == [10, 11])
        await bed.client.call("bank", "pay_many", 20, 500)
        await eventually(lambda: len(heard) == 502, 20)

    assert heard[2:] == list(range(20, 520))


async def test_what_a_process_that_is_gone_has_committed_is_found_by_another(
    engine: sa.Engine,
) -> None:
    heard = listening()
    async with run_services(bank_of(engine)) as bed:
        await silence(bed, "bank")
        await bed.client.call("bank", "pay", 1)
    assert count_of(engine, "mycelia_outbox") == 1

    async with run_services(bank_of(engine), Listener):
        await eventually(lambda: heard == [1])
        await eventually(lambda: count_of(engine, "mycelia_outbox") == 0)


async def test_stop_publishes_what_has_been_committed(engine: sa.Engine) -> None:
    async with run_services(bank_of(engine, poll="1h")) as bed:
        await bed.client.call("bank", "pay_many", 1, 150)

    assert count_of(engine, "mycelia_outbox") == 0


async def test_rows_of_another_service_are_left_alone(engine: sa.Engine) -> None:
    class Shop:
        name = "shop"
        outbox = Outbox(engine, poll="50ms")

        @rpc
        def sell(self) -> None:
            with Session(engine) as session, session.begin():
                self.outbox(session).emit("sold", 1)

    async with run_services(Shop) as bed:
        await silence(bed, "shop")
        await bed.client.call("shop", "sell")
    heard = listening()
    async with run_services(bank_of(engine), Listener) as bed:
        await bed.client.call("bank", "pay", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: count_of(engine, "mycelia_outbox") == 1)


# --- what it is ----------------------------------------------------------------------------------------


class Witness:
    """Keeps the calls that its handlers got."""

    name = "witness"
    calls: list[Call] = []  # noqa: RUF012  shared on purpose

    @event_handler("bank", "paid")
    async def paid(self, number: Any) -> None:
        call = get_current_call()
        assert call is not None
        self.calls.append(call)

    @consume(Queue("ledger-entries"))
    async def entry(self, body: Any) -> None:
        call = get_current_call()
        assert call is not None
        self.calls.append(call)


async def test_message_is_the_one_that_a_dispatcher_would_have_sent(
    engine: sa.Engine, broker: str
) -> None:
    Witness.calls.clear()

    class Bank:
        name = "bank"
        outbox = Outbox(engine, priority=1)

        @rpc
        def pay(self) -> list[str]:
            context["tenant"] = "acme"
            with Session(engine) as session, session.begin():
                outbox = self.outbox(session)
                return [
                    outbox.emit("paid", {"number": 1}, headers={"x-colour": "red"}, type="t"),
                    outbox.emit("paid", b"[7]", content_type="application/json", message_id="mine"),
                    outbox.emit("paid", "z" * 5000, compression="gzip"),
                    outbox.publish([1, 2], routing_key="ledger-entries", serializer="msgpack"),
                ]

    accepted = {"ACCEPT": ["json", "msgpack"]}
    async with run_services(Bank, Witness, broker=broker, config=accepted) as bed:
        ids = await bed.client.call("bank", "pay")
        await eventually(lambda: len(Witness.calls) == 4)

    by_id = {call.message.properties.message_id: call for call in Witness.calls if call.message}
    first, raw, long, entry = (by_id[one] for one in ids)
    assert ids[1] == "mine"
    assert [call.args[0] for call in (first, long, entry)] == [{"number": 1}, "z" * 5000, [1, 2]]
    assert raw.message is not None
    assert raw.message.body == b"[7]"
    assert first.message is not None
    assert first.message.properties.priority == 1
    assert first.message.properties.type == "t"
    assert first.headers is not None
    assert first.headers["x-colour"] == "red"
    for call in Witness.calls:
        assert call.context["tenant"] == "acme"
        assert [one.rpartition(".")[0] for one in call.call_id_stack[1:]] == [
            "bank.pay",
            call.target.name,
        ]


async def test_payload_is_as_it_was_when_it_was_emitted(engine: sa.Engine) -> None:
    class Bank:
        name = "bank"
        outbox = Outbox(engine)

        @rpc
        def pay(self) -> None:
            with Session(engine) as session, session.begin():
                payment = {"number": 1}
                self.outbox(session).emit("paid", payment)
                payment["number"] = 2

    heard = listening()
    async with run_services(Bank, Listener) as bed:
        await bed.client.call("bank", "pay")
        await eventually(lambda: heard == [{"number": 1}])


async def test_what_cannot_be_carried_fails_in_the_transaction(engine: sa.Engine) -> None:
    class Bank:
        name = "bank"
        outbox = Outbox(engine)

        @rpc
        def pay(self) -> None:
            with Session(engine) as session, session.begin():
                session.add(Payment(number=1))
                self.outbox(session).emit("paid", object())

    async with run_services(Bank) as bed:
        with pytest.raises(UnserializableValueError):
            await bed.client.call("bank", "pay")

    assert numbers_in(engine) == []


async def test_outbound_middleware_sees_what_leaves_with_its_own_context(engine: sa.Engine) -> None:
    seen: list[tuple[str, Any, str | None]] = []

    class Watch:
        def middleware(self, direction: Direction, target: Target) -> Middleware | None:
            if direction is not Direction.OUTBOUND or target.kind is not CallKind.EVENT:
                return None

            async def watch(call: Call, next: Next) -> Outcome:
                assert isinstance(call.options, PublishOptions)
                seen.append((call.target.name, call.args[0], call.options.message_id))
                call.context["seen"] = call.context["tenant"]
                return await next(call)

            return watch

    class Bank:
        name = "bank"
        outbox = Outbox(engine)

        @rpc
        def pay(self) -> str:
            context["tenant"] = "acme"
            with Session(engine) as session, session.begin():
                return self.outbox(session).emit("paid", 1)

    Witness.calls.clear()
    async with run_services(Bank, Witness, middleware=[Watch()]) as bed:
        message_id = await bed.client.call("bank", "pay")
        await eventually(lambda: Witness.calls)

    assert seen == [("bank.paid", b"1", message_id)]
    assert Witness.calls[0].context["seen"] == "acme"


# --- async def ------------------------------------------------------------------------------------------


async def test_async_methods_use_async_sessions(engine: sa.Engine, async_url: str) -> None:
    asynchronous = create_async_engine(async_url)

    class Bank:
        name = "bank"
        outbox = Outbox(asynchronous, poll="1h")

        @rpc
        async def pay(self, number: int, how: str = "commit") -> None:
            async with AsyncSession(asynchronous) as session:
                session.add(Payment(number=number))
                self.outbox(session).emit("paid", number)
                async with session.begin_nested() as savepoint:
                    self.outbox(session).emit("paid", -1)
                    await savepoint.rollback()
                await getattr(session, how)()

        @rpc
        async def pay_scoped(self, number: int) -> None:
            sessions = async_scoped_session(async_sessionmaker(asynchronous), asyncio.current_task)
            self.outbox(sessions).emit("paid", number)
            await sessions.commit()
            await sessions.remove()

    heard = listening()
    try:
        async with run_services(Bank, Listener) as bed:
            await bed.client.call("bank", "pay", 1)
            await bed.client.call("bank", "pay", 2, "rollback")
            await bed.client.call("bank", "pay", 3)
            await bed.client.call("bank", "pay_scoped", 4)
            await eventually(lambda: sorted(heard) == [1, 3, 4])
            await eventually(lambda: count_of(engine, "mycelia_outbox") == 0)
    finally:
        await asynchronous.dispose()

    assert numbers_in(engine) == [1, 3]


async def test_relay_reaches_the_database_by_any_url(
    engine: sa.Engine, url: str, async_url: str
) -> None:
    heard = listening()
    for number, one in enumerate((url, async_url)):

        class Bank:
            name = "bank"
            outbox = Outbox(one)

            @rpc
            def pay(self, number: int) -> None:
                with Session(engine) as session, session.begin():
                    self.outbox(session).emit("paid", number)

        async with run_services(Bank, Listener) as bed:
            await bed.client.call("bank", "pay", number)
            await eventually(lambda: heard[-1:] == [number])  # noqa: B023  awaited at once
