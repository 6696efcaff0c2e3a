"""`Inbox`: a handler's database transaction is run once for each message, however often it is delivered.

inbox = Inbox("postgresql+psycopg://…")
...
with Session(engine) as session, session.begin():
    if self.inbox.is_first(session):
        session.add(…)
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from mycelia.call import get_current_call
from mycelia.clients.two_ways import Injects, TwoWays
from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, ContractError, RuntimeStateError, text_of
from mycelia.extras import require_extra
from mycelia.log_event import event
from mycelia.providers.transactions.database import Database, session_within, settled_url
from mycelia.providers.transactions.schema import Metadata, prepare_tables

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Executable
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

__all__ = ["BlockingInboxCheck", "Inbox", "InboxCheck", "InboxStatistics"]

log = logging.getLogger("mycelia.inbox")

_TIDY_EVERY_S = 600.0
_TIDY_BATCH = 1000


class InboxStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What an inbox has seen here."""

    first: int
    """Messages whose transaction was to be run; those that were rolled back later are among them."""
    repeated: int
    """Messages whose transaction had been run before."""
    expired: int
    """Rows that were deleted because they were old."""


class _Tally:
    def __init__(self) -> None:
        self.first = 0
        self.repeated = 0
        self.expired = 0


class InboxCheck:
    """What is injected into `async def` methods: asks in the transaction of an `AsyncSession`."""

    __slots__ = ("_service", "_tally")

    def __init__(self, service: str, tally: _Tally) -> None:
        self._service = service
        self._tally = tally

    async def is_first(
        self,
        session: AsyncSession | async_scoped_session[AsyncSession],
        *,
        message_id: str | None = None,
    ) -> bool:
        """Whether the transaction of this message is to be run; then it counts as run if it commits.

        Where another delivery of the same message is being handled now, this waits for the end of its transaction.

        Args:
            message_id: what tells a repetition, where that is not the message's own `message_id`.

        Raises:
            ContractError: the message has no `message_id`, and none is given.
            RuntimeStateError: a `Session` that blocks, which belongs into a `def` method.
        """
        from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

        if not isinstance(session, AsyncSession | async_scoped_session):
            raise RuntimeStateError(
                "Inbox: this session would block the event loop, perhaps for as long as another transaction lasts. "
                "Use an AsyncSession, or make the method a `def`."
            )
        handler, its_id = _identity(self._service, message_id)
        inner = session_within(session)
        result = await session.execute(_insertion(inner, handler, its_id))
        return _counted(result.first() is not None, self._tally)


class BlockingInboxCheck:
    """What is injected into `def` methods: asks in the transaction of a `Session`."""

    __slots__ = ("_service", "_tally")

    def __init__(self, service: str, tally: _Tally) -> None:
        self._service = service
        self._tally = tally

    def is_first(
        self, session: Session | scoped_session[Any], *, message_id: str | None = None
    ) -> bool:
        """As `InboxCheck.is_first()`, of a `Session`; it blocks."""
        from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

        if isinstance(session, AsyncSession | async_scoped_session):
            raise RuntimeStateError(
                "Inbox: an AsyncSession cannot be used in a `def` method. Use a Session, or make the method `async def`."
            )
        handler, its_id = _identity(self._service, message_id)
        inner = session_within(session)
        result = inner.execute(_insertion(inner, handler, its_id))
        return _counted(result.first() is not None, self._tally)


def _identity(service: str, message_id: str | None) -> tuple[str, str]:
    """The handler, and what its message is known by."""
    call = get_current_call()
    handler = service if call is None else call.target.name
    if message_id is not None:
        return handler, str(message_id)
    message = None if call is None else call.message
    found = None if message is None else message.properties.message_id
    if not found:
        what = "has no message_id" if message is not None else "is no single message"
        raise ContractError(
            f"{handler}: what is handled here {what}, so nothing tells a repetition of it. Mycelia's publishers give one, stock "
            "Nameko's do not. Give what tells it yourself: is_first(session, message_id=…)."
        )
    return handler, found


def _insertion(session: Session, handler: str, message_id: str) -> Executable:
    """The statement that gives a row where it is the first; it waits for whoever is writing the same row."""
    from sqlalchemy.dialects import postgresql, sqlite

    from mycelia.providers.transactions.tables import INBOX

    dialect = session.get_bind(clause=INBOX).dialect.name
    values = {"handler": handler, "message_id": message_id, "handled_at": time.time()}
    if dialect == "postgresql":
        into_postgres = postgresql.insert(INBOX).values(values).on_conflict_do_nothing()
        return into_postgres.returning(INBOX.c.message_id)
    if dialect == "sqlite":
        into_sqlite = sqlite.insert(INBOX).values(values).on_conflict_do_nothing()
        return into_sqlite.returning(INBOX.c.message_id)
    raise ConfigError(f"Inbox: sessions of {dialect} are not supported; postgresql and sqlite are.")


def _counted(is_first: bool, tally: _Tally) -> bool:
    # Workers in threads may count at the same moment; one lost in a thousand harms no figure.
    if is_first:
        tally.first += 1
    else:
        tally.repeated += 1
    return is_first


class Inbox(TwoWays):
    """Injects `is_first(session)`: whether the current message's transaction is to be run, for each handler by itself.

    It writes a row of the table `mycelia_inbox` in the transaction of the session. If that commits, every further delivery of the
    message finds it; if it is rolled back, the next delivery is the first. `await`ed in `async def` methods with an `AsyncSession`;
    in `def` methods it blocks.

    Args:
        database: as in `Outbox`.
        create_tables: as in `Outbox`.
        keep: for how long a message is known. Longer than anything can come again: retries, dead letters that are redriven.
    """

    metadata = Metadata()
    """The `MetaData` with the tables of outbox and inbox, for `create_all()` and for migrations."""

    def __init__(
        self,
        database: str | Engine | AsyncEngine | None = None,
        *,
        create_tables: bool = False,
        keep: Duration = "30d",
    ) -> None:
        self._given = database
        self._create_tables = create_tables
        self._keep = seconds_of(keep, "Inbox(keep=)")
        self._tally = _Tally()
        self._database: Database | None = None
        self._tidying: asyncio.Task[None] | None = None

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> InboxCheck: ...

    @property
    def blocking(self) -> Injects[BlockingInboxCheck]:
        """The same for `def` methods, as type checkers see it."""
        blocking: Injects[BlockingInboxCheck] = self.made_blocking()
        return blocking

    async def setup(self) -> None:
        container = self.container
        who = f"{container.service_cls.__qualname__}.{self.attr_name}: Inbox()"
        require_extra("sql", who)
        self._database = Database(settled_url(self._given, container, who), who)
        await prepare_tables(self._database, who, create=self._create_tables)

    def start(self) -> None:
        self._tidying = asyncio.get_running_loop().create_task(
            self._tidy(), name=f"mycelia:inbox:{self.container.service_name}"
        )

    async def stop(self) -> None:
        await self.kill()
        if self._database is not None:
            await self._database.aclose()

    async def kill(self) -> None:
        task, self._tidying = self._tidying, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def statistics(self) -> InboxStatistics:
        tally = self._tally
        return InboxStatistics(first=tally.first, repeated=tally.repeated, expired=tally.expired)

    def awaited(self) -> InboxCheck:
        return InboxCheck(self.container.service_name, self._tally)

    def waiting(self, loop: asyncio.AbstractEventLoop) -> BlockingInboxCheck:
        return BlockingInboxCheck(self.container.service_name, self._tally)

    # --- what is old -----------------------------------------------------------------------------

    async def _tidy(self) -> None:
        """Delete what is older than `keep`, now and then; a little at a time, so that nobody waits for it."""
        from sqlalchemy.exc import SQLAlchemyError

        random = Random()
        # Not all instances at once, and seldom enough to cost nothing.
        every = min(_TIDY_EVERY_S, max(self._keep / 2, 1.0))
        while True:
            await asyncio.sleep(every * random.uniform(0.5, 1.0))
            try:
                await self._delete_old()
            except (SQLAlchemyError, OSError) as exc:
                log.warning(
                    event(
                        "inbox_not_tidied",
                        service=self.container.service_name,
                        error=text_of(exc).partition("\n")[0],
                    )
                )

    async def _delete_old(self) -> None:
        assert self._database is not None
        deleted = _TIDY_BATCH
        while deleted == _TIDY_BATCH:
            before = time.time() - self._keep
            deleted = await self._database.run(
                partial(_delete_some, service=self.container.service_name, before=before)
            )
            self._tally.expired += deleted


def _delete_some(connection: Connection, service: str, before: float) -> int:
    from sqlalchemy import delete, or_, select, tuple_

    from mycelia.providers.transactions.tables import INBOX

    old = select(INBOX.c.handler, INBOX.c.message_id).where(
        INBOX.c.handled_at < before,
        or_(INBOX.c.handler == service, INBOX.c.handler.startswith(f"{service}.", autoescape=True)),
    )
    rows = connection.execute(old.limit(_TIDY_BATCH)).all()
    if rows:
        keys = [(row.handler, row.message_id) for row in rows]
        found = tuple_(INBOX.c.handler, INBOX.c.message_id).in_(keys)
        connection.execute(delete(INBOX).where(found))
    return len(rows)
