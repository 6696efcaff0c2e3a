"""Rows of a SQL table, each batch of them once.

A batch is one transaction at the table's database, and with it goes, in a table beside (`mycelia_flow_outputs`), which was the last: what comes again
after a crash is seen there and left out, and so is what a former owner of the partition still has in its hands. So it is rows as they are counted, not
only upserts that may be repeated.

Where the flow's state is in the same PostgreSQL, `rows_beside` has the rows written in the checkpoint's own transaction instead.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, get_args, get_origin
from uuid import UUID

import msgspec

from mycelia.errors import ConfigError, FlowError, describe, text_of
from mycelia.extras import require_extra
from mycelia.flow.sinks.sink import (
    FlowSink,
    SinkPlace,
    SinkRecord,
    SinkRefused,
    unpack_records,
)
from mycelia.flow.sinks.threaded import SinkThreads, fields_of_record
from mycelia.log_event import event
from mycelia.redaction import redact
from mycelia.runtime import Container

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy

__all__ = ["SqlTable", "engine_of", "is_refusal", "sql_table", "tried"]

log = logging.getLogger("mycelia.flow")

T = TypeVar("T")

PROGRESS_TABLE: Final = "mycelia_flow_outputs"

_MAKING_ATTEMPTS: Final = 5
"""The next one finds what others have made meanwhile."""

_REFUSALS: Final = ("22", "23", "44")
"""Classes of SQLSTATE: data exception, integrity constraint, `WITH CHECK OPTION`."""

_RAISED: Final = "P0001"
"""`RAISE EXCEPTION` in a trigger."""

_BUSY_S: Final = 10.0
"""That a lock of SQLite's is waited for."""


class SqlTable(FlowSink[T]):
    """Made by `sql_table()`."""

    leaves_out_repeats = True

    def __init__(
        self, url: str, table: str, key: Sequence[str], of: type[T] | None, create: bool
    ) -> None:
        what = f"sql_table({table!r})"
        if not table:
            raise ConfigError(f"{what}: expected the name of a table.")
        self._url = url
        self.name = table
        self._table_name = table
        self.key = tuple(key)
        self._of = of
        self._create = create
        if create and (of is None or not _fields_of_type(of)):
            raise ConfigError(
                f"{what}: create=True needs of=, a dataclass or the like, to know the columns."
            )
        self._engine: sqlalchemy.Engine | None = None
        self._table: sqlalchemy.Table | None = None
        self._progress: sqlalchemy.Table | None = None
        self._threads = SinkThreads("mycelia-flow-sql")

    def libpq_url(self) -> str | None:
        """Where the table is, as libpq takes it, with its password; None: not in a PostgreSQL."""
        import sqlalchemy as sa

        url = sa.make_url(self._url)
        if url.get_backend_name() not in ("postgresql", "postgres"):
            return None
        return url.set(drivername="postgresql").render_as_string(hide_password=False)

    # --- the table -------------------------------------------------------------------------------

    async def open(self, container: Container) -> None:
        require_extra("sql", f"{container.service_name}: {self!r}")
        import sqlalchemy as sa

        try:
            await self._threads.run(self.prepare)
        except sa.exc.OperationalError as exc:  # it is tried again with what comes for it
            log.warning(
                event(
                    "flow_sink_waiting",
                    call=container.service_name,
                    output=self.name,
                    attempt=0,
                    error=describe(exc),
                    retry_in_s=None,
                )
            )

    def prepare(self) -> None:
        """Find the table, or make it, if that has not been done yet. Blocks.

        Raises:
            ConfigError: it is not there, or not as it has to be.
            sqlalchemy.exc.OperationalError: the database does not answer.
        """
        import sqlalchemy as sa

        if self._table is not None:
            return
        what = f'table "{self._table_name}" of {redact(self._url)}'
        try:
            url = sa.make_url(self._url)
            if url.get_backend_name() not in ("postgresql", "postgres", "sqlite"):
                raise ConfigError(f"{what}: expected a URL of PostgreSQL or SQLite.")
            engine = engine_of(url)
        except (sa.exc.ArgumentError, ImportError) as exc:
            raise ConfigError(f"{what}: {exc}") from exc
        try:
            self._table = self._found(engine, what)
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine

    def _found(self, engine: sqlalchemy.Engine, what: str) -> sqlalchemy.Table:
        """The table, and the one beside it; made where they may be."""
        import sqlalchemy as sa

        schema, _, name = self._table_name.rpartition(".")
        metadata = sa.MetaData()
        self._progress = sa.Table(
            PROGRESS_TABLE,
            metadata,
            sa.Column("flow", sa.Text, primary_key=True),
            sa.Column("number", sa.BigInteger, nullable=False),
            schema=schema or None,
        )
        if self._create:
            assert self._of is not None
            columns = [
                sa.Column(one, _column_type(kind), primary_key=one in self.key, autoincrement=False)
                for one, kind in _fields_of_type(self._of).items()
            ]
            sa.Table(name, metadata, *columns, schema=schema or None)
        try:
            _make_missing(metadata, engine, what)
            table = sa.Table(name, sa.MetaData(), autoload_with=engine, schema=schema or None)
        except sa.exc.NoSuchTableError:
            raise ConfigError(
                f"{what}: there is none. Create it, with {', '.join(self.key) or 'its columns'} as its primary key, or let it be created: "
                "sql_table(…, of=…, create=True)."
            ) from None
        self._check_key(table, what)
        return table

    def _check_key(self, table: sqlalchemy.Table, what: str) -> None:
        import sqlalchemy as sa

        missing = [one for one in self.key if one not in table.columns]
        if missing:
            raise ConfigError(f"{what}: it has no column {', '.join(missing)}, named in key=.")
        if not self.key:
            return
        unique = [{column.name for column in table.primary_key.columns}]
        unique += [
            {column.name for column in constraint.columns}
            for constraint in table.constraints
            if isinstance(constraint, sa.UniqueConstraint)
        ]
        unique += [
            {column.name for column in index.columns} for index in table.indexes if index.unique
        ]
        if set(self.key) not in unique:
            raise ConfigError(
                f"{what}: nothing makes ({', '.join(self.key)}) unique there, and rows are found by it. Make it the primary key, or a unique "
                "index."
            )

    # --- rows ------------------------------------------------------------------------------------

    def pack(
        self, records: list[SinkRecord[T]], kept: dict[str, int], now_ms: int, flow: str
    ) -> list[bytes]:
        rows: list[Any] = [
            SinkRecord(
                one.id,
                None,
                one.time_ms,
                {
                    name: _plain(field)
                    for name, field in fields_of_record(one.value, self.name).items()
                },
            )
            for one in records
        ]
        return super().pack(rows, kept, now_ms, flow)

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        records = [one for one in unpack_records(body) if one.id not in done]
        await self._threads.run(self._write, records, place)

    def _write(self, records: list[SinkRecord[Any]], place: SinkPlace) -> None:
        import sqlalchemy as sa

        self.prepare()
        assert self._engine is not None
        try:
            with self._engine.begin() as connection:
                self.write_rows(connection, [one.value for one in records], place)
        except sa.exc.DBAPIError as exc:
            if is_refusal(exc.orig) and (refused := self.refused(records)) is not None:
                raise refused from exc
            raise

    def write_rows(
        self, connection: sqlalchemy.Connection, rows: list[dict[str, Any]], place: SinkPlace
    ) -> bool:
        """In a transaction of the caller's; whether these had not been written before."""
        assert self._progress is not None
        if connection.dialect.name == "sqlite":  # which keeps no time zones
            rows = [{name: _in_utc(one) for name, one in row.items()} for row in rows]
        insert = _insert_of(connection)
        # First of all: its lock has others wait who deliver for the same partition.
        told = self._told_number(insert, place)
        if connection.execute(told.returning(self._progress.c.number)).first() is None:
            return False
        for statement, some in self._statements(insert, rows):
            connection.execute(statement, some)
        return True

    def write_beside(
        self, db: psycopg.Connection[Any], records: Iterable[SinkRecord[Any]], place: SinkPlace
    ) -> None:
        """The same over a connection that has a transaction open, and perhaps a pipeline: nothing is asked, since nobody else's batch has this number.

        Raises:
            FlowError: a record has a field that is no column.
            psycopg.Error: perhaps only when the pipeline is waited for.
        """
        from sqlalchemy.dialects.postgresql import insert

        _execute(db, self._told_number(insert, place), [{}])
        for statement, some in self._statements(insert, [one.value for one in records]):
            _execute(db, statement, some)

    def refused(self, records: Sequence[SinkRecord[Any]]) -> SinkRefused | None:
        """Which of these the table will not have (further ones in `also`); None: it would have them all."""
        found = tried([(self, records)])
        if not found:
            return None
        first, *others = (refused for _, _, refused in found)
        first.also = others
        return first

    @contextmanager
    def trying(self, is_strict: bool) -> Iterator[sqlalchemy.Connection]:
        """A transaction that is rolled back.

        Args:
            is_strict: constraints that wait for the commit are looked at with each row.
        """
        import sqlalchemy as sa

        self.prepare()
        assert self._engine is not None
        with self._engine.connect() as connection, connection.begin() as transaction:
            if connection.dialect.name == "sqlite":
                # Its driver begins with the first row, and the end of a savepoint before it would be a commit.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif is_strict:
                connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
            try:
                yield connection
            finally:
                transaction.rollback()

    def refused_by(
        self, connection: sqlalchemy.Connection, records: Iterable[SinkRecord[Any]]
    ) -> Iterator[tuple[SinkRecord[Any], SinkRefused]]:
        """Write these one by one in the caller's transaction; each that the table will not have, and why."""
        import sqlalchemy as sa

        self.prepare()
        so_far: dict[Any, dict[str, Any]] = {}
        for one in records:
            row = one.value
            key = tuple(row.get(name) for name in self.key)
            if self.key:
                row = {**so_far.get(key, {}), **row}
            try:
                with connection.begin_nested():
                    for statement, some in self._statements(_insert_of(connection), [row]):
                        connection.execute(statement, some)
            except sa.exc.DBAPIError as exc:
                if not is_refusal(exc.orig):
                    raise
                yield one, self._told_refused(one.id, exc.orig)
            else:
                so_far[key] = row

    def _told_refused(self, record_id: str, error: BaseException | None) -> SinkRefused:
        why = "" if error is None else " ".join(text_of(error).split())
        return SinkRefused(
            f'table "{self._table_name}" refuses the row of record {record_id}: {why}', record_id
        )

    def _told_number(self, insert: Any, place: SinkPlace) -> Any:
        """The statement that leaves a batch's number, if it is greater than the one before."""
        progress = self._progress
        assert progress is not None
        told = insert(progress).values(flow=f"{place.flow}/{place.output}", number=place.number)
        return told.on_conflict_do_update(
            index_elements=["flow"],
            set_={"number": told.excluded.number},
            where=progress.c.number < told.excluded.number,
        )

    def _statements(
        self, insert: Any, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Statements for these, each with the rows that it is for."""
        table = self._table
        assert table is not None
        for names, some in self._alike(rows).items():
            unknown = [name for name in names if name not in table.columns]
            if unknown:
                raise FlowError(
                    f'table "{self._table_name}" has no column {", ".join(unknown)}. Add it, or leave it out of the records, with map().'
                )
            statement = insert(table)
            others = [name for name in names if name not in self.key]
            if self.key and others:
                statement = statement.on_conflict_do_update(
                    index_elements=list(self.key),
                    set_={name: statement.excluded[name] for name in others},
                )
            elif self.key:
                statement = statement.on_conflict_do_nothing(index_elements=list(self.key))
            yield statement, some

    def _alike(self, rows: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """Rows by their columns. Of each key only what is the last to be said of a column."""
        if self.key:
            merged: dict[Any, dict[str, Any]] = {}
            for row in rows:
                key = tuple(row.get(name) for name in self.key)
                merged[key] = {**merged.get(key, {}), **row}
            rows = list(merged.values())
            # Two partitions that write the same rows do not wait for each other in a circle.
            with suppress(TypeError):
                rows.sort(key=lambda row: tuple(row.get(name) for name in self.key))
        found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows:
            found.setdefault(tuple(row), []).append(row)
        return found

    async def aclose(self) -> None:
        self._threads.close()
        engine, self._engine, self._table = self._engine, None, None
        if engine is not None:
            engine.dispose()


def _make_missing(metadata: sqlalchemy.MetaData, engine: sqlalchemy.Engine, what: str) -> None:
    """Make the tables that are not there; another instance may be making them.

    Raises:
        ConfigError: they cannot be made.
    """
    import sqlalchemy as sa

    for attempt in range(_MAKING_ATTEMPTS):
        try:
            metadata.create_all(engine)
            return
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError) as exc:
            if attempt < _MAKING_ATTEMPTS - 1:
                continue
            if isinstance(exc, sa.exc.OperationalError):
                raise  # it is away
            names = ", ".join(table.name for table in metadata.sorted_tables)
            raise ConfigError(
                f"{what}: {names} cannot be made there: {exc.orig}. Let this user make tables, or make {PROGRESS_TABLE} "
                "(flow TEXT PRIMARY KEY, number BIGINT NOT NULL) for it."
            ) from exc


def engine_of(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    """An engine for a URL, with the driver that is ours where it names none."""
    import sqlalchemy as sa

    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(url, connect_args={"timeout": _BUSY_S})
    return sa.create_engine(url, pool_pre_ping=True)


def _insert_of(connection: sqlalchemy.Connection) -> Any:
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as of_sqlite

        return of_sqlite
    from sqlalchemy.dialects.postgresql import insert as of_postgresql

    return of_postgresql


def _execute(db: psycopg.Connection[Any], statement: Any, rows: list[dict[str, Any]]) -> None:
    """A statement of SQLAlchemy's, by psycopg: its text, and the rows as its types bind them."""
    from sqlalchemy.dialects.postgresql import psycopg as of_psycopg

    dialect: Any = of_psycopg.dialect()  # type: ignore[no-untyped-call]
    compiled = statement.compile(dialect=dialect, column_keys=list(rows[0]) or None)
    bound = {
        name: process
        for name, bind in compiled.binds.items()
        if (process := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
    }
    escaped = compiled.escaped_bind_names
    with db.cursor() as cursor:
        cursor.executemany(
            str(compiled).encode(),
            [
                {
                    escaped.get(name, name): bound[name](value) if name in bound else value
                    for name, value in compiled.construct_params(row, escape_names=False).items()
                }
                for row in rows
            ],
        )


RefusedRow = tuple[int, SinkRecord[Any], SinkRefused]
"""Of which body, which record, and why."""


def tried(bodies: Sequence[tuple[SqlTable[Any], Sequence[SinkRecord[Any]]]]) -> list[RefusedRow]:
    """Which records their tables, of one database, will not have. All are written one by one, in one transaction that is rolled back.

    First as in a commit. If nothing is found, with those constraints looked at that wait for its end: then what is refused is tried again
    behind the others, for as long as that helps, since a row may need one that comes later.
    """
    table, _ = bodies[0]
    with table.trying(is_strict=False) as connection:
        found = _refused_of(connection, bodies)
    if found:
        return found
    with table.trying(is_strict=True) as connection:
        while (again := _refused_of(connection, bodies)) and len(again) != len(found):
            found = again
            bodies = [
                (table, [record for at, record, _ in found if at == number])
                for number, (table, _) in enumerate(bodies)
            ]
    return again


def _refused_of(
    connection: sqlalchemy.Connection,
    bodies: Sequence[tuple[SqlTable[Any], Sequence[SinkRecord[Any]]]],
) -> list[RefusedRow]:
    return [
        (number, record, refused)
        for number, (table, records) in enumerate(bodies)
        for record, refused in table.refused_by(connection, records)
    ]


def is_refusal(error: object) -> bool:
    """Whether a database says by an error that it will not have a value, rather than that it cannot now: a constraint, a range, a trigger."""
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return True
    state = getattr(error, "sqlstate", None)
    if state is None:  # psycopg's own: a text with a NUL in it
        return type(error).__name__ == "DataError"
    return state[:2] in _REFUSALS or state == _RAISED


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value.astimezone(UTC)
    return value


_KEPT: Final = (str, int, float, bool, bytes, datetime, date, Decimal, UUID, type(None))


def _plain(value: Any) -> Any:
    """A field as a column takes it: what is no single value becomes what JSON is made of."""
    if isinstance(value, _KEPT):
        return value
    return msgspec.to_builtins(value, str_keys=True)


def _fields_of_type(of: type[Any]) -> dict[str, Any]:
    """The fields of a class that is a record, with their types."""
    if issubclass(of, msgspec.Struct):
        names: Sequence[str] = of.__struct_fields__
    elif dataclasses.is_dataclass(of):
        names = [field.name for field in dataclasses.fields(of)]
    else:
        names = list(getattr(of, "_fields", ())) or list(getattr(of, "__annotations__", ()))
    hints = typing.get_type_hints(of)
    return {name: hints[name] for name in names if name in hints}


def _column_type(hint: Any) -> Any:
    import sqlalchemy as sa

    if get_origin(hint) in (Union, types.UnionType):
        (hint, *others) = [one for one in get_args(hint) if one is not type(None)]
        if others:
            hint = object
    found: dict[Any, Any] = {
        str: sa.Text(),
        int: sa.BigInteger(),
        float: sa.Double(),
        bool: sa.Boolean(),
        bytes: sa.LargeBinary(),
        datetime: sa.DateTime(timezone=True),
        date: sa.Date(),
        Decimal: sa.Numeric(),
        UUID: sa.Uuid(),
    }
    return found.get(hint, sa.JSON())


def sql_table(
    url: str,
    table: str,
    *,
    key: Sequence[str] = (),
    of: type[T] | None = None,
    create: bool = False,
) -> SqlTable[T]:
    """Rows of a table: `stream.to(sql_table("postgresql://…", "hourly", key=("origin", "hour")))`. Needs the extra `sql`.

    A record's fields are the columns of its names. With `key`, a row of the same key is overwritten in the record's columns; without, each record
    is a row. Either is done once for each record, whatever crashes: beside the table there is one, `mycelia_flow_outputs`, in which each batch leaves its number
    in the same transaction. While the database is away the flow waits.

    Args:
        url: of PostgreSQL or SQLite.
        table: its name, perhaps with a schema: `stats.hourly`. It must exist, and something must make `key` unique.
        of: what each record is, for type checkers, and for `create`.
        create: make the table where it is missing: `key` is its primary key, the columns are the fields of `of`.
    """
    names = (key,) if isinstance(key, str) else key
    return SqlTable(url, table, names, of, create)
