"""What a state file held at its last commit, read beside its owner: for questions. Calls block."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from mycelia.errors import StateUnavailable
from mycelia.flow.state_file import FlowCheckpoint

__all__ = ["CommittedState", "committed_checkpoint", "committed_state"]

LOCK_TIMEOUT = 1.0
"""Seconds that a lock is waited for. In WAL mode readers and the writer do not wait for each other; a recovery after a crash holds one."""


class CommittedState:
    """A `StoreReader` whose answers are all of one commit."""

    def __init__(self, db: sqlite3.Connection | None) -> None:
        self._db = db

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        if self._db is None:
            return [None] * len(keys)
        found = [
            self._db.execute(
                "SELECT value FROM state WHERE space = ? AND key = ?", [space, key]
            ).fetchone()
            for key in keys
        ]
        return [None if row is None else row[0] for row in found]

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        if self._db is None:
            return []
        return self._db.execute(
            "SELECT key, value FROM state WHERE space = ? LIMIT ?",
            [space, -1 if most is None else most],
        ).fetchall()

    def checkpoint(self) -> FlowCheckpoint | None:
        """That of the commit."""
        row = (
            None if self._db is None else self._db.execute("SELECT body FROM checkpoint").fetchone()
        )
        return None if row is None else msgspec.msgpack.decode(row[0], type=FlowCheckpoint)


@contextmanager
def committed_state(path: Path, what: str) -> Iterator[CommittedState]:
    """A partition's state as of its last commit; empty where nothing has been committed.

    Args:
        what: whose it is, for error texts.

    Raises:
        StateUnavailable: it cannot be read.
    """
    if not path.exists():
        yield CommittedState(None)
        return
    try:
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(
            sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
        ) as db:
            db.execute("BEGIN")  # one view of it, whatever is committed meanwhile
            (version,) = db.execute("PRAGMA user_version").fetchone()
            yield CommittedState(db if version else None)  # 0: its owner is just making it
    except sqlite3.Error as exc:
        raise StateUnavailable(what, str(path), exc) from exc


def committed_checkpoint(path: Path, what: str) -> FlowCheckpoint | None:
    """The checkpoint of a partition's last commit; None where there is none.

    Raises:
        StateUnavailable: it cannot be read.
    """
    try:
        with committed_state(path, what) as state:
            return state.checkpoint()
    except msgspec.DecodeError as exc:
        raise StateUnavailable(what, str(path), exc) from exc
