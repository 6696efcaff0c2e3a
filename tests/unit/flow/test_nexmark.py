"""Nexmark's queries as flows give what SQL gives over the same events: in order and not, from one partition and four, through crashes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.nexmark import (
    BASE_MS,
    QUERIES,
    Auction,
    Bid,
    Event,
    Nexmark,
    Person,
    q10,
    q10_files,
    query,
)
from tests.unit.flow.staged import StagedRun, stages

from mycelia import Log
from mycelia.flow import source
from mycelia.testing import FlowDriver

EVENTS = 3000
RATE = 100  # a second: thirty seconds of events
GROUPS = {"in order": 1, "in disorder": 200}

DAY = "at_ms / 86400000 * 86400000"
COUNTS = "COUNT(*), SUM(rank = 1), SUM(rank = 2), SUM(rank = 3)"
RANKED = COUNTS + "".join(
    f", COUNT(DISTINCT {field})"
    + "".join(f", COUNT(DISTINCT CASE WHEN rank = {rank} THEN {field} END)" for rank in (1, 2, 3))
    for field in ("bidder", "auction")
)

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
    "q9": """
        SELECT id, bidder, price, at_ms FROM (
            SELECT auction.id, bidder, price, bid.at_ms, ROW_NUMBER() OVER (
                PARTITION BY auction.id ORDER BY price DESC, bid.at_ms, bidder) AS place
            FROM auction JOIN bid ON bid.auction = auction.id AND bid.at_ms BETWEEN auction.at_ms AND auction.expires_ms)
        WHERE place = 1""",
    "q13": "SELECT auction, bidder, price, 'side ' || (auction % 10000) FROM bid",
    "q14": """
        SELECT auction, bidder, 0.908 * price,
            CASE WHEN hour BETWEEN 8 AND 18 THEN 'dayTime' WHEN hour <= 6 OR hour >= 20 THEN 'nightTime' ELSE 'otherTime' END,
            at_ms, LENGTH(extra) - LENGTH(REPLACE(extra, 'c', ''))
        FROM (SELECT *, at_ms / 3600000 % 24 AS hour FROM bid) WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000""",
    "q15": f"SELECT {DAY}, {RANKED} FROM ranked GROUP BY {DAY}",
    "q16": f"SELECT channel, {DAY}, {RANKED} FROM ranked GROUP BY channel, {DAY}",
    "q17": f"""
        SELECT auction, {DAY}, {COUNTS}, MIN(price), MAX(price), AVG(price), SUM(price) FROM ranked GROUP BY auction, {DAY}""",
    "q18": """
        SELECT bidder, auction, price, at_ms FROM bid b
        WHERE at_ms = (SELECT MAX(at_ms) FROM bid c WHERE c.bidder = b.bidder AND c.auction = b.auction)""",
    "q19": """
        SELECT auction, price FROM (
            SELECT auction, price, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS place FROM bid)
        WHERE place <= 10""",
    "q20": """
        SELECT auction, bidder, price, seller FROM bid JOIN auction ON auction.id = bid.auction WHERE category = 10""",
    "q21": """
        SELECT auction, bidder, price, number FROM (
            SELECT *, CASE LOWER(channel) WHEN 'apple' THEN '0' WHEN 'google' THEN '1' WHEN 'facebook' THEN '2' WHEN 'baidu' THEN '3'
                ELSE SUBSTR(url, NULLIF(INSTR(url, 'channel_id='), 0) + 11) END AS number FROM bid)
        WHERE number IS NOT NULL""",
    "q22": "SELECT auction, bidder, price, SUBSTR(url, 25, 3), SUBSTR(url, 29, 3), SUBSTR(url, 33, 3) FROM bid",
    "q10": """
        SELECT auction, bidder, price, at_ms, extra, strftime('%Y-%m-%d', at_ms / 1000, 'unixepoch'),
            strftime('%H:%M', at_ms / 1000, 'unixepoch') FROM bid""",
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
    connection.execute(
        "CREATE TABLE ranked AS SELECT *, CASE WHEN price < 10000 THEN 1 WHEN price < 1000000 THEN 2 ELSE 3 END AS rank FROM bid"
    )
    connection.execute(f"CREATE TABLE closed AS {ORACLE['closed']}")
    yield connection
    connection.close()


def rounded(rows: Any) -> list[Any]:
    return sorted(
        tuple(round(value, 6) if isinstance(value, float) else value for value in row)
        for row in rows
    )


RUNNING = {"q4", "q6", "q18", "q19"}
"""What gives a result for each change; the last of each key counts."""


@pytest.mark.parametrize("partitions", [1, 4], ids=["one partition", "four partitions"])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("name", [name for name in QUERIES if name != "q12"])
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
    if name in RUNNING:
        given = list({row[0]: row for row in given}.values())
    if name == "q10":
        return list(map(msgspec.structs.astuple, given))
    if name == "q18":  # the key is of two columns
        return [(*key, price, at_ms) for key, price, at_ms in given]
    if name == "q19":  # a row for each of the ten
        return [(auction, price) for auction, *prices in given for price in prices]
    return given


@pytest.mark.parametrize("crash_rate", [0.0, 0.1], ids=["straight", "crashing"])
@pytest.mark.parametrize("partitions", [1, 4], ids=["one partition", "four partitions"])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_bids_are_counted_by_the_time_on_the_wall(
    group: int, partitions: int, crash_rate: float
) -> None:
    """q12. A second of bids comes in each 7 seconds, so that windows of ten begin and end in the middle of it."""
    driver = FlowDriver(
        {"out": query("q12", 0)}, partitions=partitions, seed=group, crash_rate=crash_rate
    )
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE arrived (bidder, now_ms)")
    for begin in range(0, EVENTS, RATE):
        some = events(group)[begin : begin + RATE]
        for partition in range(partitions):
            its = [event for event in some if _seller(event) % partitions == partition]
            driver.append("events", its, partition=partition, batch=20)
        driver.run()
        bids = [(event.bidder, driver.now_ms) for event in some if isinstance(event, Bid)]
        database.executemany("INSERT INTO arrived VALUES (?, ?)", bids)
        driver.advance("7s")
    driver.advance("10s")

    wanted = database.execute(
        "SELECT bidder, COUNT(*), now_ms / 10000 * 10000 AS start, now_ms / 10000 * 10000 + 10000 FROM arrived GROUP BY bidder, start"
    ).fetchall()
    database.close()
    assert sorted(driver.given("out")) == sorted(wanted)
    assert len({row[2] for row in wanted}) == 21
    assert (driver.crashes > 0) == (crash_rate > 0)


def _seller(event: Event) -> int:
    """Who an event is split by."""
    if isinstance(event, Bid):
        return event.bidder
    return event.seller if isinstance(event, Auction) else event.id


@pytest.mark.parametrize("crash_rate", [0.0, 0.1], ids=["straight", "crashing"])
@pytest.mark.parametrize("partitions", [1, 4], ids=["one partition", "four partitions"])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_files_by_day_and_minute_hold_what_sql_says(
    tmp_path: Path, group: int, partitions: int, crash_rate: float
) -> None:
    """q10. Ten events a second: the files are of five minutes."""
    log: Log[Bid] = Log("bids", of=Bid, key="bidder", partitions=partitions)
    files = q10_files(tmp_path, every="1s", max_records=150)
    described = stages([q10(source("bids", Bid)).to(files)], [log])
    staged = StagedRun(described, seed=group, crash_rate=crash_rate)
    bids = [one for one in Nexmark(10, group).events(EVENTS) if isinstance(one, Bid)]
    staged.append(log, bids)
    staged.run(quiet_ms=2000)

    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE bid (at_ms, line)")
    for bid in bids:
        database.execute("INSERT INTO bid VALUES (?, ?)", (bid.at_ms, _told(bid)))
    wanted = database.execute(
        "SELECT strftime('dt=%Y-%m-%d/hm=%H:%M', at_ms / 1000, 'unixepoch'), line FROM bid"
    ).fetchall()
    database.close()
    written = [
        (str(file.parent.relative_to(tmp_path)), _told(line))
        for file in tmp_path.rglob("*.jsonl")
        for line in map(msgspec.json.decode, file.read_text().splitlines())
    ]
    assert sorted(written) == sorted(wanted)
    assert not list(tmp_path.rglob("*.part"))
    assert len({folder for folder, _ in wanted}) == 5
    assert (staged.crashes > 0) == (crash_rate > 0)


def _told(bid: Bid | dict[str, Any]) -> str:
    """What a line of a file says of a bid."""
    fields = bid if isinstance(bid, dict) else msgspec.structs.asdict(bid)
    return repr([fields[name] for name in ("auction", "bidder", "price", "at_ms", "extra")])


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
