"""Outbox and inbox in classes written for Nameko, beside nameko-sqlalchemy's `Database`, started by `nameko run`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import sqlalchemy as sa
from tests.cli.commands import NAMEKO
from tests.processes import Process

from mycelia import Client, Outbox
from mycelia.testing import eventually

ACCOUNTS = """
from nameko.events import event_handler
from nameko.rpc import rpc
from nameko_sqlalchemy import Database
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mycelia import Inbox, Outbox


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entries"
    row: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Accounts:
    name = "accounts"
    db = Database(Base)
    outbox = Outbox()
    inbox = Inbox()

    @rpc
    def pay(self, number):
        session = self.db.session  # the worker's own
        self.outbox(session).emit("paid", number)
        if number < 0:
            raise ValueError("rolled back with the worker's session")
        session.commit()

    @event_handler("accounts", "paid")
    def paid(self, number):
        with self.db.get_session() as session:
            if self.inbox.is_first(session):
                session.add(Entry(number=number))
"""


async def test_existing_class_has_outbox_and_inbox_beside_its_database(
    rabbit_uri: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'accounts.db'}"
    engine = sa.create_engine(url)
    Outbox.metadata.create_all(engine)
    entries = sa.table("entries", sa.column("number"))
    with engine.begin() as connection:
        statement = 'CREATE TABLE entries ("row" INTEGER PRIMARY KEY, number INTEGER)'
        connection.execute(sa.text(statement))
    (tmp_path / "accounts.py").write_text(ACCOUNTS)
    (tmp_path / "config.yaml").write_text(
        f"AMQP_URI: {rabbit_uri}\nDB_URIS:\n  'accounts:Base': {url}\n"
    )

    def numbers() -> list[int]:
        with engine.connect() as connection:
            return sorted(connection.scalars(sa.select(entries.c.number)))

    command = (NAMEKO, "run", "accounts", "--config", "config.yaml")
    with Process(*command, cwd=tmp_path) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with Client(rabbit_uri, timeout=20) as client:
            await client.call("accounts", "pay", 1)
            await asyncio.gather(
                client.call("accounts", "pay", -1),
                client.call("accounts", "pay", 2),
                return_exceptions=True,
            )
            for _ in range(2):
                await client.publish("accounts", "paid", 3, message_id="three", mandatory=True)
            await client.publish("accounts", "paid", 4, mandatory=True)
            await eventually(lambda: numbers() == [1, 2, 3, 4], 20)
    engine.dispose()
