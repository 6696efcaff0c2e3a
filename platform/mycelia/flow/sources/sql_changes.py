"""New rows of a SQL table, by a column that only grows.

Numbers are given to rows before their transactions commit: 7 may be there before 6. So what comes behind a number that is missing waits for it, `settle` at most; by then
whoever had taken it has rolled back, and it will never come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError
from mycelia.extras import require_extra
from mycelia.flow.sinks.sql_table import engine_of
from mycelia.flow.sinks.threaded import SinkThreads
from mycelia.flow.sources.pulled import PulledItem, PulledSource
from mycelia.logs.record_shape import Extractor, RecordShape
from mycelia.redaction import redact

if TYPE_CHECKING:
    import sqlalchemy

__all__ = ["GapWatch", "sql_changes"]

T = TypeVar("T")

_PAGE: Final = 1000


class GapWatch:
    """Which of some rows may be taken: those before the first missing number that has not been missing for long. Pure.

    Args:
        settle: seconds that a missing number is waited for.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._missing: dict[int, float] = {}
        """The first number of each gap, and when it was seen first."""

    def ready(self, last: Any, numbers: Sequence[Any], now: float) -> int:
        """How many of `numbers`, which grow, may be taken behind `last`. What are no whole numbers has no gaps that could be seen."""
        missing = self._missing
        self._missing = {}
        taken = None
        for count, number in enumerate(numbers):
            if type(number) is not int:
                return len(numbers)
            if last is None:
                last = 0  # whose first numbers may be missing as well
            if type(last) is int and number > last + 1:
                since = self._missing[last + 1] = missing.get(last + 1, now)
                if now - since < self._settle and taken is None:
                    taken = count
            last = number
        return len(numbers) if taken is None else taken


def sql_changes(
    url: str,
    table: str,
    *,
    by: str = "id",
    of: type[T] | None = None,
    key: Extractor | None = None,
    time: Extractor | None = None,
    every: Duration = "1s",
    settle: Duration = "10s",
) -> PulledSource[T]:
    """The rows of a SQL table as they are added, as a source: `@flow(sql_changes("postgresql://…", "orders", of=Order, key="customer"))`.

    Asked for each `every`, in the order of `by`; the position is the last one's. Rows that are changed or deleted are not seen. Needs the extra `sql`.

    Args:
        url: of PostgreSQL or SQLite.
        table: its name, perhaps with a schema.
        by: a column whose values are unique and grow from row to row; where two are seen to be the same, or NULL, the flow stands still. Where they are whole numbers, a missing one is waited for, as its transaction may still be open; of
            others (times), they must grow in the order in which transactions commit.
        of: what a row is made: a dataclass, a `msgspec.Struct`; by default a mapping.
        key: where a row's key is: a column's name, or a function of the row.
        time: where its event time is; by default the time at which it came.
        settle: how long a missing number is waited for: longer than any transaction that adds rows takes.
    """
    what = f"sql_changes({table!r})"
    every_s, settle_s = seconds_of(every, f"{what}: every="), seconds_of(settle, f"{what}: settle=")
    if not table or not by:
        raise ConfigError(f"{what}: expected the names of a table and of a column.")
    shape: RecordShape[Any] = RecordShape(f"source {table}", of, key, time)

    async def begin(position: Any, only_new: bool) -> AsyncGenerator[PulledItem, None]:
        require_extra("sql", what)
        rows = _Rows(url, table, by, what)
        try:
            last = position
            if last is None and only_new:
                last = await rows.last()
            gaps = GapWatch(settle_s)
            while True:
                page = await rows.behind(last)
                count = gaps.ready(last, [row[by] for row in page], _now())
                for row in page[:count]:
                    last = row[by]
                    yield _item_of(last, row, of)
                if count < _PAGE:
                    await asyncio.sleep(every_s)
        finally:
            rows.close()

    return PulledSource(table, shape, begin)


class _Rows:
    """Asks for them, in a thread."""

    def __init__(self, url: str, table: str, by: str, what: str) -> None:
        self._url = url
        self._table_name = table
        self._by = by
        self._what = f"{what} of {redact(url)}"
        self._threads = SinkThreads("mycelia-flow-sql")
        self._engine: sqlalchemy.Engine | None = None
        self._table: sqlalchemy.Table | None = None

    async def behind(self, last: Any) -> list[Mapping[str, Any]]:
        return await self._threads.run(self._behind, last)

    async def last(self) -> Any:
        return await self._threads.run(self._last)

    def _prepared(self) -> tuple[sqlalchemy.Engine, sqlalchemy.Table]:
        import sqlalchemy as sa

        if self._engine is None:
            self._engine = engine_of(sa.make_url(self._url))
        if self._table is None:
            schema, _, name = self._table_name.rpartition(".")
            try:
                table = sa.Table(
                    name, sa.MetaData(), autoload_with=self._engine, schema=schema or None
                )
            except sa.exc.NoSuchTableError:
                raise ConfigError(f"{self._what}: there is no such table.") from None
            if self._by not in table.columns:
                raise ConfigError(f"{self._what}: the table has no column {self._by} (by=).")
            self._table = table
        return self._engine, self._table

    def _behind(self, last: Any) -> list[Mapping[str, Any]]:
        import sqlalchemy as sa

        engine, table = self._prepared()
        column = table.columns[self._by]
        # The last row again and one that may follow the page: those of equal values would be left out, in silence.
        query = sa.select(table).order_by(column).limit(_PAGE + 2)
        if last is not None:
            behind = column >= last
            query = query.where(sa.or_(behind, column.is_(None)) if column.nullable else behind)
        with engine.connect() as connection:
            found = connection.execute(query)
            names = list(map(str, found.keys()))  # they are of a class of SQLAlchemy's
            rows: list[Mapping[str, Any]] = [dict(zip(names, row, strict=True)) for row in found]
        self._check([row[self._by] for row in rows])
        return [row for row in rows if last is None or row[self._by] != last][:_PAGE]

    def _check(self, values: list[Any]) -> None:
        """
        Raises:
            ConfigError: there is a row without a value, or two of the same: no position lies between them.
        """
        if None in values:
            raise ConfigError(
                f"{self._what}: a row has no {self._by} (NULL), so nothing says when it was added. Give it one, or name another column, by=."
            )
        for one, other in pairwise(values):
            if one == other:
                raise ConfigError(
                    f"{self._what}: two rows have the {self._by} {one!r:.60}, so one of them might be left out. Name a column whose values are unique, by=."
                )

    def _last(self) -> Any:
        import sqlalchemy as sa

        engine, table = self._prepared()
        with engine.connect() as connection:
            return connection.execute(sa.select(sa.func.max(table.columns[self._by]))).scalar()

    def close(self) -> None:
        self._threads.close()
        if self._engine is not None:
            self._engine.dispose()


def _item_of(position: Any, row: Mapping[str, Any], of: Any) -> PulledItem:
    if of is None:
        return PulledItem(position, row)
    try:
        return PulledItem(position, msgspec.convert(row, of))
    except msgspec.ValidationError as exc:
        return PulledItem(position, row, fault=f"{exc}, in the row {row!r:.200}")


def _now() -> float:
    return time.monotonic()
