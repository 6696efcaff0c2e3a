"""Many rows by few statements of SQLite.

A statement gives the interpreter's lock away while it runs, and then waits for it: as long as another thread computes, up to
`sys.getswitchinterval()` each time (5 ms by default), however little the statement had to do. A commit is written beside the engine, which does
nothing but compute; so what counts is how many statements there are, and not how many rows. `executemany()` is a statement a row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

__all__ = ["insert_outbox", "insert_state", "write_state"]

_MOST_ROWS: Final = 1024
_LARGE_BYTES: Final = 64 * 1024
"""A message from which on it goes alone: SQLite copies what a statement is given."""


def write_state(
    db: sqlite3.Connection, changes: Mapping[str, Mapping[bytes, bytes | None]]
) -> None:
    """Put the keys of all spaces into the table `state`, and take those away that are gone."""
    kept = [
        part
        for space, items in changes.items()
        for key, value in items.items()
        if value is not None
        for part in (space, key, value)
    ]
    _execute(db, _upsert, 3, kept, repeats=True)
    for space, items in changes.items():
        gone = [key for key, value in items.items() if value is None]
        _execute(db, _delete, 1, gone, [space], repeats=True)


def insert_state(db: sqlite3.Connection, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
    """Put rows into the table `state` that are not there yet."""
    _execute(db, _insert_state, 3, [part for row in rows for part in row])


def insert_outbox(db: sqlite3.Connection, rows: Iterable[tuple[int, bytes]]) -> None:
    """Put messages with their numbers into the table `outbox`."""
    small: list[Any] = []
    for row in rows:
        if len(row[1]) < _LARGE_BYTES:
            small += row
        else:
            db.execute(_insert_outbox(1), row)
    _execute(db, _insert_outbox, 2, small)


def _execute(
    db: sqlite3.Connection,
    statement: Callable[[int], str],
    width: int,
    parts: list[Any],
    before: Sequence[Any] = (),
    *,
    repeats: bool = False,
) -> None:
    """Execute the statement of some rows at once until all have been written.

    The rows of a statement are a power of two: there are few texts, and SQLite keeps what it has made of them.

    Args:
        width: parts of a row.
        before: what the statement is given before the rows.
        repeats: whether the last row may be written more than once, so that fewer statements do.
    """
    most = min(_MOST_ROWS, db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // (width + 1))
    at, end = 0, len(parts)
    while at < end:
        left = (end - at) // width
        rows = min(_power_below(left), _power_below(most))
        if repeats and rows < left <= 2 * rows <= min(1.25 * left, most):
            rows *= 2
        some = parts[at : at + rows * width]
        if rows > left:
            some += some[-width:] * (rows - left)
        db.execute(statement(rows), [*before, *some])
        at += rows * width


def _power_below(number: int) -> int:
    """The greatest power of two that is not above it."""
    return 1 << (number.bit_length() - 1)


@lru_cache
def _upsert(rows: int) -> str:
    values = ", ".join(["(?, ?, ?)"] * rows)
    return f"INSERT INTO state VALUES {values} ON CONFLICT (space, key) DO UPDATE SET value = excluded.value"


@lru_cache
def _delete(rows: int) -> str:
    return f"DELETE FROM state WHERE space = ? AND key IN ({', '.join('?' * rows)})"


@lru_cache
def _insert_state(rows: int) -> str:
    return f"INSERT INTO state VALUES {', '.join(['(?, ?, ?)'] * rows)}"


@lru_cache
def _insert_outbox(rows: int) -> str:
    return f"INSERT INTO outbox VALUES {', '.join(['(?, ?)'] * rows)}"
