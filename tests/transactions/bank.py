"""The user's side of the tests: a table of payments, and services that write it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mycelia import Outbox, event_handler
from mycelia.testing import ServiceBed


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(default="")


def numbers_in(engine: sa.Engine) -> list[int]:
    """The payments that are committed."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.select(Payment.number).order_by(Payment.number)))


def count_of(engine: sa.Engine, table: str) -> int:
    with engine.connect() as connection:
        count = connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table)))
        return int(count or 0)


class Listener:
    """Gets the events of `bank`, as they come."""

    name = "listener"
    heard: list[Any] = []  # noqa: RUF012  shared on purpose; emptied by `listening()`

    @event_handler("bank", "paid")
    async def paid(self, number: Any) -> None:
        self.heard.append(number)


def listening() -> list[Any]:
    """What the listener hears from now on."""
    Listener.heard.clear()
    return Listener.heard


async def silence(bed: ServiceBed, service: str) -> None:
    """Have the relay of a service publish nothing any more: its rows stay for others, as those of a process that was killed."""
    (container,) = [one for one in bed.runner.containers if one.service_name == service]
    for extension in container.extensions:
        if isinstance(extension, Outbox):
            await extension.kill()
