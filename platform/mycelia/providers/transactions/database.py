"""The database that a service's own transactions are in, as the outbox and the inbox reach it beside them.

One engine is asked for small transactions: a synchronous one in threads, an `AsyncEngine` on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.runtime import BoundTo

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Database", "session_within", "settled_url"]

T = TypeVar("T")


DIALECTS = ("postgresql", "sqlite")

_LIBPQ = {"psycopg", "psycopg2"}
# A database that does not answer is found out, wherever it hangs; libpq's words, times in s and ms.
_LIBPQ_PATIENCE = {"connect_timeout": 10, "keepalives_idle": 10, "tcp_user_timeout": 20_000}
_SQLITE_PATIENCE_S = 30.0


class Database:
    """Runs a function of a connection in a transaction of its own.

    Args:
        database: a URL, an `Engine` or an `AsyncEngine`. An engine stays its owner's.
        who: whose it is, as an error begins.

    Raises:
        ConfigError: no such database, or one that this cannot be done in.
    """

    def __init__(self, database: str | Engine | AsyncEngine, who: str) -> None:
        from sqlalchemy import Engine
        from sqlalchemy.ext.asyncio import AsyncEngine

        self._is_ours = isinstance(database, str)
        engine = _engine_for(database, who) if isinstance(database, str) else database
        if not isinstance(engine, Engine | AsyncEngine):
            raise ConfigError(
                f"{who}: {database!r:.80} is no database. Give a URL, an Engine or an AsyncEngine."
            )
        self.engine: Engine | AsyncEngine = engine
        self.dialect: str = engine.dialect.name
        if self.dialect not in DIALECTS:
            raise ConfigError(
                f"{who}: databases of {self.dialect} are not supported; these are: {', '.join(DIALECTS)}."
            )
        _refuse_memory(engine.url, who)
        # The clauses of `claims` see what others have committed meanwhile. SQLite has one writer at a time.
        self._options = (
            {"isolation_level": "READ COMMITTED"} if self.dialect == "postgresql" else {}
        )

    @property
    def shown(self) -> str:
        """Its URL, without the password."""
        return self.engine.url.render_as_string(hide_password=True)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, in a transaction that is committed when it returns and rolled back when it raises.

        Raises:
            SQLAlchemyError, OSError: the database is away, or refuses.
        """
        from sqlalchemy.ext.asyncio import AsyncEngine

        if not isinstance(self.engine, AsyncEngine):
            return await asyncio.to_thread(self._run, work)
        async with self.engine.connect() as connection:
            if self._options:
                connection = await connection.execution_options(**self._options)
            async with connection.begin():
                return await connection.run_sync(work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        engine: Any = self.engine
        with engine.connect() as connection:
            if self._options:
                connection.execution_options(**self._options)
            with connection.begin():
                return work(connection)

    def refuse_another(self, bind: Any, who: str) -> None:
        """Raise unless a session's `bind` can be this database: rows in another would never leave.

        Raises:
            ConfigError: another kind of database, or another SQLite file.
        """
        engine = getattr(bind, "engine", bind)
        url, own = engine.url, self.engine.url
        if engine.dialect.name == self.dialect and (
            self.dialect != "sqlite" or url.database == own.database
        ):
            return
        raise ConfigError(
            f"{who}: the session is of {url.render_as_string(hide_password=True)}, and the rows that are relayed are those in "
            f"{self.shown}. Give both the same database."
        )

    async def aclose(self) -> None:
        """Close the connections, if they are nobody else's."""
        from sqlalchemy.ext.asyncio import AsyncEngine

        if not self._is_ours:
            return
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            await asyncio.to_thread(self.engine.dispose)


def _engine_for(url: str, who: str) -> Engine | AsyncEngine:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.ext.asyncio import create_async_engine

    try:
        parsed = make_url(url)
        dialect = parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as exc:
        # The text is not shown: it may hold a password.
        raise ConfigError(
            f"{who}: no URL that SQLAlchemy can read: {type(exc).__name__}."
        ) from None
    _refuse_memory(parsed, who)
    more: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 2}
    if parsed.get_backend_name() == "sqlite":
        more = {"connect_args": {"timeout": _SQLITE_PATIENCE_S}}
    elif parsed.get_driver_name() in _LIBPQ:
        more["connect_args"] = _LIBPQ_PATIENCE
    try:
        if dialect.is_async:
            return create_async_engine(parsed, **more)
        return create_engine(parsed, **more)
    except ImportError as exc:
        raise ConfigError(f"{who}: the database's driver is missing: {exc}.") from exc


def _refuse_memory(url: URL, who: str) -> None:
    if url.get_backend_name() != "sqlite":
        return
    if url.database in (None, "", ":memory:") or url.query.get("mode") == "memory":
        raise ConfigError(
            f"{who}: a SQLite database in memory is another one for each connection. Give it a file."
        )


def settled_url(database: Any, container: BoundTo, who: str) -> Any:
    """The database that is meant: the declaration's, else the setting's, else nameko-sqlalchemy's for this service.

    Raises:
        ConfigError: nobody says.
    """
    if database is not None:
        return database
    configured = container.settings.mycelia.database
    if configured is not None:
        return configured
    uris = container.config.get("DB_URIS")
    if isinstance(uris, Mapping):
        prefix = f"{container.service_name}:"
        own = [(key, uri) for key, uri in uris.items() if str(key).startswith(prefix)]
        if len(own) == 1:
            ((key, uri),) = own
            base = str(key).removeprefix(prefix)
            return str(uri).format(service_name=container.service_name, declarative_base_name=base)
    raise ConfigError(
        f"{who}: which database? Give its URL or engine, or set mycelia.database to its URL."
    )


def session_within(session: Any) -> Any:
    """The `Session` of what a worker has: itself, an `AsyncSession`, or one of the `scoped_session`s.

    Raises:
        RuntimeStateError: it is none of them.
    """
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(session, scoped_session | async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return session.sync_session
    if isinstance(session, Session):
        return session
    raise RuntimeStateError(
        f"{session!r:.80} is no session of SQLAlchemy: give the Session or AsyncSession of the transaction."
    )
