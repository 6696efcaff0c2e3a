"""Brings a state file to where its changelog ends: by what is missing behind what it has, or by the newest snapshot and all behind that.

**Which of the two counts**, where the file has state:

- The file's last entry is in the log: the file is good, and what lies behind that entry is read.
- It is not in the log, and the log has come further: the log counts, and the file is filled anew.
- The log has no state, or ends before the file does (a broker that lost its disk): the file counts, and is to become the log's by a snapshot.
- The file has been written without a log since, or before: nobody can say, and it is refused. Whoever knows removes one of the two.

Blocks; in a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from mycelia.errors import BrokerUnavailable, StateIncompatible, StateUnavailable
from mycelia.flow.changelog_format import (
    Change,
    ChangelogGap,
    ChangeMark,
    ChangeRegister,
    LoggedCommit,
    SnapshotEnd,
    SnapshotReader,
)
from mycelia.flow.changelog_stream import (
    ChangelogEnd,
    ChangelogReader,
    ChangelogStream,
    LoggedEntry,
    newest_snapshot,
)
from mycelia.flow.logged_file import LoggedFile
from mycelia.flow.state_file import FlowCheckpoint
from mycelia.log_event import event

__all__ = ["ChangelogReplay", "FromThread"]

log = logging.getLogger("mycelia.flow")

R = TypeVar("R")

_LOOK_EVERY: Final = 1.0
_CALLED_OFF: Final = "the broker is not waited for any more: the partition is left"
_AT_ONCE_BYTES: Final = 8 * 1024 * 1024
"""Of commits in one transaction of the file."""


class FromThread:
    """Has a coroutine run on a loop, and waits for it in another thread, until it is called off: then what runs is cancelled, and what would
    begin does not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._is_off = False

    def another(self) -> FromThread:
        """One for the same loop, called off for itself."""
        return FromThread(self._loop)

    def call_off(self) -> None:
        """From any thread. Idempotent."""
        with self._lock:
            self._is_off = True
            running = list(self._running)
        for future in running:
            future.cancel()

    def __call__(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """
        Raises:
            BrokerUnavailable: called off.
        """
        if not self._loop.is_running():
            coroutine.close()
            raise RuntimeError("the event loop has ended")
        with self._lock:
            if self._is_off:
                coroutine.close()
                raise BrokerUnavailable(_CALLED_OFF)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._running.add(future)
        try:
            return self._result_of(future)
        except concurrent.futures.CancelledError:
            raise BrokerUnavailable(_CALLED_OFF) from None
        finally:
            with self._lock:
                self._running.discard(future)

    def _result_of(self, future: concurrent.futures.Future[R]) -> R:
        while True:
            try:
                return future.result(_LOOK_EVERY)
            except TimeoutError:
                if future.done():
                    raise
                if not self._loop.is_running():
                    raise RuntimeError("the event loop has ended") from None


class ChangelogReplay:
    """
    Attributes:
        register: what has been read of the log.
        end: the offset up to which.
        file_counts: whether the file's state is to become the log's.
    """

    def __init__(
        self, stream: ChangelogStream, file: LoggedFile, run: FromThread, what: str
    ) -> None:
        self._stream = stream
        self._file = file
        self._run = run
        self._what = what
        self.register = ChangeRegister(ChangeMark())
        self.end = -1
        self.file_counts = False

    def catch_up(self) -> None:
        """
        Raises:
            StateUnavailable: the log is damaged, or does not begin where it is needed; or it cannot be said whether it or the file counts.
            LeaseLost: another process has this same file.
            LinkError: the broker does not answer.
        """
        try:
            end = self._run(self._stream.look())
            self.end = end.offset
            mark = self._file.mark()
            if mark is not None and mark.offset < end.offset:
                try:
                    if self._follow_behind(mark):
                        return
                except ChangelogGap:  # a snapshot behind it may stand for what is missing
                    mark = self._file.mark()
            self._begin_from_log(mark, end)
        except ChangelogGap as exc:
            raise self.unusable(str(exc)) from exc
        except msgspec.MsgspecError as exc:
            raise self.unusable(f"an entry cannot be read ({exc})") from exc

    def unusable(self, found: str) -> StateUnavailable:
        """The log cannot be followed; with the ways out."""
        return StateUnavailable(
            self._what,
            self._file.where,
            f'it cannot be brought up to date from its changelog, stream "{self._stream.name}": {found}. Start the instance whose directory has '
            "the newest state: it needs only what is behind that, and writes a new snapshot. Or go on from a savepoint, or reset the flow "
            "(mycelia flow reset)",
        )

    # --- from what is there ----------------------------------------------------------------------

    def _follow_behind(self, mark: ChangeMark) -> bool:
        """Go on behind what the file has; whether that is in the log."""
        with self.entries(mark.offset) as entries:
            found = next(entries)
            if not _is_of(found, mark):
                return False
            self.register = ChangeRegister(mark)
            self._follow(entries)
        return True

    def _begin_from_log(self, mark: ChangeMark | None, end: ChangelogEnd) -> None:
        snapshot = newest_snapshot(end.last)
        if snapshot is None:
            with self.entries("first") as entries:
                first = next(entries)
                snapshot = newest_snapshot(chain([first], entries))
            if snapshot is None and first.offset:
                raise self.unusable(
                    f"it begins at offset {first.offset}, without a snapshot of the state before that"
                )
        try:
            self._begin_from(snapshot, mark)
        except StateUnavailable:
            if snapshot is None or self._run(self._stream.first()):
                raise
            # The log has all there ever was, so no snapshot is needed.
            self._begin_from(None, mark)

    def _begin_from(self, snapshot: tuple[int, str] | None, mark: ChangeMark | None) -> None:
        if self._file.has_state():
            reached = self._reached(snapshot)
            if self._file_counts(mark, reached.mark):
                self.register, self.file_counts = reached, True
                return
        self._load(snapshot)
        with self.entries(self.register.mark.begin) as entries:
            self._follow(entries)

    def _file_counts(self, mark: ChangeMark | None, log_has: ChangeMark) -> bool:
        if log_has.is_of_nothing:
            return True
        if mark is None:
            raise StateUnavailable(
                self._what,
                self._file.where,
                f'it was written without its changelog, stream "{self._stream.name}", which has state as well (commit {log_has.number}, epoch '
                f"{log_has.epoch}). Nobody can say which of them is to count: move the file away to go on from the changelog, or delete the stream to "
                "go on from the file",
            )
        is_ahead = mark.epoch > log_has.epoch or (
            mark.claim == log_has.claim and mark.number > log_has.number
        )
        if is_ahead:
            log.warning(
                event(
                    "flow_changelog_behind",
                    stream=self._stream.name,
                    state=self._file.where,
                    commit=log_has.number,
                    has=mark.number,
                )
            )
        return is_ahead

    # --- reading ---------------------------------------------------------------------------------

    @contextmanager
    def reading(self, start: int | str) -> Iterator[ChangelogReader]:
        reader = ChangelogReader(self._stream.link, self._stream.name, start)
        try:
            self._run(reader.open())
            yield reader
        finally:
            self._run.another()(reader.aclose())  # also when called off

    @contextmanager
    def entries(self, start: int | str) -> Iterator[Iterator[LoggedEntry]]:
        """From an offset to where the log ended. The first is of that offset, or behind it if that is gone."""
        with self.reading(start) as reader:
            yield self._up_to_end(reader)

    def _up_to_end(self, reader: ChangelogReader) -> Iterator[LoggedEntry]:
        while True:
            for entry in self._run(reader.take()):
                if entry.head is None:
                    log.warning(
                        event(
                            "flow_changelog_entry_unreadable",
                            stream=self._stream.name,
                            offset=entry.offset,
                        )
                    )
                yield entry
                if entry.offset >= self.end:
                    return

    def _reached(self, snapshot: tuple[int, str] | None) -> ChangeRegister:
        """How far the log has come; nothing is written."""
        if snapshot is None:
            register = ChangeRegister(ChangeMark())
        else:
            register = ChangeRegister(_mark_of(snapshot, self._read_snapshot(snapshot, None)))
        with self.entries(register.mark.begin) as entries:
            for entry in entries:
                if entry.head is not None:
                    register.read(entry.head, entry.body, entry.offset)
        return register

    def _load(self, snapshot: tuple[int, str] | None, mark: ChangeMark | None = None) -> None:
        """Have the file hold what a snapshot holds; without one, nothing.

        Args:
            mark: how far the log has been followed with it; without it, to where the snapshot is of.
        """
        file = self._file
        file.begin_loading(file.owner_epoch())
        try:
            if snapshot is None:
                end = SnapshotEnd(
                    batches=0,
                    size_bytes=0,
                    epoch=0,
                    claim="",
                    number=0,
                    checkpoint=FlowCheckpoint(generation=""),
                    next_number=1,
                )
                of_snapshot = ChangeMark()
            else:
                end = self._read_snapshot(snapshot, file)
                of_snapshot = _mark_of(snapshot, end)
            if mark is None:
                self.register = ChangeRegister(of_snapshot)
                mark = of_snapshot
            file.end_loading(end, mark)
        except BaseException:
            file.stop_loading()
            raise

    def _read_snapshot(self, snapshot: tuple[int, str], into: LoggedFile | None) -> SnapshotEnd:
        begin, name = snapshot
        rows = SnapshotReader(name)
        is_first = True
        with self.entries(begin) as entries:
            for entry in entries:
                if is_first and entry.offset != begin:
                    raise self.unusable(
                        f"its last snapshot begins at offset {begin}, and the log at {entry.offset} now. What it keeps (mycelia.flows.changelog_bytes) "
                        "is too little for this state, or somebody has deleted of it"
                    )
                is_first = False
                if entry.head is None:
                    continue
                batch = rows.read(entry.head, entry.body)
                if batch is not None and into is not None:
                    into.load(batch)
                if rows.end is not None:
                    return rows.end
        raise self.unusable(f"its last snapshot, from offset {begin}, is not whole")

    def _follow(self, entries: Iterator[LoggedEntry]) -> None:
        commits: list[LoggedCommit] = []
        size = 0
        for entry in entries:
            change = self.read(entry)
            if change is None:
                continue
            if change.head.kind == "anew":
                commits, size = [], 0
                self._load((change.head.begin, change.head.snapshot), self.register.mark)
            elif change.head.kind == "commit":
                commits.append(self.commit_of(change))
                size += len(change.body)
                if size >= _AT_ONCE_BYTES:
                    self._file.follow(commits, self.register.mark)
                    commits, size = [], 0
        self._file.follow(commits, self.register.mark)

    def read(self, entry: LoggedEntry) -> Change | None:
        """Take note of an entry. Returns it if it is followed, None if it is not."""
        if entry.head is None:
            return None
        return self.register.read(entry.head, entry.body, entry.offset)

    def commit_of(self, change: Change) -> LoggedCommit:
        try:
            return msgspec.msgpack.decode(change.body, type=LoggedCommit)
        except msgspec.MsgspecError as exc:
            raise StateIncompatible(
                f'{self._what}: commit {change.head.number} in stream "{self._stream.name}" cannot be read ({exc}). Use the version of Mycelia '
                "that wrote it, or a newer one; or reset the flow."
            ) from exc


def _mark_of(snapshot: tuple[int, str], end: SnapshotEnd) -> ChangeMark:
    begin, name = snapshot
    return ChangeMark(
        epoch=end.epoch,
        claim=end.claim,
        number=end.number,
        offset=begin - 1,
        begin=begin,
        snapshot=name,
        snapshot_bytes=end.size_bytes,
    )


def _is_of(entry: LoggedEntry, mark: ChangeMark) -> bool:
    """Whether this is the entry that the mark is of."""
    head = entry.head
    if head is None or entry.offset != mark.offset or head.claim != mark.claim:
        return False
    return head.kind == "claim" or head.number == mark.number
