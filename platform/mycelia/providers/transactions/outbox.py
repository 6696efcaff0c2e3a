"""`Outbox`: events and messages that leave if, and only if, the database transaction of the user commits.

outbox = Outbox("postgresql+psycopg://…")
...
with Session(engine) as session, session.begin():
    session.add(Order(…))
    self.outbox(session).emit("order_placed", {…})
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from mycelia.call import (
    DEFAULT_PUBLISH_OPTIONS,
    CallKind,
    PublishArguments,
    PublishOptions,
    with_options,
)
from mycelia.clients.outlets import Outlets
from mycelia.clients.publishing import Outlet
from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.logs import Log
from mycelia.logs.record import RecordHeaders, RecordKey
from mycelia.logs.writer import UNSET
from mycelia.policies.retry import DEFAULT_RETRY, Retry
from mycelia.providers.transactions.database import Database, session_within, settled_url
from mycelia.providers.transactions.log_outlet import LogOutlet, record_row
from mycelia.providers.transactions.outbox_message import OutboxMessage
from mycelia.providers.transactions.schema import Metadata, prepare_tables
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.topology import event_exchange
from mycelia.wire import new_uuid

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    from mycelia.providers.transactions.relay import OutboxRelay, OutboxStatistics

    SessionLike = (
        Session | AsyncSession | scoped_session[Session] | async_scoped_session[AsyncSession]
    )

__all__ = ["Outbox", "OutboxOfService", "OutboxOfSession"]

T = TypeVar("T")

_WRITTEN = "mycelia.outbox"
"""Of a session's `info`: the outboxes whose relays are woken when it commits."""


class OutboxOfSession:
    """Writes messages with the transaction of one session. None of its methods waits: the rows go with the session's next flush.

    What is rolled back, with the transaction or a savepoint, is never published.
    """

    __slots__ = ("_outbox", "_session")

    def __init__(self, outbox: OutboxOfService, session: Session) -> None:
        self._outbox = outbox
        self._session = session

    def emit(
        self,
        event_type: str,
        event_data: Any = None,
        *,
        key: object = None,
        **options: Unpack[PublishArguments],
    ) -> str:
        """Publish an event of this service when the transaction has committed; give its `message_id`.

        Args:
            key: events of one key are published one after the other, in the order in which they were written; see
                docs/transactions.md for what that is worth between transactions. Its text is the key; `None` has no order.
            options: as in `PublishOptions`. `timeout` and `use_confirms` mean nothing: it waits for the broker as long as it takes.

        Raises:
            UnserializableValueError: the payload cannot be carried.
            ProtocolError: a header that AMQP cannot carry.
        """
        outbox = self._outbox
        return outbox.write(
            self._session, CallKind.EVENT, outbox.service, event_type, event_data, key, options
        )

    def publish(
        self,
        payload: Any,
        *,
        exchange: str = "",
        routing_key: str = "",
        key: object = None,
        **options: Unpack[PublishArguments],
    ) -> str:
        """Publish a message to an exchange, or to a queue by its name, when the transaction has committed; as `emit()`.

        The exchange is not declared: if it is not there when the message leaves, the row is parked.
        """
        return self._outbox.write(
            self._session, CallKind.MESSAGE, exchange, routing_key, payload, key, options
        )

    def append(
        self,
        log: Log[T],
        value: T,
        *,
        key: RecordKey | Any = UNSET,
        time: Any = None,
        headers: RecordHeaders = None,
    ) -> None:
        """Append a record to a log when the transaction has committed. Readers get it once, however often it is appended.

        Records of one key are in the log in the order in which their rows were written, as those of one key of `emit()` leave.

        Args:
            log: one of the outbox's `logs=`.
            key, time, headers: as `LogWriter.append()`; without a time, and where the log takes none from the value, the time is now, not when it leaves.

        Raises:
            ConfigError: the outbox does not know the log.
            UnserializableValueError, ContractError: the value, or a header, or its key or time, is not what the log is of.
        """
        self._outbox.append(self._session, log, value, key, time, headers)


class OutboxOfService:
    """What is injected: call it with the session of a transaction."""

    __slots__ = ("_database", "_logs", "_options", "_outlets", "_relay", "_who", "service")

    def __init__(
        self,
        service: str,
        outlets: dict[CallKind, Outlet],
        logs: LogOutlet,
        database: Database,
        relay: OutboxRelay,
        options: PublishOptions,
        who: str,
    ) -> None:
        self.service = service
        self._outlets = outlets
        self._logs = logs
        self._database = database
        self._relay = relay
        self._options = options
        self._who = who

    def __call__(self, session: SessionLike) -> OutboxOfSession:
        """Messages with the transaction of `session`: a `Session`, an `AsyncSession` or a `scoped_session`.

        Raises:
            ConfigError: the session is of another database than the relay.
        """
        inner = session_within(session)
        self._follow(inner)
        return OutboxOfSession(self, inner)

    def write(
        self,
        session: Session,
        kind: CallKind,
        source: str,
        name: str,
        payload: Any,
        key: object,
        given: PublishArguments,
    ) -> str:
        """Add a row to the session."""
        chosen = with_options(self._options, given, f"{self._who}: {kind.value} {name!r}")
        outlet = self._outlets[kind]
        now = time.time()
        message = OutboxMessage.made(
            kind,
            source,
            name,
            outlet.written(payload, chosen),
            outlet.headers_of(chosen),
            chosen,
            message_id=new_uuid(),
            now=now,
        )
        self._add(session, message, None if key is None else str(key), now)
        return message.message_id

    def append(
        self,
        session: Session,
        log: Log[T],
        value: T,
        key: RecordKey | Any,
        time_: Any,
        headers: RecordHeaders,
    ) -> None:
        """Add a row of a record to the session."""
        self._logs.check(log)
        message, line = record_row(log, value, key, time_, headers)
        self._add(session, message, line, time.time())

    def _add(self, session: Session, message: OutboxMessage, key: str | None, now: float) -> None:
        from mycelia.providers.transactions.tables import OutboxRow

        session.add(OutboxRow(self.service, message, key, now))
        session.info[_WRITTEN][self] = True

    def _follow(self, session: Session) -> None:
        """Hear of the session's commits from now on."""
        from sqlalchemy import event

        from mycelia.providers.transactions.tables import OutboxRow

        followers = session.info.get(_WRITTEN)
        if followers is not None and self in followers:
            return
        self._database.refuse_another(session.get_bind(OutboxRow), self._who)
        if followers is None:
            followers = session.info[_WRITTEN] = {}
            event.listen(session, "after_commit", _wake_followers)
        followers[self] = False

    def wake(self) -> None:
        """Have the relay look."""
        self._relay.wake()


def _wake_followers(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint was released: nothing is committed yet
        return
    followers: dict[OutboxOfService, bool] = session.info[_WRITTEN]
    for outbox, has_written in followers.items():
        if has_written:
            followers[outbox] = False
            outbox.wake()


class Outbox(SharedDependency):
    """Injects a function of a session, whose `emit()` and `publish()` are part of that session's transaction.

    They write rows of the table `mycelia_outbox`. A relay in each instance of the service publishes what has been committed, at
    once, with confirms: at least once, with the same `message_id` each time, so that an `Inbox` drops the repetitions.

    Args:
        database: its URL, `Engine` or `AsyncEngine`: the one that the sessions are of. By default the setting `mycelia.database`,
            or what nameko-sqlalchemy has in `DB_URIS` for this service. PostgreSQL, or SQLite in a file.
        create_tables: whether to create the tables at start where they are missing. Else a migration does (`Outbox.metadata`).
        batch: rows that an instance claims at once, at most.
        poll: how often to look for rows that nobody announced: of other processes, of one that died, those that are tried again.
        lease: for how long a claim holds. So much later another instance publishes what one that died had claimed.
        logs: to which `append()` may append. They are declared at start, and the rows of one that is not named any more are parked.
        when_refused: how often a message that the broker refuses, or a middleware, is tried before its row is parked.
        options: as in `PublishOptions`, for every message.
    """

    needs_broker = True
    outlets = Outlets()
    container: Container
    metadata = Metadata()
    """The `MetaData` with the tables of outbox and inbox, for `create_all()` and for migrations."""

    def __init__(
        self,
        database: str | Engine | AsyncEngine | None = None,
        *,
        create_tables: bool = False,
        batch: int = 100,
        poll: Duration = "1s",
        lease: Duration = "30s",
        logs: Sequence[Log[Any]] = (),
        when_refused: Retry = DEFAULT_RETRY,
        **options: Unpack[PublishArguments],
    ) -> None:
        if type(batch) is not int or not 1 <= batch <= 10_000:
            raise ConfigError(f"Outbox(batch={batch!r}): expected a whole number from 1 to 10000.")
        if not all(isinstance(one, Log) for one in logs):
            raise ConfigError(f"Outbox(logs={logs!r:.80}): expected a list of Logs.")
        self._logs = list(logs)
        self._appends: LogOutlet | None = None
        self._given = database
        self._create_tables = create_tables
        self._batch = batch
        self._poll = seconds_of(poll, "Outbox(poll=)")
        self._lease = seconds_of(lease, "Outbox(lease=)")
        if self._lease < 2 or self._poll <= 0:
            raise ConfigError(
                f"Outbox(poll={poll!r}, lease={lease!r}): poll must be more than 0, and lease 2 s or more."
            )
        self._retry = when_refused
        self._options = with_options(DEFAULT_PUBLISH_OPTIONS, options, "Outbox()")
        self._database: Database | None = None
        self._relay: OutboxRelay | None = None

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> OutboxOfService: ...

    async def setup(self) -> None:
        container = self.container
        who = f"{container.service_cls.__qualname__}.{self.attr_name}: Outbox()"
        require_extra("sql", who)
        if self._options.serializer is not None:  # a name that does not exist stops the start
            container.host.serializers.by_name(self._options.serializer)
        database = Database(settled_url(self._given, container, who), who)
        await prepare_tables(database, who, create=self._create_tables)
        if container.config.get("DECLARE_EVENT_EXCHANGES") is not False:
            await container.host.link.declare(
                event_exchange(container.service_name, container.config)
            )
        self._database = database
        self._appends = LogOutlet(self._logs, f"{container.service_name}.{self.attr_name}")
        await self._appends.open(
            container.host.link,
            min(container.settings.mycelia.publish_timeout, self._lease),
            container.middleware_for,
        )
        self._relay = self._made_relay(database, self._appends)

    def _made_relay(self, database: Database, appends: LogOutlet) -> OutboxRelay:
        from mycelia.providers.transactions.relay import OutboxRelay, RelayOptions

        container = self.container
        return OutboxRelay(
            container.service_name,
            database,
            container.host.link,
            {**self._by_kind(), CallKind.LOG: appends},
            RelayOptions(batch=self._batch, poll=self._poll, lease=self._lease, retry=self._retry),
            lambda: container.settings.mycelia.publish_timeout,
        )

    def _by_kind(self) -> dict[CallKind, Outlet]:
        return {CallKind.EVENT: self.outlets.events, CallKind.MESSAGE: self.outlets.messages}

    def start(self) -> None:
        assert self._relay is not None
        self._relay.start()

    async def stop(self) -> None:
        if self._relay is not None:
            await self._relay.stop()
        if self._appends is not None:
            await self._appends.aclose(
                1.0
            )  # of what waits the relay has not heard: its rows are there
        if self._database is not None:
            await self._database.aclose()

    async def kill(self) -> None:
        if self._relay is not None:
            await self._relay.kill()
        if self._appends is not None:
            await self._appends.aclose(0.0)

    def statistics(self) -> OutboxStatistics | None:
        return None if self._relay is None else self._relay.statistics()

    def shared_dependency(self, is_async: bool) -> OutboxOfService:
        """One for all workers; what differs between them is the session."""
        assert self._database is not None
        assert self._relay is not None
        assert self._appends is not None
        return OutboxOfService(
            self.container.service_name,
            self._by_kind(),
            self._appends,
            self._database,
            self._relay,
            self._options,
            f"{self.container.service_name}.{self.attr_name}",
        )
