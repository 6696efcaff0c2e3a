"""Services for tests that kill them: an order becomes a payment and an event; the event becomes an entry in the ledger.

Everything is once: `orders` come through an inbox, and so do the `paid` events. What the tables may not show, `arrivals` does:
a line for each delivery at the ledger, written outside of its transaction.

KILL_AT names a place where the process ends itself by SIGKILL, the first time that it comes there.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from mycelia import Inbox, Log, Outbox, event_handler, rpc
from mycelia.providers.transactions.relay import OutboxRelay

URL = os.environ["BANK_URL"]
_PATIENCE: dict[str, Any] = {"timeout": 30} if URL.startswith("sqlite") else {}
engine = sa.create_engine(URL, connect_args=_PATIENCE, pool_pre_ping=True)


class Base(DeclarativeBase):
    pass


class Payment(Base):
    """Nothing here is unique but the row: what is written twice is there twice."""

    __tablename__ = "payments"

    row: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Entry(Base):
    __tablename__ = "entries"

    row: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Bank:
    name = "bank"
    outbox = Outbox(engine, lease="2s", poll="100ms", batch=20)
    inbox = Inbox(engine).blocking

    @event_handler("shop", "ordered", concurrency=4)
    def ordered(self, number: int) -> None:
        with Session(engine) as session, session.begin():
            if self.inbox.is_first(session):
                session.add(Payment(number=number))
                self.outbox(session).emit("paid", number, key=number % 10)


class Ledger:
    name = "ledger"
    inbox = Inbox(engine).blocking

    @event_handler("bank", "paid", concurrency=4)
    def paid(self, number: int) -> None:
        with Path("arrivals").open("a") as arrivals:
            arrivals.write(f"{number}\n")
        with Session(engine) as session, session.begin():
            if self.inbox.is_first(session):
                session.add(Entry(number=number))


BOOKED: Log[int] = Log("booked", of=int, partitions=2, linger=0)


class Journal:
    """Books numbers in a log, those of one account in the order of the calls."""

    name = "journal"
    outbox = Outbox(engine, lease="2s", poll="100ms", batch=20, logs=[BOOKED])

    @rpc(concurrency=8)
    def book(self, number: int) -> None:
        with Session(engine) as session, session.begin():
            if not session.scalar(sa.select(Payment.row).where(Payment.number == number)):
                session.add(Payment(number=number))
                self.outbox(session).append(BOOKED, number, key=f"account-{number % 5}")


# --- where it is killed --------------------------------------------------------------------------------

_publish, _write_down = OutboxRelay._publish, OutboxRelay._write_down


def _die(place: str) -> None:
    marker = Path(f"killed-{place}")
    if os.environ.get("KILL_AT") == place and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def _publish_or_die(self: OutboxRelay, rows: Any, until: float) -> bool:
    _die("claimed")
    is_broker_away = await _publish(self, rows, until)
    _die("confirmed")
    return is_broker_away


async def _write_slowly(self: OutboxRelay) -> None:
    """Makes it likely that a process is killed between a confirm and what is written of it."""
    if self._unwritten and os.environ.get("SLOWLY"):
        await asyncio.sleep(0.02)
    await _write_down(self)


OutboxRelay._publish = _publish_or_die  # type: ignore[method-assign]
OutboxRelay._write_down = _write_slowly  # type: ignore[method-assign]
