"""What partitions of flows have come to, in PostgreSQL: state, positions, outbox, and whose it is. What `StateFile` is on a disk, for several machines.

All flows of a database share a schema, `mycelia_flows`:

| table | one row for each |
|---|---|
| `format` | (the only one) version of these tables |
| `partition` | partition of a stage: its owner's epoch, and the checkpoint |
| `state` | key of a step: its bytes |
| `outbox` | message that may not have been published |

**The row of a partition is its fence.** A commit begins by writing the checkpoint where the epoch is its own, which locks the row; so of two owners one
waits for the other, and the former finds no row of its epoch. A transaction that its client leaves open, because the process was stopped in the
middle of it, is ended by the server after `IDLE_TIMEOUT`, so that it does not hold up the next owner for ever.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from mycelia.amqp import Message
from mycelia.errors import (
    ConfigError,
    FlowError,
    LeaseLost,
    StateIncompatible,
    StateUnavailable,
    text_of,
)
from mycelia.extras import require_extra
from mycelia.flow.outbox_numbers import OutboxNumbers
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.sinks.sql_table import is_refusal
from mycelia.flow.state import StoreReader
from mycelia.flow.state_file import FlowCheckpoint, StateCommit, StateFile

if TYPE_CHECKING:
    import psycopg

__all__ = ["DatabaseState", "RowsFailed", "StateDatabase"]

T = TypeVar("T")

FORMAT: Final = 1

MAX_CONNECTIONS: Final = 4
"""Of one flow in one process: as many as it has threads."""

CONNECT_TIMEOUT: Final = 5
LOCK_TIMEOUT: Final = 10.0
"""Seconds that a lock is waited for; longer than a transaction that its client has left may hold one."""

IDLE_TIMEOUT: Final = 5.0
"""Seconds after which the server ends a transaction whose client says nothing. Between two statements of ours lie milliseconds."""

STATEMENT_TIMEOUT: Final = 60.0

_KEYS_AT_ONCE: Final = 5000

_SETTINGS: Final = {
    "application_name": "mycelia",
    "connect_timeout": str(CONNECT_TIMEOUT),
    # A server whose machine is gone says nothing: the kernel asks, and gives up after a quarter of a minute.
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}

_TABLES: Final = """
CREATE SCHEMA IF NOT EXISTS mycelia_flows;
CREATE TABLE mycelia_flows.format (one int PRIMARY KEY CHECK (one = 1), version int NOT NULL);
CREATE TABLE mycelia_flows.partition (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    flow text NOT NULL, source text NOT NULL, partition int NOT NULL,
    epoch bigint NOT NULL, checkpoint bytea NOT NULL,
    UNIQUE (flow, source, partition)
);
CREATE TABLE mycelia_flows.state (
    partition_id bigint NOT NULL, space text NOT NULL, key bytea NOT NULL, value bytea NOT NULL, PRIMARY KEY (partition_id, space, key)
);
CREATE TABLE mycelia_flows.outbox (
    partition_id bigint NOT NULL, number bigint NOT NULL, message bytea NOT NULL, PRIMARY KEY (partition_id, number)
);
"""

_HAS_TABLES: Final = (
    # Not by `to_regclass()`: what that answers may be older than the lock.
    "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'mycelia_flows' AND tablename = 'format'"
)

_LOCK: Final = 0x4D79_6365_6C69_61
"""Of PostgreSQL's advisory locks: held while the tables are made. Arbitrary, and nobody else's: "Mycelia"."""

_encode = msgspec.msgpack.Encoder().encode


class RowsFailed(FlowError):
    """Rows that are written in a commit's transaction, and have kept it from being one. The database's error is `__cause__`."""

    def __init__(self, what: str, error: object) -> None:
        told = text_of(error) if isinstance(error, BaseException) else str(error)
        super().__init__(
            f"{what}: its rows could not be written with the checkpoint, which was not either: {' '.join(told.split())}"
        )


class StateDatabase:
    """A `StateHome` in a PostgreSQL.

    Args:
        url: `postgresql://user:password@host:port/database`, with libpq's parameters, if any.

    Raises:
        ConfigError: psycopg is not installed, or the URL cannot be read.
    """

    is_shared = True

    def __init__(self, url: str) -> None:
        require_extra("postgresql", "mycelia.flows.state")
        import psycopg

        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
            for port in str(given.get("port") or 5432).split(","):
                int(port)
        except (psycopg.ProgrammingError, ValueError):
            # Its text may have the password in it.
            raise ConfigError(
                "mycelia.flows.state: this cannot be read as a URL of PostgreSQL. Write postgresql://user:password@host:port/database, with "
                'what is special in user and password escaped: "%40" for "@", "%2F" for "/".'
            ) from None
        self._conninfo = psycopg.conninfo.make_conninfo(
            "",
            **{
                **_SETTINGS,
                **given,
                "options": f"{given.get('options', '')} -c lock_timeout={LOCK_TIMEOUT * 1000:.0f}"
                f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT * 1000:.0f}"
                f" -c statement_timeout={STATEMENT_TIMEOUT * 1000:.0f} -c client_min_messages=warning".strip(),
            },
        )
        self._given = _identity(given)
        self._host = f"{given.get('host') or 'localhost'}:{given.get('port') or 5432}"
        self._database = given.get("dbname") or given.get("user") or "postgres"
        self.where = f"postgresql://{self._host}/{self._database}"
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._idle: list[psycopg.Connection[Any]] = []
        self._is_closed = False

    def is_at(self, url: str) -> bool:
        """Whether a URL names this database, for the same user and with the same parameters. Passwords do not count; nor is anything looked up, so
        that another name of the same host is another host."""
        import psycopg

        try:
            return _identity(psycopg.conninfo.conninfo_to_dict(url)) == self._given
        except psycopg.ProgrammingError:
            return False

    # --- connections -----------------------------------------------------------------------------

    @contextmanager
    def transaction(self, what: str) -> Iterator[psycopg.Connection[Any]]:
        """`connection()`, in a transaction."""
        with self.connection(what) as db, db.transaction():
            yield db

    @contextmanager
    def connection(self, what: str) -> Iterator[psycopg.Connection[Any]]:
        """One of at most `MAX_CONNECTIONS`. What PostgreSQL says against what is done is raised as `StateUnavailable`.

        Args:
            what: whose it is, for error texts.
        """
        with self._told(what):
            if not self._places.acquire(timeout=STATEMENT_TIMEOUT):
                raise StateUnavailable(
                    what, self.where, f"all {MAX_CONNECTIONS} connections are in use"
                )
            try:
                db = self._idle_one() or self._connected()
                try:
                    yield db
                finally:
                    self._put_back(db)
            finally:
                self._places.release()

    def _put_back(self, db: psycopg.Connection[Any]) -> None:
        from psycopg.pq import TransactionStatus

        if db.closed:  # the others are of the same server, which is gone
            self._close_idle()
        elif self._is_closed or db.info.transaction_status != TransactionStatus.IDLE:
            db.close()
        else:
            self._idle.append(db)

    def _idle_one(self) -> psycopg.Connection[Any] | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connected(self) -> psycopg.Connection[Any]:
        import psycopg

        return psycopg.connect(self._conninfo, autocommit=True)

    def _close_idle(self) -> None:
        while (one := self._idle_one()) is not None:
            one.close()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """PostgreSQL's errors as ours, with host and database and what to do."""
        import psycopg

        try:
            yield
        except psycopg.Error as exc:
            text = " ".join(text_of(exc).split())
            raise StateUnavailable(
                what, self.where, f"{text.rstrip('.')}. {self._hint(exc, text)}"
            ) from exc

    def _hint(self, error: psycopg.Error, text: str) -> str:
        import psycopg

        of = psycopg.errors
        if isinstance(error, of.LockNotAvailable):
            return "Another session holds the partition's lock: end it (pg_stat_activity), or wait"
        if isinstance(error, of.ReadOnlySqlTransaction):
            return f"{self._host} takes no writes: name the primary in mycelia.flows.state"
        if isinstance(error, of.DiskFull):
            return f"The disk of {self._host} is full: make room"
        if isinstance(error, of.InsufficientPrivilege):
            return f'Let the user of mycelia.flows.state write there: GRANT CREATE ON DATABASE "{self._database}", or the tables of mycelia_flows'
        if isinstance(error, of.UndefinedTable):
            return "The tables of mycelia_flows are gone: bring them back from a backup, or restart to begin anew"
        if "password authentication failed" in text or "no pg_hba.conf entry" in text:
            return "See the user and the password in mycelia.flows.state, and pg_hba.conf"
        if "does not exist" in text and error.sqlstate is None:
            return f'Create it, or see mycelia.flows.state: the database is "{self._database}"'
        if isinstance(error, psycopg.OperationalError):
            return f"See that PostgreSQL runs at {self._host} and can be reached from here; it is tried again"
        return "See what PostgreSQL says of it in its log"

    def close(self) -> None:
        self._is_closed = True
        self._close_idle()

    # --- a home ----------------------------------------------------------------------------------

    def prepare(self, what: str, group: str, sources: Sequence[str]) -> None:
        try:
            with self.transaction(what) as db:
                self._make_tables(db, what)
                rows = db.execute(
                    "SELECT DISTINCT source FROM mycelia_flows.partition WHERE flow = %s", [group]
                ).fetchall()
        except StateUnavailable as exc:
            if _may_pass(exc.__cause__):
                raise
            raise ConfigError(f"{exc}") from exc
        if gone := sorted({source for (source,) in rows} - set(sources)):
            raise ConfigError(
                f"{what}: in {self.where} is state of this flow in {', '.join(gone)}, and as it is described now it has only "
                f"{', '.join(sorted(sources))}. Its open windows would be lost in silence: describe it as it was, let it begin anew with another "
                "group=, or delete that state."
            )

    def _make_tables(self, db: psycopg.Connection[Any], what: str) -> None:
        """Where they are missing; one process at a time."""
        if not db.execute(_HAS_TABLES).fetchone():
            db.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            if not db.execute(_HAS_TABLES).fetchone():
                db.execute(_TABLES)
                db.execute("INSERT INTO mycelia_flows.format VALUES (1, %s)", [FORMAT])
        (version,) = _one(db.execute("SELECT version FROM mycelia_flows.format"))
        if version > FORMAT:
            raise StateIncompatible(
                f"{what}: the tables in {self.where} have format {version}, and this version of Mycelia knows {FORMAT}. "
                "Use the version that wrote them, or a newer one."
            )

    def open(self, place: StatePlace) -> DatabaseState:
        return DatabaseState(self, place)

    @contextmanager
    def reading(self, place: StatePlace) -> Iterator[StoreReader]:
        with self.transaction(str(place)) as db:
            # All answers are of one commit.
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = db.execute(
                "SELECT id FROM mycelia_flows.partition WHERE flow = %s AND source = %s AND partition = %s",
                [place.group, place.source, place.partition],
            ).fetchone()
            yield _Rows(db, -1 if row is None else row[0])

    def checkpoint(self, place: StatePlace) -> FlowCheckpoint | None:
        with self.transaction(str(place)) as db:
            if not db.execute(_HAS_TABLES).fetchone():
                return None
            row = db.execute(
                "SELECT checkpoint FROM mycelia_flows.partition WHERE flow = %s AND source = %s AND partition = %s",
                [place.group, place.source, place.partition],
                binary=True,
            ).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=FlowCheckpoint)

    def flows(self) -> list[str]:
        with self.transaction("the flows") as db:
            if not db.execute(_HAS_TABLES).fetchone():
                return []
            rows = db.execute("SELECT DISTINCT flow FROM mycelia_flows.partition ORDER BY 1")
            return [flow for (flow,) in rows.fetchall()]

    def kept(self, group: str) -> list[tuple[str, int]]:
        with self.transaction(f'flow "{group}"') as db:
            if not db.execute(_HAS_TABLES).fetchone():
                return []
            return db.execute(
                "SELECT source, partition FROM mycelia_flows.partition WHERE flow = %s ORDER BY 1, 2",
                [group],
            ).fetchall()

    def copy(self, place: StatePlace, to: Path) -> None:
        with self.transaction(str(place)) as db:
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            number, body = _one(
                db.execute(
                    "SELECT id, checkpoint FROM mycelia_flows.partition WHERE flow = %s AND source = %s AND partition = %s",
                    [place.group, place.source, place.partition],
                    binary=True,
                )
            )
            state, outbox = (
                _stream(db, f"{query} WHERE partition_id = %s", number)
                for query in (
                    "SELECT space, key, value FROM mycelia_flows.state",
                    "SELECT number, message FROM mycelia_flows.outbox",
                )
            )
            with closing(StateFile(to, str(place))) as copy:
                checkpoint = msgspec.msgpack.decode(body, type=FlowCheckpoint)
                copy.begin_anew(checkpoint, state, outbox)
                copy.leave_one_file()

    def size_bytes(self, place: StatePlace) -> int | None:
        return None


class _Rows:
    """What the engine reads, over a connection."""

    def __init__(self, db: psycopg.Connection[Any], number: int) -> None:
        self._db = db
        self._number = number

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        for at in range(0, len(keys), _KEYS_AT_ONCE):
            some = list(keys[at : at + _KEYS_AT_ONCE])
            rows = self._db.execute(
                "SELECT key, value FROM mycelia_flows.state WHERE partition_id = %s AND space = %s AND key = ANY(%b)",
                [self._number, space, some],
                binary=True,
            )
            found.update(rows)
        return [found.get(key) for key in keys]

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        return self._db.execute(
            "SELECT key, value FROM mycelia_flows.state WHERE partition_id = %s AND space = %s LIMIT %s",
            [self._number, space, most],
            binary=True,
        ).fetchall()


class DatabaseState(OutboxNumbers):
    """A `PartitionState` in a PostgreSQL. Opens nothing before it is claimed."""

    def __init__(self, home: StateDatabase, place: StatePlace) -> None:
        super().__init__()
        self.where = home.where
        self.epoch = 0
        self.checkpoint = FlowCheckpoint(generation="")
        self._home = home
        self._place = place
        self._what = str(place)
        self._number = -1

    # --- its owner -------------------------------------------------------------------------------

    def claim(self, epoch: int) -> list[tuple[int, Message]]:
        place = self._place
        whose = [place.group, place.source, place.partition]
        new = FlowCheckpoint(generation=uuid.uuid4().hex[:12])
        with self._home.transaction(self._what) as db:
            self._home._make_tables(db, self._what)
            db.execute(
                "INSERT INTO mycelia_flows.partition (flow, source, partition, epoch, checkpoint) VALUES (%s, %s, %s, 0, %b)"
                " ON CONFLICT DO NOTHING",
                [*whose, _encode(new)],
            )
            self._number, claimed, body = _one(
                db.execute(
                    "UPDATE mycelia_flows.partition SET epoch = GREATEST(%s, epoch + 1)"
                    " WHERE flow = %s AND source = %s AND partition = %s RETURNING id, epoch, checkpoint",
                    [epoch, *whose],
                    binary=True,
                )
            )
            kept = db.execute(
                "SELECT number, message FROM mycelia_flows.outbox WHERE partition_id = %s ORDER BY number",
                [self._number],
                binary=True,
            ).fetchall()
        self.epoch = claimed
        self.checkpoint = msgspec.msgpack.decode(body, type=FlowCheckpoint)
        return self._found(kept)

    def commit(
        self,
        commit: StateCommit,
        beside: Callable[[psycopg.Connection[Any]], None] | None = None,
    ) -> list[tuple[int, Message]]:
        """See `PartitionState`.

        Args:
            beside: writes rows of its own in the same transaction, by what needs no answer, since it is in a pipeline. Called once the partition's row is
                locked and the epoch is found to be ours.

        Raises:
            RowsFailed: that is what failed; nothing was committed.
        """
        checkpoint = commit.checkpoint(self.checkpoint.generation)
        numbered = list(enumerate(commit.messages, self._next_number))
        # In a pipeline: all of it leaves at once, and is waited for twice, before and at the COMMIT.
        with (
            _rows_told(self._what, beside is not None),
            self._home.connection(self._what) as db,
            db.pipeline() as pipeline,
            db.transaction(),
        ):
            fence = db.execute(
                "UPDATE mycelia_flows.partition SET checkpoint = %b WHERE id = %s AND epoch = %s RETURNING 1",
                [_encode(checkpoint), self._number, self.epoch],
            )
            if beside is not None:
                pipeline.sync()
                self._check_epoch(fence)  # of a former owner nothing is tried
                _write_beside(beside, db, pipeline, self._what)
            self._write(db, commit.changes)
            db.execute(
                "DELETE FROM mycelia_flows.outbox WHERE partition_id = %s AND number <= %s",
                [self._number, self._sent],
            )
            for some in _parts(numbered):
                db.execute(
                    "INSERT INTO mycelia_flows.outbox SELECT %s, * FROM unnest(%b::bigint[], %b::bytea[])",
                    [self._number, [n for n, _ in some], [_encode(one) for _, one in some]],
                )
            pipeline.sync()
            if beside is None:
                self._check_epoch(fence)
        self.checkpoint = checkpoint
        self._next_number += len(numbered)
        return numbered

    def _check_epoch(self, fence: psycopg.Cursor[Any]) -> None:
        if fence.fetchone() is None:
            raise LeaseLost(
                f"{self._what}: another owner has its state in {self.where} by now (our epoch is {self.epoch}). "
                "Nothing was committed; the other one goes on from the last checkpoint."
            )

    def is_in(self, url: str) -> bool:
        """Whether `commit()` may write rows beside in the database of this URL: `StateDatabase.is_at()`."""
        return self._home.is_at(url)

    def _write(
        self, db: psycopg.Connection[Any], changes: Mapping[str, Mapping[bytes, bytes | None]]
    ) -> None:
        for space, items in changes.items():
            kept = [(key, value) for key, value in items.items() if value is not None]
            gone = [key for key, value in items.items() if value is None]
            for some in _parts(kept):
                db.execute(
                    "INSERT INTO mycelia_flows.state SELECT %s, %s, * FROM unnest(%b::bytea[], %b::bytea[])"
                    " ON CONFLICT (partition_id, space, key) DO UPDATE SET value = excluded.value",
                    [self._number, space, [key for key, _ in some], [one for _, one in some]],
                )
            for keys in _parts(gone):
                db.execute(
                    "DELETE FROM mycelia_flows.state WHERE partition_id = %s AND space = %s AND key = ANY(%b)",
                    [self._number, space, list(keys)],
                )

    def forget_sent(self) -> None:
        with self._home.transaction(self._what) as db:
            # Locked, so that no other owner comes between the question and the deletion.
            owned = db.execute(
                "SELECT 1 FROM mycelia_flows.partition WHERE id = %s AND epoch = %s FOR UPDATE",
                [self._number, self.epoch],
            ).fetchone()
            if owned is not None:
                db.execute(
                    "DELETE FROM mycelia_flows.outbox WHERE partition_id = %s AND number <= %s",
                    [self._number, self._sent],
                )

    def begin_anew(
        self,
        checkpoint: FlowCheckpoint,
        state: Iterable[tuple[str, bytes, bytes]],
        outbox: Iterable[tuple[int, bytes]],
    ) -> None:
        """Have this in place of all that is there, in one transaction; see `StateFile`."""
        place = self._place
        with self._home.transaction(self._what) as db:
            self._home._make_tables(db, self._what)
            (number,) = _one(
                db.execute(
                    "INSERT INTO mycelia_flows.partition AS there (flow, source, partition, epoch, checkpoint) VALUES (%s, %s, %s, 1, %b)"
                    " ON CONFLICT (flow, source, partition) DO UPDATE SET epoch = there.epoch + 1, checkpoint = excluded.checkpoint RETURNING id",
                    [place.group, place.source, place.partition, _encode(checkpoint)],
                )
            )
            for table, rows in (("state", state), ("outbox", outbox)):
                db.execute(f"DELETE FROM mycelia_flows.{table} WHERE partition_id = %s", [number])
                with db.cursor().copy(f"COPY mycelia_flows.{table} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row((number, *row))

    def call_off(self) -> None:
        """It waits for no broker."""

    def close(self) -> None: ...

    # --- what the engine reads -------------------------------------------------------------------

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._home.connection(self._what) as db:
            return _Rows(db, self._number).read(space, keys)

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        with self._home.connection(self._what) as db:
            return _Rows(db, self._number).scan(space, most)


def _identity(given: Mapping[str, Any]) -> dict[str, str]:
    """What a URL says of the database and the user, without the password and with what libpq takes where it says nothing."""
    said = {name: str(value) for name, value in given.items() if name != "password"}
    said.setdefault("port", "5432")
    if "user" in said:
        said.setdefault("dbname", said["user"])
    return said


def _write_beside(
    beside: Callable[[psycopg.Connection[Any]], None],
    db: psycopg.Connection[Any],
    pipeline: psycopg.Pipeline,
    what: str,
) -> None:
    import psycopg

    try:
        beside(db)
        pipeline.sync()
    except psycopg.ProgrammingError as exc:  # a table that is gone, a right that is missing
        raise RowsFailed(what, exc) from exc


@contextmanager
def _rows_told(what: str, are_there: bool) -> Iterator[None]:
    """What is said of values is said of rows: a state has nothing that could be refused. Perhaps only at the COMMIT."""
    try:
        yield
    except StateUnavailable as exc:
        if are_there and is_refusal(exc.__cause__):
            raise RowsFailed(what, exc.__cause__) from exc.__cause__
        raise


def _stream(db: psycopg.Connection[Any], query: str, number: int) -> Iterator[tuple[Any, ...]]:
    """Rows as they come, however many."""
    with db.cursor(f"copied_{uuid.uuid4().hex}", binary=True) as cursor:
        cursor.itersize = _KEYS_AT_ONCE
        cursor.execute(query.encode(), [number])
        yield from cursor


def _one(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    found: tuple[Any, ...] = row
    return found


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), _KEYS_AT_ONCE):
        yield items[at : at + _KEYS_AT_ONCE]


def _may_pass(error: BaseException | None) -> bool:
    """Whether it may be another time; a wrong password or a missing database will not be."""
    import psycopg

    text = "" if error is None else text_of(error)
    is_refused = (
        "authentication failed" in text or "pg_hba.conf" in text or "does not exist" in text
    )
    return isinstance(error, psycopg.OperationalError) and not is_refused
