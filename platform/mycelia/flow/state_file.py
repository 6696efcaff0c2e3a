"""What a partition of a flow has come to, in a file of SQLite: state, position, outbox, and whose it is; each commit is one transaction.

**The epoch is the fence.** Whoever becomes the partition's owner raises it; a commit compares it, inside of its transaction, and an owner that
another has followed commits nothing any more. So a file follows one owner at a time, whatever the broker and clocks do.

A file belongs to one partition, so partitions never wait for each other's locks. Calls block: they are made in a thread. What the engine reads is
read over a connection of its own, so that it does not wait for a commit that is on its way to the disk.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from mycelia.amqp import Message
from mycelia.errors import LeaseLost, StateIncompatible, StateUnavailable
from mycelia.flow.outbox_numbers import OutboxNumbers
from mycelia.flow.sqlite_rows import insert_outbox, write_state
from mycelia.logs.position import LogPosition

__all__ = [
    "FlowCheckpoint",
    "OutboxFront",
    "SavedState",
    "StateCommit",
    "StateFile",
    "copy_state_file",
]

FORMAT: Final = 1

LOCK_TIMEOUT: Final = 5.0
"""Seconds that a lock of another process is waited for. A former owner that was stopped in the middle of a commit holds one."""

_KEYS_AT_ONCE: Final = 500
"""Of one question; SQLite takes at least 999 parameters."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS owner (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS checkpoint (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS state (space TEXT, key BLOB, value BLOB NOT NULL, PRIMARY KEY (space, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY, message BLOB NOT NULL);
"""

_encode = msgspec.msgpack.Encoder().encode


class FlowCheckpoint(msgspec.Struct, kw_only=True):
    """What is kept beside the state itself."""

    generation: str
    """Made with the file: a flow that begins anew gives other ids than before."""
    positions: dict[str, LogPosition] = {}
    """By source: everything before it has been taken. Of one that is not here, nothing has."""
    position: LogPosition | None = None
    """Of the only source, as it was kept before there could be several."""
    sequences: dict[str, int] = {}
    """The next sequence for each partition of each log that the flow appends to."""

    def positions_of(self, first: str) -> dict[str, LogPosition]:
        """`positions`; `position` as that of the first source, where it was kept so."""
        if self.position is not None and not self.positions:
            return {first: self.position}
        return self.positions


class StateCommit(NamedTuple):
    """What one commit writes; a place for state takes all of it, or nothing."""

    changes: Mapping[str, Mapping[bytes, bytes | None]]
    """Of each space the keys with their new bytes, None for those that are gone."""
    positions: Mapping[str, LogPosition]
    """Of all sources: see `FlowCheckpoint`."""
    sequences: Mapping[str, int] = {}
    """Of all logs: see `FlowCheckpoint`."""
    messages: Sequence[Message] = ()
    """What goes into the outbox, to be published."""

    def checkpoint(self, generation: str) -> FlowCheckpoint:
        """What is kept of it beside the state."""
        return FlowCheckpoint(
            generation=generation,
            positions=dict(self.positions),
            sequences=dict(self.sequences),
        )


class StateFile(OutboxNumbers):
    """The state of one partition, as an owner has it. A `StateStore`'s reader, for the engine.

    Args:
        path: the file; made if it is not there, in a directory that is.
        what: whose it is, for error texts.

    Raises:
        StateUnavailable: the file is locked, cannot be written, or is none of SQLite's.
        StateIncompatible: a later version has written it.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__()
        self.path = path
        self.where = str(path)
        """Its place, for people."""
        self._what = what
        self.epoch = 0
        """This owner's; 0 before `claim()`."""
        self.checkpoint = FlowCheckpoint(generation="")
        self._reading: sqlite3.Connection | None = None
        """Made when something is read."""
        with self._told():
            self._db = self._connected()
        try:
            with self._told():
                self._prepare()
            self._file = _identity(path)
        except BaseException:
            self._db.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        # The thread is another one each time; there is never more than one at once that writes, and one that reads.
        return sqlite3.connect(
            self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
        )

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        # Each commit is on the disk before its outputs leave: with NORMAL a power cut could take back what others have seen.
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise StateIncompatible(
                f"{self._what}: the state file {self.path} has format {version}, and this version of Mycelia knows {FORMAT}. "
                "Use the version that wrote it, or a newer one."
            )
        with self._transaction():
            for statement in _TABLES.strip().split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours, with the path and what to do."""
        try:
            yield
        except sqlite3.Error as exc:
            raise StateUnavailable(self._what, str(self.path), exc) from exc

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    # --- its owner -------------------------------------------------------------------------------

    def claim(self, epoch: int) -> list[tuple[int, Message]]:
        """Become the owner: nobody before commits any more. Returns the outbox: what may not have been published, with its numbers.

        Args:
            epoch: the lease's; the file's own is as great, and greater than that of any owner before.
        """
        db = self._db
        with self._told(), self._transaction():
            row = db.execute("SELECT epoch FROM owner").fetchone()
            self.epoch = max(epoch, 1 if row is None else row[0] + 1)
            db.execute("INSERT OR REPLACE INTO owner VALUES (1, ?)", [self.epoch])
            row = db.execute("SELECT body FROM checkpoint").fetchone()
            if row is None:
                self.checkpoint = FlowCheckpoint(generation=uuid.uuid4().hex[:12])
                db.execute("INSERT INTO checkpoint VALUES (1, ?)", [_encode(self.checkpoint)])
            else:
                self.checkpoint = msgspec.msgpack.decode(row[0], type=FlowCheckpoint)
            kept = db.execute("SELECT number, message FROM outbox ORDER BY number").fetchall()
        return self._found(kept)

    def commit(self, commit: StateCommit) -> list[tuple[int, Message]]:
        """All of it, or nothing; returns the messages with their numbers in the outbox.

        Raises:
            LeaseLost: the file has another owner by now; nothing was written.
            StateUnavailable: it cannot be written; nothing was.
        """
        db = self._db
        checkpoint = commit.checkpoint(self.checkpoint.generation)
        numbered = list(enumerate(commit.messages, self._next_number))
        self._check_file()
        with self._told(), self._transaction():
            (epoch,) = db.execute("SELECT epoch FROM owner").fetchone()
            if epoch != self.epoch:
                raise LeaseLost(
                    f"{self._what}: another owner has the state file {self.path} by now (its epoch is {epoch}, ours {self.epoch}). "
                    "Nothing was committed; the other one goes on from the last checkpoint."
                )
            write_state(db, commit.changes)
            db.execute("UPDATE checkpoint SET body = ?", [_encode(checkpoint)])
            db.execute("DELETE FROM outbox WHERE number <= ?", [self._sent])
            insert_outbox(db, [(number, _encode(one)) for number, one in numbered])
        self.checkpoint = checkpoint
        self._next_number += len(numbered)
        return numbered

    def _check_file(self) -> None:
        """
        Raises:
            StateUnavailable: what is open is not the file of that name any more. SQLite would go on writing where nobody finds it again.
        """
        if _identity(self.path) != self._file:
            raise StateUnavailable(
                self._what,
                self.where,
                "it was removed, or replaced by another, while it was in use; nothing was committed. Bring it back, go on from a savepoint, or "
                "reset the flow",
            )

    def forget_sent(self) -> None:
        """Delete now what has been published. After another owner has claimed the file it deletes nothing."""
        with self._told(), self._transaction():
            self._db.execute(
                "DELETE FROM outbox WHERE number <= ? AND (SELECT epoch FROM owner) = ?",
                [self._sent, self.epoch],
            )

    def begin_anew(
        self,
        checkpoint: FlowCheckpoint,
        state: Iterable[tuple[str, bytes, bytes]],
        outbox: Iterable[tuple[int, bytes]],
    ) -> None:
        """Have this in place of all that is there, in one transaction. Nobody who was an owner before commits any more.

        Args:
            state: space, key and value.
            outbox: numbers, and messages as they are kept.
        """
        db = self._db
        with self._told(), self._transaction():
            row = db.execute("SELECT epoch FROM owner").fetchone()
            db.execute(
                "INSERT OR REPLACE INTO owner VALUES (1, ?)", [1 if row is None else row[0] + 1]
            )
            for table in ("checkpoint", "state", "outbox"):
                db.execute(f"DELETE FROM {table}")
            db.execute("INSERT INTO checkpoint VALUES (1, ?)", [_encode(checkpoint)])
            db.executemany("INSERT INTO state VALUES (?, ?, ?)", state)
            db.executemany("INSERT INTO outbox VALUES (?, ?)", outbox)

    def leave_one_file(self) -> None:
        """Without the files of the journal beside it, to be moved about."""
        with self._told():
            self._db.execute("PRAGMA journal_mode = DELETE")

    def call_off(self) -> None:
        """It waits for no broker."""

    def close(self) -> None:
        """Idempotent."""
        if self._reading is not None:
            self._reading.close()
        self._db.close()

    # --- what the engine reads -------------------------------------------------------------------

    def _reader(self) -> sqlite3.Connection:
        if self._reading is None:
            self._reading = self._connected()
        return self._reading

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        with self._told():
            db = self._reader()
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[at : at + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(
                    db.execute(
                        f"SELECT key, value FROM state WHERE space = ? AND key IN ({marks})",
                        [space, *some],
                    )
                )
        return [found.get(key) for key in keys]

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        with self._told():
            rows = self._reader().execute(
                "SELECT key, value FROM state WHERE space = ? LIMIT ?",
                [space, -1 if most is None else most],
            )
            return rows.fetchall()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file that is; None if there is none."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_dev, told.st_ino


class SavedState:
    """A copy of a partition's state, read: `copy_state_file()`, or one of a savepoint.

    Raises:
        StateUnavailable: it cannot be read.
        StateIncompatible: a later version has written it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            self._db = sqlite3.connect(
                f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, check_same_thread=False
            )
            try:
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version > FORMAT:
                    raise StateIncompatible(
                        f"{path} has format {version}, and this version of Mycelia knows {FORMAT}. Use the version that wrote it, or a newer one."
                    )
                row = self._db.execute("SELECT body FROM checkpoint").fetchone()
            except BaseException:
                self._db.close()
                raise
        self.checkpoint = (
            FlowCheckpoint(generation="")
            if row is None
            else msgspec.msgpack.decode(row[0], type=FlowCheckpoint)
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StateUnavailable("a copy of a state", str(self._path), exc) from exc

    def state(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Space, key and value of all that is there."""
        with self._told():
            yield from self._db.execute("SELECT space, key, value FROM state")

    def outbox(self) -> Iterator[tuple[int, bytes]]:
        """Numbers, and messages as they are kept."""
        with self._told():
            yield from self._db.execute("SELECT number, message FROM outbox ORDER BY number")

    def close(self) -> None:
        self._db.close()


class OutboxFront:
    """Puts messages before all that lies in the outbox of a copied state, in their order; `close()` writes them down.

    Raises:
        StateUnavailable: the copy cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        with self._told():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._db.execute("BEGIN")
                self._db.execute(
                    "CREATE TEMP TABLE behind AS SELECT number, message FROM outbox ORDER BY number"
                )
                self._db.execute("DELETE FROM outbox")
            except BaseException:
                self._db.close()
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StateUnavailable("a copy of a state", str(self._path), exc) from exc

    def put(self, messages: Sequence[Message]) -> None:
        numbered = enumerate(messages, self.count + 1)
        with self._told():
            self._db.executemany(
                "INSERT INTO outbox VALUES (?, ?)", [(n, _encode(one)) for n, one in numbered]
            )
        self.count += len(messages)

    def close(self) -> None:
        """Write it down."""
        with self._told(), closing(self._db) as db:
            db.execute(
                "INSERT INTO outbox SELECT ? + row_number() OVER (ORDER BY number), message FROM behind",
                [self.count],
            )
            db.execute("COMMIT")

    def give_up(self) -> None:
        """Leave the copy as it was. Idempotent."""
        self._db.close()


def copy_state_file(path: Path, to: Path, what: str) -> None:
    """Copy a state as of its last commit into a file that is not there yet. Its owner may commit meanwhile, and waits for nothing.

    Raises:
        StateUnavailable: it cannot be read, or the copy not be written.
    """
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as of,
            closing(sqlite3.connect(to)) as copy,
        ):
            of.backup(copy)  # in one step: of one commit
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, to be moved about
    except sqlite3.Error as exc:
        raise StateUnavailable(what, f"{path}, to {to},", exc) from exc
