"""A state file that follows a changelog: what is written to it has been read in the log before, and how far that is stands beside it.

The mark is of the transaction of what was followed. It counts as long as nobody has claimed the file without a log: that raises the owner's
epoch above the mark's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from mycelia.amqp import Message
from mycelia.errors import LeaseLost
from mycelia.flow.changelog_format import (
    PIECE_BYTES,
    ChangeMark,
    LoggedCommit,
    SnapshotEnd,
    SnapshotRows,
)
from mycelia.flow.sqlite_rows import insert_outbox, insert_state, write_state
from mycelia.flow.state_file import FlowCheckpoint, StateFile

__all__ = ["LoggedFile", "SnapshotOfFile"]

_TABLE: Final = "CREATE TABLE IF NOT EXISTS changelog (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL)"
_ROW_BYTES: Final = 20

_encode = msgspec.msgpack.Encoder().encode


class LoggedFile(StateFile):
    """See `StateFile`."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self._seen: bytes | None = None
        """The mark as it was read or written last. Another one there has been written by another process."""
        self._written: bytes | None = None
        try:
            with self._told(), self._transaction():
                self._db.execute(_TABLE)
        except BaseException:
            self.close()
            raise

    # --- what is there ---------------------------------------------------------------------------

    def load_checkpoint(self) -> FlowCheckpoint | None:
        """As it is there; `None`: nobody has claimed the file yet."""
        with self._told():
            row = self._db.execute("SELECT body FROM checkpoint").fetchone()
        if row is None:
            return None
        self.checkpoint = msgspec.msgpack.decode(row[0], type=FlowCheckpoint)
        return self.checkpoint

    def owner_epoch(self) -> int:
        with self._told():
            row = self._db.execute("SELECT epoch FROM owner").fetchone()
        return 0 if row is None else int(row[0])

    def mark(self) -> ChangeMark | None:
        """How far the log has been followed; `None`: what is there did not come of a log, or not all of it."""
        with self._told():
            self._seen = self._kept_mark()
        if self._seen is None:
            return None
        mark = msgspec.msgpack.decode(self._seen, type=ChangeMark)
        return mark if mark.epoch == self.owner_epoch() else None

    def _kept_mark(self) -> bytes | None:
        row = self._db.execute("SELECT body FROM changelog").fetchone()
        return None if row is None else row[0]

    def has_state(self) -> bool:
        """Whether anything has been committed."""
        with self._told():
            if self._db.execute("SELECT 1 FROM state LIMIT 1").fetchone():
                return True
        checkpoint = self.load_checkpoint()
        return checkpoint is not None and bool(checkpoint.positions or checkpoint.position)

    def kept_outbox(self) -> list[tuple[int, Message]]:
        """What may not have been published, with its numbers. Numbers go on behind it."""
        with self._told():
            kept = self._db.execute("SELECT number, message FROM outbox ORDER BY number").fetchall()
        return self._found(kept)

    @property
    def next_number(self) -> int:
        """Of the next message in the outbox."""
        return self._next_number

    # --- what is followed ------------------------------------------------------------------------

    def follow(self, commits: Sequence[LoggedCommit], mark: ChangeMark) -> None:
        """Write what has been read in the log, in one transaction.

        Raises:
            LeaseLost: another process follows the log further, in this same file.
            StateUnavailable: it cannot be written; nothing was.
        """
        db = self._db
        self._check_file()
        with self._told(), self._transaction():
            self._check_owner(mark)
            for commit in commits:
                self._apply(commit)
            if commits:
                db.execute(
                    "INSERT OR REPLACE INTO checkpoint VALUES (1, ?)",
                    [_encode(commits[-1].checkpoint)],
                )
            self._write_mark(mark)
        self._seen = self._written
        if commits:
            last = commits[-1]
            self.checkpoint = last.checkpoint
            self._next_number = max(self._next_number, last.first + len(last.messages))
        self.epoch = mark.epoch

    def _check_owner(self, mark: ChangeMark) -> None:
        """
        Raises:
            LeaseLost: the file is of a later epoch, or follows another way.
        """
        if self.owner_epoch() > mark.epoch or self._kept_mark() != self._seen:
            raise LeaseLost(
                f"{self._what}: another owner has the state file {self.path} by now (our epoch is {mark.epoch}). "
                "The other one goes on from the last checkpoint."
            )

    def _apply(self, commit: LoggedCommit) -> None:
        db = self._db
        write_state(db, commit.changes)
        db.execute("DELETE FROM outbox WHERE number <= ?", [commit.sent])
        insert_outbox(db, enumerate(commit.messages, commit.first))

    def _write_mark(self, mark: ChangeMark) -> None:
        self._written = _encode(mark)
        self._db.execute("INSERT OR REPLACE INTO owner VALUES (1, ?)", [mark.epoch])
        self._db.execute("INSERT OR REPLACE INTO changelog VALUES (1, ?)", [self._written])

    def begin_loading(self, epoch: int) -> None:
        """Have a snapshot in place of all that is there: nothing of it is seen before `end_loading()`.

        Args:
            epoch: the file's, when it was looked at.

        Raises:
            LeaseLost: another process has claimed it since.
        """
        self._check_file()
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            if self.owner_epoch() != epoch or self._kept_mark() != self._seen:
                self.stop_loading()
                raise LeaseLost(
                    f"{self._what}: another owner has the state file {self.path} by now."
                )
            for table in ("checkpoint", "state", "outbox"):
                self._db.execute(f"DELETE FROM {table}")

    def load(self, rows: SnapshotRows) -> None:
        with self._told():
            insert_state(self._db, rows.state)
            insert_outbox(self._db, rows.outbox)

    def end_loading(self, end: SnapshotEnd, mark: ChangeMark) -> None:
        with self._told():
            self._db.execute("INSERT INTO checkpoint VALUES (1, ?)", [_encode(end.checkpoint)])
            self._write_mark(mark)
            self._db.execute("COMMIT")
        self._seen = self._written
        self.checkpoint = end.checkpoint
        self._next_number = end.next_number

    def stop_loading(self) -> None:
        """What was there before is there again. Idempotent."""
        with self._told():
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def forget_mark(self) -> None:
        """A copy belongs to no log."""
        with self._told():
            self._db.execute("DROP TABLE changelog")

    def snapshot(self) -> SnapshotOfFile:
        """What is there now, to be read while commits go on."""
        with self._told():
            return SnapshotOfFile(self.path, self.checkpoint, self._next_number)

    def size_bytes(self) -> int:
        with self._told():
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)


class SnapshotOfFile:
    """A state as of one commit, in batches of rows. Holds the file's journal for as long as it is open: it grows meanwhile."""

    def __init__(self, path: Path, checkpoint: FlowCheckpoint, next_number: int) -> None:
        self.checkpoint = checkpoint
        self.next_number = next_number
        self.batches = 0
        self.size_bytes = 0
        self._db = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._db.execute("BEGIN")
            # The view begins with the first question, which is asked now.
            self._rows = self._db.execute("SELECT space, key, value FROM state")
            self._first = self._rows.fetchone()
        except BaseException:
            self._db.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Encoded `SnapshotRows`, each of about as many bytes as a message has."""
        state: list[tuple[str, bytes, bytes]] = []
        size = 0
        row = self._first
        while row is not None:
            state.append(row)
            size += len(row[1]) + len(row[2]) + _ROW_BYTES
            if size >= _batch_bytes():
                yield self._batch(SnapshotRows(state))
                state, size = [], 0
            row = self._rows.fetchone()
        outbox: list[tuple[int, bytes]] = []
        for number, message in self._db.execute(
            "SELECT number, message FROM outbox ORDER BY number"
        ):
            outbox.append((number, message))
            size += len(message) + _ROW_BYTES
            if size >= _batch_bytes():
                yield self._batch(SnapshotRows(state, outbox))
                state, outbox, size = [], [], 0
        if state or outbox:
            yield self._batch(SnapshotRows(state, outbox))

    def _batch(self, rows: SnapshotRows) -> bytes:
        body = _encode(rows)
        self.batches += 1
        self.size_bytes += len(body)
        return body

    def close(self) -> None:
        """Idempotent."""
        with suppress(sqlite3.Error):
            self._db.close()


def _batch_bytes() -> int:
    return PIECE_BYTES // 2
