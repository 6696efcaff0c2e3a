"""What the relay does to the table of the outbox: each function is one transaction's work, over a connection.

An instance publishes the rows that it has claimed: `free_at` lies ahead then, by the database's clock. An instance that dies
leaves its claims to run out. Nobody claims a row while another one of its key is claimed, or put off; so that two who claim
at the same time do not miss each other's claims, they do it one after the other (PostgreSQL: a lock of the transaction, for some
milliseconds; SQLite has one writer at a time, and the claim is one statement).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    and_,
    bindparam,
    cast,
    delete,
    extract,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from mycelia.call import CallKind
from mycelia.providers.transactions.fate import Park, PutOff
from mycelia.providers.transactions.log_outlet import RowNumbers, without_number
from mycelia.providers.transactions.outbox_message import OutboxMessage
from mycelia.providers.transactions.tables import IS_HELD_OR_WAS, OUTBOX

__all__ = ["Backlog", "ClaimedRow", "backlog_of", "claim", "give_back", "is_any_free", "settle"]

_LOCK_SPACE = 0x6D79636C
"""Of the two numbers of PostgreSQL's advisory lock, the one that says it is ours: "mycl"."""
MAX_COUNTED = 10_000
"""How far rows are counted: a look at a long table must not cost more than one at a short one."""


class ClaimedRow:
    """A row that this instance publishes."""

    __slots__ = ("attempts", "id", "key", "message")

    def __init__(self, id: int, key: str | None, attempts: int, message: OutboxMessage) -> None:
        self.id = id
        self.key = key
        self.attempts = attempts
        """Those that have failed."""
        self.message = message


class Backlog:
    """How many rows there are."""

    __slots__ = ("oldest_s", "parked", "waiting")

    def __init__(self, waiting: int, parked: int, oldest_s: float) -> None:
        self.waiting = waiting
        self.parked = parked
        self.oldest_s = oldest_s


def now_in(connection: Connection) -> ColumnElement[float]:
    """The database's clock, in seconds since the epoch."""
    if connection.dialect.name == "sqlite":
        return (func.julianday("now") - 2440587.5) * 86400.0
    return cast(extract("epoch", func.statement_timestamp()), Double)


def is_any_free(connection: Connection, service: str) -> bool:
    """Whether there is a row that somebody may claim. It locks nothing; on SQLite a claim in vain would."""
    found = select(OUTBOX.c.id).where(
        OUTBOX.c.service == service,
        OUTBOX.c.parked_at.is_(None),
        OUTBOX.c.free_at <= now_in(connection),
    )
    return connection.execute(found.limit(1)).first() is not None


def claim(
    connection: Connection,
    service: str,
    claimed_by: str,
    limit: int,
    lease: float,
    numbers: RowNumbers,
) -> list[ClaimedRow]:
    """Claim the oldest rows for `lease` seconds; in their order. Those that are for logs have their numbers from then on."""
    if connection.dialect.name == "postgresql":
        name = zlib.crc32(service.encode("utf-8", "surrogateescape")) - (1 << 31)
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:space, :name)"),
            {"space": _LOCK_SPACE, "name": name},
        )
    now = now_in(connection)
    # `NOT IN`, because PostgreSQL makes a join of `NOT EXISTS`, and of a long table that it has not looked at yet a slow one.
    held = select(OUTBOX.c.key).where(
        OUTBOX.c.service == service,
        OUTBOX.c.key.is_not(None),
        OUTBOX.c.parked_at.is_(None),
        IS_HELD_OR_WAS,
        OUTBOX.c.free_at > now,
    )
    row = OUTBOX.alias("free")
    free = (
        select(row.c.id)
        .where(
            row.c.service == service,
            row.c.parked_at.is_(None),
            row.c.free_at <= now,
            or_(row.c.key.is_(None), row.c.key.not_in(held)),
        )
        .order_by(row.c.id)
        .limit(limit)
    )
    claimed = (
        update(OUTBOX)
        .where(OUTBOX.c.id.in_(free))
        .values(free_at=now + lease, claimed_by=claimed_by)
        .returning(OUTBOX)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(map(_claimed_row, connection.execute(claimed)), key=lambda row: row.id)
    _number(connection, rows, numbers)
    return rows


def _number(connection: Connection, rows: Sequence[ClaimedRow], numbers: RowNumbers) -> None:
    written = []
    for row in rows:
        numbered = numbers.of(row.message, row.key)
        if numbered is not None:
            row.message = numbered
            written.append({"row": row.id, "told": numbered.headers})
    if written:
        told = update(OUTBOX).where(OUTBOX.c.id == bindparam("row"))
        connection.execute(told.values(headers=bindparam("told")), written)


def _claimed_row(row: Any) -> ClaimedRow:
    message = OutboxMessage(
        kind=row.kind,
        source=row.source,
        name=row.name,
        message_id=row.message_id,
        content_type=row.content_type,
        content_encoding=row.content_encoding,
        body=bytes(row.body),
        headers=bytes(row.headers),
        options=bytes(row.options),
    )
    return ClaimedRow(row.id, row.key, row.attempts, message)


def settle(
    connection: Connection,
    claimed_by: str,
    *,
    done: Sequence[int],
    failed: Sequence[tuple[ClaimedRow, PutOff | Park]],
    back: Sequence[int],
) -> None:
    """Write what became of rows.

    Args:
        done: the broker has them. They go, whoever may have claimed them meanwhile.
        failed: put off or parked, unless somebody else has claimed them.
        back: free at once, unless somebody else has claimed them.
    """
    if done:
        connection.execute(delete(OUTBOX).where(OUTBOX.c.id.in_(done)))
    now = now_in(connection)
    for row, fate in failed:
        values: dict[str, Any] = {
            "attempts": OUTBOX.c.attempts + 1,
            "reason": fate.reason,
            "claimed_by": None,
        }
        if isinstance(fate, Park):
            values |= {"parked_at": now, "free_at": 0.0}
            if row.message.kind == CallKind.LOG.value:
                values["headers"] = without_number(row.message).headers
        else:
            values["free_at"] = now + fate.pause
        connection.execute(update(OUTBOX).where(_claimed([row.id], claimed_by)).values(values))
    if back:
        freed = update(OUTBOX).where(_claimed(back, claimed_by))
        connection.execute(freed.values(free_at=0.0, claimed_by=None))


def _claimed(ids: Collection[int], claimed_by: str) -> ColumnElement[bool]:
    return and_(OUTBOX.c.id.in_(ids), OUTBOX.c.claimed_by == claimed_by)


def give_back(connection: Connection, claimed_by: str) -> None:
    """Free all that this instance has claimed."""
    freed = update(OUTBOX).where(OUTBOX.c.claimed_by == claimed_by, OUTBOX.c.parked_at.is_(None))
    connection.execute(freed.values(free_at=0.0, claimed_by=None))


def backlog_of(connection: Connection, service: str) -> Backlog:
    """What there is of a service's rows, each number up to `MAX_COUNTED`."""

    def counted(condition: ColumnElement[bool]) -> Any:
        some = select(OUTBOX.c.id).where(OUTBOX.c.service == service, condition).limit(MAX_COUNTED)
        return select(func.count()).select_from(some.subquery()).scalar_subquery()

    waits = OUTBOX.c.parked_at.is_(None)
    oldest = (
        select(OUTBOX.c.written_at)
        .where(OUTBOX.c.service == service, waits)
        .order_by(OUTBOX.c.id)
        .limit(1)
        .scalar_subquery()
    )
    waiting, parked, written_at, now = connection.execute(
        select(counted(waits), counted(~waits), oldest, now_in(connection))
    ).one()
    return Backlog(waiting, parked, 0.0 if written_at is None else max(now - written_at, 0.0))
