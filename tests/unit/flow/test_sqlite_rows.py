"""Rows are written by few statements, whatever their number, and are those that were given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.flow.sqlite_rows import insert_outbox, insert_state, write_state

Rows = dict[tuple[str, bytes], bytes]


@contextmanager
def opened(most_parameters: int | None = None) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute(
            "CREATE TABLE state (space TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (space, key)) WITHOUT ROWID"
        )
        db.execute("CREATE TABLE outbox (number INTEGER PRIMARY KEY, message BLOB NOT NULL)")
        if most_parameters is not None:
            db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, most_parameters)
        yield db


def rows_in(db: sqlite3.Connection) -> Rows:
    rows = db.execute("SELECT space, key, value FROM state")
    return {(space, key): value for space, key, value in rows}


KEYS = st.integers(0, 40).map(lambda number: b"%d" % number)
CHANGES = st.dictionaries(
    st.sampled_from(["windows", "timers"]),
    st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=40),
)


@given(st.lists(CHANGES, max_size=4), st.sampled_from([4, 10, 50, None]))
def test_what_is_written_is_there_and_what_is_gone_is_not(
    commits: list[dict[str, dict[bytes, bytes | None]]], most_parameters: int | None
) -> None:
    expected: Rows = {}
    with opened(most_parameters) as db:
        for changes in commits:
            write_state(db, changes)
            for space, items in changes.items():
                for key, value in items.items():
                    expected.pop((space, key), None)
                    if value is not None:
                        expected[space, key] = value
        assert rows_in(db) == expected


@pytest.mark.parametrize("number", [1, 2, 3, 900, 1000, 1024, 1025, 5000])
def test_statements_are_few_and_of_few_texts(number: int) -> None:
    texts: list[str] = []
    with opened() as db:
        db.set_trace_callback(texts.append)
        write_state(db, {"s": {b"%d" % n: b"v" for n in range(number)}})
        write_state(db, {"s": {b"%d" % n: None for n in range(number)}})
        db.set_trace_callback(None)
        assert rows_in(db) == {}
    assert len(texts) <= 2 * (number // 1024 + 5)


@given(st.integers(0, 300), st.sampled_from([5, None]))
def test_rows_that_are_new_are_written_once(number: int, most_parameters: int | None) -> None:
    rows = [("s", b"%d" % n, b"v%d" % n) for n in range(number)]
    with opened(most_parameters) as db:
        insert_state(db, rows)
        assert rows_in(db) == {(space, key): value for space, key, value in rows}


@given(st.lists(st.sampled_from([0, 10, 100_000]), max_size=30))
def test_messages_have_their_numbers_the_large_ones_too(sizes: list[int]) -> None:
    messages = [(number, b"%d" % number + b"x" * size) for number, size in enumerate(sizes, 7)]
    with opened() as db:
        insert_outbox(db, iter(messages))
        found = db.execute("SELECT number, message FROM outbox ORDER BY number").fetchall()
    assert found == messages
