"""A partition's state with a changelog: each commit goes to a stream of the broker first, so that an owner on another machine can rebuild the file.

A commit is written to the log, **read back from it**, and then written to the file; only then its results leave. What has been read back in its
place is followed by everybody, and what another's claim stands before is followed by nobody, this owner included: see `changelog_format`.
Dying between any two of these steps loses nothing. What is in the log and not in the file is read by the next owner, wherever that is.

**Snapshots.** Once the commits since the last one take more than the state itself would, the state is written to the log as well: some of it with each
commit, from a view of the file as of the commit at which that began. When it is whole, commits name it, and who has nothing begins there.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Final

import msgspec

from mycelia.amqp import Message
from mycelia.errors import LeaseLost, LinkError, MessageTooLarge, StateUnavailable
from mycelia.flow.changelog_format import (
    PIECE_BYTES,
    ChangeHead,
    ChangelogGap,
    ChangeMark,
    ChangeRegister,
    LoggedCommit,
    SnapshotEnd,
    highest,
)
from mycelia.flow.changelog_replay import ChangelogReplay, FromThread
from mycelia.flow.changelog_stream import ChangelogReader, ChangelogStream, LoggedEntry
from mycelia.flow.logged_file import LoggedFile, SnapshotOfFile
from mycelia.flow.partition_state import StatePlace
from mycelia.flow.state_file import FlowCheckpoint, StateCommit
from mycelia.log_event import event

__all__ = ["LoggedState"]

log = logging.getLogger("mycelia.flow")

SNAPSHOT_AFTER: Final = 16 * 1024 * 1024
"""Bytes of commits at least, before a snapshot is made. What a new machine reads at most is about twice this, or three times its state."""

_encode = msgspec.msgpack.Encoder().encode

_Entry = tuple[ChangeHead, bytes]


class LoggedState:
    """A `PartitionState`.

    Args:
        retain_bytes: what the stream keeps.
    """

    def __init__(
        self,
        file: LoggedFile,
        stream: ChangelogStream,
        place: StatePlace,
        run: FromThread,
        retain_bytes: int,
    ) -> None:
        self.where = file.where
        self.epoch = 0
        self.checkpoint = FlowCheckpoint(generation="")
        self._file = file
        self._stream = stream
        self._place = place
        self._what = str(place)
        self._run = run.another()
        self._retain_bytes = retain_bytes
        self._replay = ChangelogReplay(stream, file, self._run, self._what)
        self._reader: ChangelogReader | None = None
        self._claim = ""
        self._is_spent = True
        """Whether nothing more may be written: not yet claimed, or it is not known what became of the last commit."""
        self._sent = self._told_sent = 0
        self._snapshot: _SnapshotUnderway | None = None
        self._wants_snapshot = False

    @property
    def _mark(self) -> ChangeMark:
        return self._replay.register.mark

    # --- its owner -------------------------------------------------------------------------------

    def claim(self, epoch: int) -> list[tuple[int, Message]]:
        """Become the owner, with the newest state there is.

        Raises:
            StateUnavailable: the log or the file cannot be used; says why, and the ways out.
            LeaseLost: another has become it meanwhile.
            LinkError: the broker does not answer.
        """
        file = self._file
        before = file.owner_epoch()
        self._run(self._stream.declare())
        self._replay.catch_up()
        file_counts = self._replay.file_counts
        if file_counts:
            self._check_told()
        commits = self._claim_log(max(epoch, before + 1))
        if file_counts and commits:
            raise self._lost()
        if not file_counts:
            file.follow(commits, self._mark)
        kept = file.load_checkpoint()
        if kept is None or not kept.generation:
            kept = FlowCheckpoint(generation=uuid.uuid4().hex[:12])
        self.checkpoint = kept
        outbox = file.kept_outbox()
        if file_counts:
            self._put_in_place()
        else:
            self._wants_snapshot = self._run(self._stream.first()) > self._mark.begin
        self._is_spent = False
        return outbox

    def _check_told(self) -> None:
        """
        Raises:
            StateUnavailable: the group has come further than this file, so it is not what the log should begin with.
        """
        told, kept = self._place.told, self._file.load_checkpoint()
        has = 0
        if kept is not None:
            positions = kept.positions.values() or [kept.position]
            has = sum(one.offset for one in positions if one is not None)
        if told is not None and has < told:
            raise StateUnavailable(
                self._what,
                self.where,
                f'its changelog, stream "{self._stream.name}", is empty, and the group has come to offset {told}, this file to {has}. Start the instance '
                "whose directory has the newest state first, go on from a savepoint, or reset the flow",
            )

    def _claim_log(self, epoch: int) -> list[LoggedCommit]:
        """Write a claim, and read on to it. Returns what whoever was the owner has committed meanwhile.

        Raises:
            LeaseLost: another's claim has come before.
        """
        replay = self._replay
        reader = ChangelogReader(self._stream.link, self._stream.name, replay.end + 1)
        self._run(reader.open())
        if self._reader is not None:
            self._run(self._reader.aclose())
        self._reader = reader
        self._claim = uuid.uuid4().hex
        epoch = max(epoch, self._mark.epoch + 1)
        self._run(self._stream.append(self._head("claim", {"epoch": epoch})))
        commits = []
        for entry in self._entries():
            change = replay.read(entry)
            if change is not None and change.head.kind == "commit":
                commits.append(replay.commit_of(change))
            if change is not None and change.head.kind == "anew" and not self._is_mine(entry):
                raise self._lost()
            if self._is_mine(entry) and entry.head is not None and entry.head.kind == "claim":
                replay.end = entry.offset
                break
        if self._mark.claim != self._claim:
            raise self._lost()
        self.epoch = epoch
        return commits

    def _is_mine(self, entry: LoggedEntry) -> bool:
        return entry.head is not None and entry.head.claim == self._claim

    def _entries(self) -> Iterator[LoggedEntry]:
        """As they come, without an end."""
        assert self._reader is not None
        while True:
            yield from self._run(self._reader.take())

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f'{self._what}: in its changelog, stream "{self._stream.name}", another owner has come before (our epoch is {self.epoch}, '
            f"there it is {self._mark.epoch}). What was committed here is followed by nobody; the other one goes on from the last checkpoint."
        )

    def _head(self, kind: str, fields: Mapping[str, int | str] | None = None) -> ChangeHead:
        """Of this owner's next entry; `fields` go before what it would say otherwise."""
        mark = self._mark
        told = {"epoch": self.epoch, "begin": mark.begin, "snapshot": mark.snapshot}
        return msgspec.convert(
            {"kind": kind, "claim": self._claim, **told, **(fields or {})}, ChangeHead
        )

    def commit(self, commit: StateCommit) -> list[tuple[int, Message]]:
        """All of it, or nothing; returns the messages with their numbers in the outbox.

        Raises:
            LeaseLost: it has another owner by now; nothing was committed.
            StateUnavailable: the file cannot be written, or the log has been damaged. It may have been committed all the same: the next `claim()`, of
                another state, knows.
            LinkError: the broker does not answer. It may have been committed all the same, as above.
        """
        checkpoint = commit.checkpoint(self.checkpoint.generation)
        first = self._file.next_number
        self._log(
            LoggedCommit(
                changes={space: dict(items) for space, items in commit.changes.items()},
                checkpoint=checkpoint,
                sent=self._sent,
                first=first,
                messages=[_encode(one) for one in commit.messages],
            )
        )
        return list(enumerate(commit.messages, first))

    def _log(self, logged: LoggedCommit) -> None:
        """Write a commit to the log, read it there, and write it to the file."""
        if self._is_spent:
            raise LeaseLost(f"{self._what}: it is not known what became of the last commit.")
        body = _encode(logged)
        entries = self._of_snapshot(max(PIECE_BYTES, 2 * len(body)))
        self._is_spent = True
        self._exchange([*entries, (self._head("commit", {"number": self._mark.number + 1}), body)])
        self._note_snapshot()
        self._file.follow([logged], self._mark)
        self._is_spent = False
        self.checkpoint = logged.checkpoint
        self._told_sent = logged.sent

    def _exchange(self, entries: Sequence[_Entry]) -> None:
        """Write entries, the last of them a commit, and read until that has come back.

        Raises:
            LeaseLost: another's claim has come before.
        """
        number = self._mark.number + 1
        try:
            self._run(self._written_and_read(entries, number))
        except ChangelogGap as exc:
            raise self._replay.unusable(str(exc)) from exc
        except MessageTooLarge as exc:
            raise StateUnavailable(
                self._what,
                self.where,
                f'the broker does not take what goes to its changelog, stream "{self._stream.name}", {PIECE_BYTES} bytes at a time ({exc}). Have it take '
                "twice as much (max_message_size)",
            ) from exc
        if self._mark.claim != self._claim:
            raise self._lost()

    async def _written_and_read(self, entries: Sequence[_Entry], number: int) -> None:
        assert self._reader is not None
        for head, body in entries:
            await self._stream.append(head, body)
        while self._mark.claim == self._claim and self._mark.number < number:
            for entry in await self._reader.take():
                self._replay.read(entry)

    def sent(self, number: int) -> None:
        self._sent = max(self._sent, number)

    def forget_sent(self) -> None:
        """Delete now what has been published, here and in the log. Where that is not possible, the next owner publishes it again."""
        if self._is_spent or self._sent <= self._told_sent:
            return
        with suppress(LeaseLost, LinkError):
            self._log(
                LoggedCommit(
                    changes={},
                    checkpoint=self.checkpoint,
                    sent=self._sent,
                    first=self._file.next_number,
                    messages=[],
                )
            )

    def call_off(self) -> None:
        """What waits for the broker raises `BrokerUnavailable` now, and all that would."""
        self._run.call_off()

    def close(self) -> None:
        """Idempotent."""
        self._is_spent = True
        self._end_snapshot()
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                with suppress(RuntimeError, LinkError):  # the loop has ended
                    self._run.another()(reader.aclose())  # also when called off
        finally:
            self._stream.forget()
            self._file.close()

    # --- snapshots -------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        since = self._mark.since_bytes
        if self._wants_snapshot:
            return True
        if since <= min(SNAPSHOT_AFTER, self._retain_bytes // 4):
            return False
        size = max(self._mark.snapshot_bytes, self._file.size_bytes())
        return since > min(2 * size, self._retain_bytes // 4)

    def _of_snapshot(self, budget: int) -> list[_Entry]:
        """The next entries of the snapshot that is under way, so many bytes of them; one is begun if it is due."""
        if self._snapshot is None:
            if not self._is_due():
                return []
            self._snapshot = _SnapshotUnderway(self._file.snapshot(), self._mark)
            self._wants_snapshot = False
        entries: list[_Entry] = []
        while budget > 0 and not self._snapshot.is_whole:
            kind, fields, body = self._snapshot.next()
            entries.append((self._head(kind, fields), body))
            budget -= len(body)
        return entries

    def _note_snapshot(self) -> None:
        """After a commit has been read back: with it all that lies before."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.is_whole:
            return
        size = snapshot.size_bytes
        since = self._mark.since_bytes - snapshot.of.since_bytes
        self._replay.register.snapshot_is_whole(snapshot.begin, snapshot.name, size, since)
        self._end_snapshot()
        if size * 6 > self._retain_bytes:
            log.warning(
                event(
                    "flow_changelog_small",
                    stream=self._stream.name,
                    snapshot_bytes=size,
                    retain_bytes=self._retain_bytes,
                )
            )

    def _end_snapshot(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.close()

    def _put_in_place(self) -> None:
        """Have the file's state be the log's: a snapshot of all of it, and the word that it counts. Only then the file is marked."""
        mark = self._mark
        number = mark.number + 1
        with closing(_SnapshotUnderway(self._file.snapshot(), mark, number)) as snapshot:
            while not snapshot.is_whole:
                kind, fields, body = snapshot.next()
                self._run(self._stream.append(self._head(kind, fields), body))
            head = self._head("anew", {"number": number, **snapshot.place})
            self._exchange([(head, b"")])
            since = self._mark.since_bytes - mark.since_bytes
            self._replay.register.snapshot_is_whole(
                snapshot.begin, snapshot.name, snapshot.size_bytes, since
            )
        self._file.follow([], self._mark)

    def begin_anew(
        self,
        checkpoint: FlowCheckpoint,
        state: Iterable[tuple[str, bytes, bytes]],
        outbox: Iterable[tuple[int, bytes]],
    ) -> None:
        """Have this in place of all that is there, in the file and in the log, whatever state that is in."""
        self._run(self._stream.declare())
        replay = self._replay
        replay.end = self._run(self._stream.look()).offset
        with replay.entries("first") as entries:
            found = highest(entry.head for entry in entries if entry.head is not None)
        replay.register = ChangeRegister(found)
        self._file.begin_anew(checkpoint, state, outbox)
        self._file.mark()
        self._claim_log(self._file.owner_epoch() + 1)
        self._file.load_checkpoint()
        self._file.kept_outbox()
        self._put_in_place()
        # Names the snapshot, for whoever looks at nothing but the end.
        self._claim_log(self.epoch + 1)

    # --- what the engine reads -------------------------------------------------------------------

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._file.read(space, keys)

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        return self._file.scan(space, most)


class _SnapshotUnderway:
    """A snapshot on its way into the log.

    Args:
        of: how far the log had been followed when it was begun.
        number: of the commit that it is as of; `of`'s, if nothing else is said.
    """

    def __init__(self, file: SnapshotOfFile, of: ChangeMark, number: int | None = None) -> None:
        self.name = uuid.uuid4().hex
        self.begin = of.offset + 1
        self.of = of
        self.is_whole = False
        """Whether the last of its entries has been handed out."""
        self._file = file
        self._bodies = iter(file)
        self._number = of.number if number is None else number

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    @property
    def place(self) -> dict[str, int | str]:
        """As heads say it."""
        return {"begin": self.begin, "snapshot": self.name}

    def next(self) -> tuple[str, dict[str, int | str], bytes]:
        """The next entry: its kind, what else its head says, and its body."""
        number = self._file.batches
        body = next(self._bodies, None)
        if body is not None:
            return "state", {"number": number, **self.place}, body
        self.is_whole = True
        end = SnapshotEnd(
            batches=self._file.batches,
            size_bytes=self._file.size_bytes,
            epoch=self.of.epoch,
            claim=self.of.claim,
            number=self._number,
            checkpoint=self._file.checkpoint,
            next_number=self._file.next_number,
        )
        return "end", self.place, _encode(end)

    def close(self) -> None:
        self._file.close()
