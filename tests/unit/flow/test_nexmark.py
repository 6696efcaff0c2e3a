"""Nexmark's queries as flows give what SQL gives over the same events: in order and not, from one partition and four, through crashes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from benchmarks.nexmark import BASE_MS, QUERIES, Auction, Bid, Event, Nexmark, Person, query

from mycelia.testing import FlowDriver

EVENTS = 3000
RATE = 100  # a second: thirty seconds of events
GROUPS = {"in order": 1, "in disorder": 200}

ORACLE = {
    "q0": "SELECT auction, bidder, price, at_ms FROM bid",
    "q1": "SELECT auction, bidder, 0.908 * price, at_ms FROM bid",
    "q2": "SELECT auction, price FROM bid WHERE auction % 123 = 0",
    "q3": """
        SELECT person.name, person.city, person.state, auction.id FROM auction JOIN person ON auction.seller = person.id
        WHERE category = 10 AND state IN ('OR', 'ID', 'CA')""",
    "closed": """
        SELECT auction.*, MAX(price) AS final FROM auction
        JOIN bid ON bid.auction = auction.id AND bid.at_ms BETWEEN auction.at_ms AND auction.expires_ms GROUP BY auction.id""",
    "q4": "SELECT category, AVG(final) FROM closed GROUP BY category",
    "q5": """
        WITH RECURSIVE hop(start) AS (
            SELECT (SELECT MIN(at_ms) FROM bid) / 2000 * 2000 - 8000
            UNION ALL SELECT start + 2000 FROM hop WHERE start < (SELECT MAX(at_ms) FROM bid)),
        counts AS (
            SELECT start, auction, COUNT(*) AS bids FROM hop JOIN bid ON at_ms >= start AND at_ms < start + 10000
            GROUP BY start, auction)
        SELECT start, auction, bids FROM counts c WHERE bids = (SELECT MAX(bids) FROM counts d WHERE d.start = c.start)""",
    "q6": """
        SELECT seller, AVG(final) FROM (
            SELECT seller, final, ROW_NUMBER() OVER (PARTITION BY seller ORDER BY expires_ms DESC, id DESC) AS place FROM closed)
        WHERE place <= 10 GROUP BY seller""",
    "q7": """
        SELECT auction, price, bidder, at_ms FROM bid b
        WHERE price = (SELECT MAX(price) FROM bid c WHERE c.at_ms / 10000 = b.at_ms / 10000)""",
    "q8": """
        SELECT DISTINCT person.id, person.name, person.at_ms / 10000 * 10000 FROM person
        JOIN auction ON auction.seller = person.id AND auction.at_ms / 10000 = person.at_ms / 10000""",
    "q11": """
        WITH marked AS (
            SELECT bidder, at_ms, at_ms - LAG(at_ms) OVER (PARTITION BY bidder ORDER BY at_ms) AS gap FROM bid),
        numbered AS (
            SELECT bidder, at_ms, SUM(gap IS NULL OR gap >= 10000) OVER (
                PARTITION BY bidder ORDER BY at_ms ROWS UNBOUNDED PRECEDING) AS number FROM marked)
        SELECT bidder, COUNT(*), MIN(at_ms), MAX(at_ms) + 10000 FROM numbered GROUP BY bidder, number""",
}  # fmt: skip


@lru_cache
def events(group: int) -> list[Event]:
    return Nexmark(RATE, group).events(EVENTS)


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    """The events as tables. They are the same in order and in disorder."""
    connection = sqlite3.connect(":memory:")
    for kind in (Person, Auction, Bid):
        fields = kind.__struct_fields__
        name = kind.__name__.lower()
        connection.execute(f"CREATE TABLE {name} ({', '.join(fields)})")
        rows = [
            tuple(getattr(event, field) for field in fields)
            for event in events(1)
            if isinstance(event, kind)
        ]
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(fields))})", rows)
    connection.execute(f"CREATE TABLE closed AS {ORACLE['closed']}")
    yield connection
    connection.close()


def rounded(rows: Any) -> list[Any]:
    return sorted(
        tuple(round(value, 6) if isinstance(value, float) else value for value in row)
        for row in rows
    )


RUNNING = {"q4", "q6"}
"""What gives a result for each change; the last of each key counts."""


@pytest.mark.parametrize("partitions", [1, 4], ids=["one partition", "four partitions"])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", QUERIES)
def test_flow_gives_what_sql_gives(
    database: sqlite3.Connection, name: str, group: int, partitions: int
) -> None:
    wanted = rounded(database.execute(ORACLE[name]).fetchall())
    for crash_rate in (0.0, 0.1):
        given = run(name, group, partitions, crash_rate)
        assert rounded(given) == wanted
    assert wanted


def run(name: str, group: int, partitions: int, crash_rate: float) -> list[Any]:
    disorder = Nexmark(RATE, group).disorder_ms
    driver = FlowDriver(
        {"out": query(name, disorder)}, partitions=partitions, seed=group, crash_rate=crash_rate
    )
    for partition in range(partitions):
        driver.append(
            "events", events(group)[partition::partitions], partition=partition, batch=100
        )
    driver.end()
    assert (driver.crashes > 0) == (crash_rate > 0)
    given = driver.given("out")
    return list({row[0]: row for row in given}.values()) if name in RUNNING else given


def test_events_are_those_of_their_numbers_and_in_nexmarks_proportions() -> None:
    stream = Nexmark(RATE)
    assert [stream.event(number) for number in (0, 1, 4, 2999)] == [
        events(1)[number] for number in (0, 1, 4, 2999)
    ]
    kinds = [type(event) for event in events(1)]
    assert [kinds.count(kind) for kind in (Person, Auction, Bid)] == [60, 180, 2760]
    assert [event.id for event in events(1) if isinstance(event, Auction)] == list(
        range(1000, 1180)
    )
    assert [event.id for event in events(1) if isinstance(event, Person)] == list(range(1000, 1060))


def test_disorder_is_another_order_of_the_same_events() -> None:
    shuffled = events(200)
    assert shuffled != events(1)
    assert sorted(shuffled, key=repr) == sorted(events(1), key=repr)
    latest = 0
    for event in shuffled:
        assert event.at_ms > latest - Nexmark(RATE, 200).disorder_ms
        latest = max(latest, event.at_ms)
    assert events(1)[0].at_ms == BASE_MS
