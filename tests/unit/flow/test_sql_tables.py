"""Rows of a table, each batch once: in SQLite here, and in PostgreSQL where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mycelia.errors import ConfigError, FlowError, UnserializableValueError
from mycelia.flow.sinks.sink import SinkPlace, SinkRecord, SinkRefused
from mycelia.flow.sinks.sql_table import SqlTable, sql_table

FLOW = "g/abc/0"


@dataclass
class Hour:
    origin: str
    hour: datetime
    flights: int
    mean: float | None = None
    tags: list[str] | None = None


def hour(number: int, flights: int, origin: str = "JFK") -> Hour:
    return Hour(origin, datetime(2013, 1, 1, number, tzinfo=UTC), flights, flights / 2, ["a"])


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    uri: str = request.getfixturevalue("postgres_uri")
    return uri


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    yield made
    made.dispose()


def rows(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def records(*values: Any) -> list[SinkRecord[Any]]:
    return [SinkRecord(f"id{n}", None, 0, value) for n, value in enumerate(values)]


class Delivering:
    def __init__(self, sink: SqlTable[Any], flow: str = FLOW) -> None:
        self.sink, self.flow, self.number = sink, flow, 0

    async def batch(self, *values: Any, number: int | None = None) -> None:
        at = self.number if number is None else number
        (body,) = self.sink.pack(records(*values), {}, 0, self.flow)
        await self.sink.deliver(body, SinkPlace(self.flow, "out", at), set())
        self.number = max(self.number, at + 1)


class Service:
    service_name = "delays"


async def opened(sink: SqlTable[Any]) -> SqlTable[Any]:
    service: Any = Service()
    await sink.open(service)
    return sink


async def test_row_of_a_key_is_overwritten_and_a_batch_that_comes_again_is_left_out(
    url: str, engine: sa.Engine
) -> None:
    sink = await opened(sql_table(url, "hourly", key=("origin", "hour"), of=Hour, create=True))
    flow = Delivering(sink)
    await flow.batch(hour(1, 10), hour(2, 20), hour(1, 11))
    await flow.batch(hour(1, 12))
    await flow.batch(hour(1, 10), hour(2, 20), hour(1, 11), number=0)
    await sink.aclose()

    wanted = "SELECT origin, flights, mean FROM hourly ORDER BY hour"
    assert rows(engine, wanted) == [("JFK", 12, 6.0), ("JFK", 20, 10.0)]


async def test_without_a_key_each_record_is_one_row(url: str, engine: sa.Engine) -> None:
    sink = await opened(sql_table(url, "passed", of=Hour, create=True))
    flow, other = Delivering(sink), Delivering(sink, "g/abc/1")
    await flow.batch(hour(1, 1), hour(1, 1))
    await flow.batch(hour(1, 1), hour(1, 1), number=0)
    await other.batch(hour(1, 5), number=0)
    await sink.aclose()

    assert rows(engine, "SELECT flights FROM passed ORDER BY flights") == [(1,), (1,), (5,)]


async def test_batch_is_whole_or_not_there(url: str, engine: sa.Engine) -> None:
    sink = await opened(sql_table(url, "hourly", key="hour", of=Hour, create=True))
    flow = Delivering(sink)
    with pytest.raises(FlowError, match="has no column nothing"):
        await flow.batch(hour(1, 1), {"hour": datetime(2013, 1, 1, 2, tzinfo=UTC), "nothing": 1})
    assert rows(engine, "SELECT * FROM hourly") == []
    await flow.batch(hour(1, 1))

    assert rows(engine, "SELECT flights FROM hourly") == [(1,)], "its number was not taken either"
    await sink.aclose()


async def test_table_of_others_is_used_as_it_is(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE counts (origin TEXT PRIMARY KEY, n BIGINT, note TEXT DEFAULT 'x')"
            )
        )
    sink = await opened(sql_table(url, "counts", key="origin"))
    flow = Delivering(sink)
    await flow.batch({"origin": "JFK", "n": 1})
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE counts SET note = 'mine'"))
    await flow.batch({"origin": "JFK", "n": 2}, {"origin": "EWR", "n": 1})
    await sink.aclose()

    wanted = [("EWR", 1, "x"), ("JFK", 2, "mine")]
    assert rows(engine, "SELECT * FROM counts ORDER BY origin") == wanted


async def test_table_that_is_missing_or_has_no_such_key_is_told_at_the_start(
    url: str, engine: sa.Engine
) -> None:
    with pytest.raises(
        ConfigError, match=r"there is none\. Create it, with origin as its primary key"
    ):
        await opened(sql_table(url, "hourly", key="origin"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE hourly (origin TEXT, n BIGINT)"))
    with pytest.raises(ConfigError, match=r"nothing makes \(origin\) unique there"):
        await opened(sql_table(url, "hourly", key="origin"))
    with pytest.raises(ConfigError, match="it has no column hour"):
        await opened(sql_table(url, "hourly", key="hour"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE UNIQUE INDEX of_origin ON hourly (origin)"))
    sink = await opened(sql_table(url, "hourly", key="origin"))
    await sink.aclose()


async def test_instances_that_start_together_make_one_table(url: str, engine: sa.Engine) -> None:
    sinks = [sql_table(url, "hourly", key="hour", of=Hour, create=True) for _ in range(8)]
    await asyncio.gather(*map(opened, sinks))
    await asyncio.gather(
        *(Delivering(sink, f"g/abc/{n}").batch(hour(n, n)) for n, sink in enumerate(sinks))
    )
    for sink in sinks:
        await sink.aclose()

    assert len(rows(engine, "SELECT * FROM hourly")) == 8


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="create=True needs of="):
        sql_table("sqlite:///x", "hourly", key="origin", create=True)
    with pytest.raises(UnserializableValueError, match="has no fields with names"):
        sql_table("sqlite:///x", "hourly").pack(records(5), {}, 0, FLOW)


async def test_url_of_another_database_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="PostgreSQL or SQLite") as caught:
        await opened(sql_table("mssql://sa:secret@host/db", "hourly"))
    assert "secret" not in str(caught.value)


async def test_row_that_the_table_refuses_is_named_and_the_rest_can_be_delivered(
    url: str, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE mine (n INT CHECK (n <> 13))"))
    sink = await opened(sql_table(url, "mine"))
    (body,) = sink.pack(records({"n": 1}, {"n": 13}, {"n": 2}), {}, 0, FLOW)
    place, done = SinkPlace(FLOW, "out", 0), set[str]()
    with pytest.raises(SinkRefused, match=r'table "mine" refuses the row of record id1: ') as told:
        await sink.deliver(body, place, done)
    assert told.value.record_id == "id1"
    assert rows(engine, "SELECT * FROM mine") == []
    await sink.deliver(body, place, {"id1"})
    await sink.aclose()

    assert rows(engine, "SELECT n FROM mine ORDER BY n") == [(1,), (2,)]
