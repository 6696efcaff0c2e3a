"""Rows of a table that is in the PostgreSQL of the flow's state: there with the checkpoint, or neither of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.unit.flow.entries import entry_of

from mycelia import Log
from mycelia.errors import LeaseLost
from mycelia.flow import FlowOutput, FlowPlan, Stream, source, sql_table
from mycelia.flow.partition_run import PartitionRun, PreparedCommit, StageDescription
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.rows_beside import RowsRefused
from mycelia.flow.sinks.sink import SinkPlace, unpack_records
from mycelia.flow.sinks.sql_table import SqlTable
from mycelia.flow.state_database import RowsFailed
from mycelia.flow.state_home import StateHome, state_home
from mycelia.logs import LogPosition
from mycelia.wire import SerializerRegistry

IN: Log[Any] = Log("in", partitions=2)
SINKS: list[SqlTable[Any]] = []
"""Of a test, to be closed at its end."""

PLACE = StatePlace("in", "g", "g", 0)


@dataclass
class Hour:
    origin: str
    hour: datetime
    flights: int
    mean: float | None = None
    tags: list[str] | None = None
    day: date | None = None
    cost: Decimal | None = None
    plane: UUID | None = None
    photo: bytes | None = None
    is_late: bool = False


def hour(number: int, flights: int = 1, **more: Any) -> Hour:
    return Hour("JFK", datetime(2013, 1, 1, number, tzinfo=UTC), flights, **more)


@pytest.fixture
def home(postgres_uri: str) -> Iterator[StateHome]:
    made = state_home(postgres_uri)
    made.prepare("svc.flow", "g", ["in"])
    with psycopg.connect(postgres_uri) as db:
        db.execute("CREATE TABLE IF NOT EXISTS mine (n INT CHECK (n < 100))")
    yield made
    for sink in SINKS:
        asyncio.run(sink.aclose())
    SINKS.clear()
    made.close()


def asked(uri: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(uri) as db:
        cursor = db.execute(query.encode())
        return [] if cursor.description is None else cursor.fetchall()


def owner(home: StateHome, *outputs: FlowOutput, partition: int = 0) -> PartitionRun:
    serializer = SerializerRegistry().by_name(None)
    plan = FlowPlan({one.name: one.port for one in outputs})
    description = StageDescription("g", plan, {"in": IN}, outputs, "svc.events", serializer)
    place = PLACE._replace(partition=partition)
    return PartitionRun(description, partition, home.open(place), 1)


def rows_of(values: Stream[Any], url: str, table: str = "mine", **options: Any) -> FlowOutput:
    sink: Any = sql_table(url, table, **options)
    SINKS.append(sink)
    return values.to(sink)


def numbers(url: str, **options: Any) -> FlowOutput:
    return rows_of(source("in", dict), url, **options)


def commit(run: PartitionRun, offset: int, *values: Any) -> list[Any]:
    return run.write(prepared(run, offset, *values))


def prepared(run: PartitionRun, offset: int, *values: Any) -> PreparedCommit:
    run.feed({"in": [entry_of(offset, list(values))]}, 0)
    return run.prepare({"in": LogPosition(offset=offset)}, 0)


def offset(home: StateHome) -> int | None:
    """As of the last commit."""
    state = home.open(PLACE)
    state.claim(1)
    return state.checkpoint.positions["in"].offset if state.checkpoint.positions else None


def mine(uri: str) -> list[int]:
    return [n for (n,) in asked(uri, "SELECT n FROM mine ORDER BY n")]


def test_rows_are_there_with_the_commit_and_no_message_waits(
    home: StateHome, postgres_uri: str
) -> None:
    with closing(owner(home, numbers(postgres_uri))) as run:
        assert commit(run, 1, {"n": 1}, {"n": 2}) == []
        assert mine(postgres_uri) == [1, 2]
        assert commit(run, 2, {"n": 3}) == []
        assert run.rows.written == 2

    assert mine(postgres_uri) == [1, 2, 3]
    assert offset(home) == 2
    assert asked(postgres_uri, "SELECT number FROM mycelia_flow_outputs") == [(1,)]


def test_values_of_all_types_are_what_the_outbox_would_have_written(
    home: StateHome, postgres_uri: str
) -> None:
    full = hour(
        1,
        mean=0.5,
        tags=["a", "%s"],
        day=date(2013, 1, 1),
        cost=Decimal("1.50"),
        plane=UUID(int=7),
        photo=b"\0\xff",
        is_late=True,
    )
    options = {"of": Hour, "create": True, "key": ("origin", "hour")}
    beside = rows_of(source("in", Hour), postgres_uri, "beside", **options)
    with closing(owner(home, beside)) as run:
        assert commit(run, 1, hour(1, 9), hour(2), full) == []
    sink: Any = sql_table(postgres_uri, "waited", of=Hour, create=True, key=("origin", "hour"))
    SINKS.append(sink)
    with closing(owner(home, source("in", Hour).to(sink, name="waited"))) as run:
        run.rows._tables.clear()
        ((_, message),) = commit(run, 2, hour(1, 9), hour(2), full)
    sink._write(unpack_records(message.body), SinkPlace("x", "waited", 0))

    found = asked(postgres_uri, "SELECT * FROM beside ORDER BY hour")
    assert len(found) == 2
    assert found == asked(postgres_uri, "SELECT * FROM waited ORDER BY hour")
    assert found[0][3:5] == (0.5, ["a", "%s"])


def test_columns_may_be_called_anything(home: StateHome, postgres_uri: str) -> None:
    asked(postgres_uri, 'CREATE TABLE odd ("a b" INT PRIMARY KEY, "c%d" TEXT, "e:f" TEXT)')
    odd = rows_of(source("in", dict), postgres_uri, "odd", key="a b")
    with closing(owner(home, odd)) as run:
        commit(run, 1, {"a b": 1, "c%d": "x", "e:f": "y"}, {"a b": 2, "c%d": "%"})
        commit(run, 2, {"a b": 1, "c%d": "z"})

    assert asked(postgres_uri, "SELECT * FROM odd ORDER BY 1") == [(1, "z", "y"), (2, "%", None)]


@pytest.mark.parametrize(
    "constraint",
    [
        "ALTER TABLE mine ADD CHECK (n <> 13)",
        "ALTER TABLE mine ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED; INSERT INTO mine VALUES (13)",
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.n = 13 THEN RAISE EXCEPTION 'not that'; END IF; "
        "RETURN new; END $$; CREATE TRIGGER no BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION no()",
    ],
    ids=["check", "deferred", "trigger"],
)
def test_row_that_is_refused_is_named_and_the_rest_goes_on_without_it(
    home: StateHome, postgres_uri: str, constraint: str
) -> None:
    with closing(owner(home, numbers(postgres_uri))) as run:
        commit(run, 1, {"n": 1})
        asked(postgres_uri, constraint)
        before = mine(postgres_uri)
        it = prepared(run, 2, {"n": 2}, {"n": 13}, {"n": 3})
        with pytest.raises(
            RowsRefused, match='output "mine": table "mine" refuses the row'
        ) as told:
            run.write(it)
        ((output, record, _),) = told.value.rows
        assert (output, record.value) == ("mine", {"n": 13})
        assert record.id in str(told.value)
        assert mine(postgres_uri) == before
        run.rows.leave_out(told.value)
        run.write(it)
        commit(run, 3, {"n": 4})

    assert [n for n in mine(postgres_uri) if n != 13] == [1, 2, 3, 4]
    assert offset(home) == 3


def test_value_that_no_column_holds_is_refused(home: StateHome, postgres_uri: str) -> None:
    with closing(owner(home, numbers(postgres_uri))) as run:
        for wrong in (2**40, "no number", "\0"):
            it = prepared(run, 1, {"n": 1}, {"n": wrong})
            with pytest.raises(RowsRefused) as told:
                run.write(it)
            assert [record.value for _, record, _ in told.value.rows] == [{"n": wrong}]
            run.rows.leave_out(told.value)
            run.write(it)

    assert mine(postgres_uri) == [1, 1, 1]


def test_all_rows_that_are_refused_are_found_at_once(home: StateHome, postgres_uri: str) -> None:
    """Also among two tables, one of which needs the rows of the other: it is not blamed for that."""
    asked(postgres_uri, "ALTER TABLE mine ADD UNIQUE (n)")
    asked(
        postgres_uri,
        "CREATE TABLE child (n INT REFERENCES mine (n) DEFERRABLE INITIALLY DEFERRED, m INT CHECK (m <> 5))",
    )
    values = source("in", dict)
    outputs = (
        rows_of(values.map(lambda one: {"n": one["n"], "m": one["n"]}), postgres_uri, "child"),
        rows_of(values, postgres_uri),
    )
    with closing(owner(home, *outputs)) as run:
        it = prepared(run, 1, *({"n": n} for n in range(2, 199)), {"n": 5})
        with pytest.raises(RowsRefused, match=r"\(and 101 more\)") as told:
            run.write(it)
        found = [(output, record.value["n"]) for output, record, _ in told.value.rows]
        run.rows.leave_out(told.value)
        with pytest.raises(RowsRefused) as again:
            run.write(it)

    assert sorted(found) == [
        ("child", 5),
        ("child", 5),
        ("mine", 5),
        *(("mine", n) for n in range(100, 199)),
    ]
    needing = sorted((output, record.value["n"]) for output, record, _ in again.value.rows)
    assert needing == [("child", n) for n in range(100, 199)]


def test_partitions_that_get_into_each_others_way_commit_both(
    home: StateHome, postgres_uri: str
) -> None:
    """They write the same rows of two tables, one the other way round: PostgreSQL ends one of them, which tries again."""
    for name in ("one", "two"):
        asked(postgres_uri, f"CREATE TABLE {name} (n INT PRIMARY KEY, m INT)")
    options: dict[str, Any] = {"key": "n"}

    def way_round(names: Sequence[str], partition: int) -> PartitionRun:
        values = source("in", dict)
        outputs = [rows_of(values, postgres_uri, name, **options) for name in names]
        return owner(home, *outputs, partition=partition)

    both = [way_round(("one", "two"), 0), way_round(("two", "one"), 1)]
    met = threading.Barrier(2)

    def run(which: PartitionRun) -> None:
        for number in range(1, 5):
            met.wait(20)
            commit(which, number, *({"n": n, "m": number} for n in range(300)))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, which) for which in both]:
            done.result()
    for which in both:
        assert which.offset == 4
        which.close()

    for name in ("one", "two"):
        assert asked(postgres_uri, f"SELECT DISTINCT m FROM {name}") == [(4,)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ((count,),) = asked(postgres_uri, deadlocks)
    assert count > 0


def test_table_that_is_gone_is_told_as_such_and_nothing_is_committed(
    home: StateHome, postgres_uri: str
) -> None:
    with closing(owner(home, numbers(postgres_uri))) as run:
        commit(run, 1, {"n": 1})
        asked(postgres_uri, "ALTER TABLE mine RENAME TO other")
        with pytest.raises(RowsFailed, match='relation "mine" does not exist'):
            commit(run, 2, {"n": 2})

    assert offset(home) == 1


def test_former_owner_writes_no_row(home: StateHome, postgres_uri: str) -> None:
    with (
        closing(owner(home, numbers(postgres_uri))) as former,
        closing(owner(home, numbers(postgres_uri))) as run,
    ):
        commit(run, 1, {"n": 1})
        with pytest.raises(LeaseLost):
            commit(former, 1, {"n": 2})
        with pytest.raises(LeaseLost):  # also where the table would refuse it
            commit(former, 2, {"n": 200})
        commit(run, 2, {"n": 3})

    assert mine(postgres_uri) == [1, 3]


def test_another_database_or_user_or_file_gets_its_rows_by_the_outbox(
    home: StateHome, postgres_uri: str, tmp_path: Any
) -> None:
    other = postgres_uri.rpartition("/")[0] + "/postgres"
    as_another = postgres_uri.replace("postgres@", "somebody@")
    with_options = f"{postgres_uri}?options=-csearch_path%3Dx"
    for url in (f"sqlite:///{tmp_path}/x.db", other, as_another, with_options):
        with closing(owner(home, numbers(url))) as run:
            assert run.rows.outputs == []
            ((_, message),) = commit(run, 1, {"n": 1})
            assert message.routing_key == "mine"
    for url in (postgres_uri, postgres_uri.replace("postgresql:", "postgresql+psycopg:")):
        with closing(owner(home, numbers(url.replace("postgres@", "postgres:secret@")))) as run:
            assert run.rows.outputs == ["mine"]

    assert mine(postgres_uri) == []


# --- killed ------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import psycopg
from tests.unit.flow.test_rows_beside import commit, numbers, owner, state_home

uri, kill_at = sys.argv[1], int(sys.argv[2])
run = owner(state_home(uri), numbers(uri))
commit(run, 1, {"n": 1})
sync, count = psycopg.Pipeline.sync, 0

def synced(self):
    global count
    sync(self)
    count += 1
    if count == kill_at:
        print("open", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

psycopg.Pipeline.sync = synced
commit(run, 2, {"n": 2}, {"n": 3})
print("committed", flush=True)
"""
"""Its second commit has its row locked (1), its rows written (2), all written (3) when it is killed."""


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_owner_killed_in_the_middle_leaves_neither_rows_nor_checkpoint(
    home: StateHome, postgres_uri: str, kill_at: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, postgres_uri, str(kill_at)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "open\n"), done.stderr
    assert mine(postgres_uri) == [1]

    with closing(owner(home, numbers(postgres_uri))) as run:
        assert run.offset == 1
        assert run.left_over == []
        commit(run, 2, {"n": 2}, {"n": 3})
    assert mine(postgres_uri) == [1, 2, 3]
