"""What an engine asks of a store is little: a table of SQLite does, and an engine goes on from it, through crashes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from mycelia.flow import Engine, FlowPlan, KeyedStream, collect, count, hopping, session, source
from mycelia.flow.state import KeyedState


class SqliteStore:
    """A `StateStore` of one table, as short as it can be."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS state (space TEXT, key BLOB, value BLOB, PRIMARY KEY (space, key)) WITHOUT ROWID"
        )
        self.reads = 0

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads += 1
        found: dict[bytes, bytes] = {}
        for at in range(0, len(keys), 500):
            some = keys[at : at + 500]
            found.update(
                self.db.execute(
                    f"SELECT key, value FROM state WHERE space = ? AND key IN ({','.join('?' * len(some))})",
                    [space, *some],
                )
            )
        return [found.get(key) for key in keys]

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        return self.db.execute(
            "SELECT key, value FROM state WHERE space = ? LIMIT ?",
            [space, -1 if most is None else most],
        ).fetchall()

    def write(self, changes: Mapping[str, Mapping[bytes, bytes | None]]) -> None:
        rows = [
            (space, key, value) for space, items in changes.items() for key, value in items.items()
        ]
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(
            "DELETE FROM state WHERE space = ? AND key = ?", [row[:2] for row in rows]
        )
        self.db.executemany(
            "INSERT INTO state VALUES (?, ?, ?)", [row for row in rows if row[2] is not None]
        )
        self.db.execute("COMMIT")


def keyed() -> KeyedStream[str, Any]:
    return (
        source("in", tuple)
        .event_time(lambda row: row[1], unit="ms", disorder=0.02)
        .key_by(lambda row: row[0])
    )


def plan() -> FlowPlan:
    rows = keyed()
    return FlowPlan(
        {
            "hopped": rows.window(hopping(0.05, every=0.01), lateness=0.01).aggregate(count()).port,
            "sessions": rows.window(session(0.005)).aggregate(collect()).port,
            "pairs": rows.join_interval(rows.filter(lambda row: row[2] % 2), after=0.01).port,
        }
    )


BATCHES = [
    [
        (f"k{chance.randrange(20)}", number * 20 + chance.randrange(30), chance.randrange(100))
        for _ in range(30)
    ]
    for number, chance in enumerate(map(Random, range(40)))
]


def given_by(path: Path | None, dies_after: set[int], keep: int = 10**6) -> list[Any]:
    """All that is given; a process that dies has written all but its last batch, which it reads again."""
    results: list[Any] = []

    def start() -> tuple[Engine, SqliteStore | None]:
        store = None if path is None else SqliteStore(path)
        return Engine(plan(), {"in": [0]}, store=store), store

    engine, store = start()
    for number, batch in enumerate(BATCHES):
        if number in dies_after:
            engine.feed("in", 0, list(batch), [0] * len(batch))
            assert store is not None
            store.db.close()
            engine, store = start()
        given = engine.feed("in", 0, list(batch), [0] * len(batch))
        if store is not None:
            store.write(engine.take_changes())
        results += [
            row for one in given for row in zip(one.ids(), one.times, one.values, strict=True)
        ]
    given = engine.end("in", 0)
    if store is not None:
        store.write(engine.take_changes())
        (left,) = store.db.execute(
            "SELECT COUNT(*) FROM state WHERE space NOT IN ('~engine', 'in~source', 'event_time-1')"
        ).fetchone()
        assert left == 0
        store.db.close()
    return results + [
        row for one in given for row in zip(one.ids(), one.times, one.values, strict=True)
    ]


def test_flow_over_a_table_gives_what_it_gives_in_memory(tmp_path: Path) -> None:
    in_memory = given_by(None, set())

    assert given_by(tmp_path / "a", set()) == in_memory
    assert given_by(tmp_path / "b", {3, 4, 17, 30, 39}) == in_memory
    assert len(in_memory) > 2000


def test_flow_with_more_keys_than_memory_gives_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """After each checkpoint the keys leave memory; they are read again, at most once an operator and batch."""
    in_memory = given_by(None, set())
    make = KeyedState.__init__
    monkeypatch.setattr(KeyedState, "__init__", lambda *args: make(*args, keep=0))  # type: ignore[misc]

    assert given_by(tmp_path / "a", {5}) == in_memory
