"""What lies in the changelog of a partition's state, and which of it is followed. Pure.

A changelog is a stream. Its entries have their kind and these fields in the headers of a message, and bytes as its body:

| kind | says | body |
|---|---|---|
| `look` | somebody looks where the log ends; by `claim`, an id that no other has | |
| `claim` | from here on the partition is of `claim`, if no claim before has an epoch as high | |
| `commit` | the owner's commit of this `number`; cut into `pieces` | `LoggedCommit`, as msgpack |
| `anew` | a commit by which all state before is gone: it is what the snapshot holds | |
| `state` | of a snapshot, the rows of this `number`; cut into `pieces` | `SnapshotRows`, as msgpack |
| `end` | the snapshot is whole | `SnapshotEnd`, as msgpack |

`claim`, `commit` and `look` name the newest snapshot that is whole (`snapshot`, and `begin`, the offset behind the commit that it is as of): who has
nothing begins to read there. So does `anew`, whose snapshot counts only if `anew` itself is followed. Without any, the state of before the log's
first entry is none.

**The order of the stream is the fence.** Every reader goes through the same entries and follows the same of them (`ChangeRegister`): a commit is
followed if it is of the claim that was followed last, and the next of its number. What a former owner writes behind the claim of the next one is
passed over by all, and by itself: an owner takes its own commit for done when it has read it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from mycelia.errors import FlowError
from mycelia.flow.state_file import FlowCheckpoint

__all__ = [
    "Change",
    "ChangeHead",
    "ChangeMark",
    "ChangeRegister",
    "ChangelogGap",
    "LoggedCommit",
    "SnapshotEnd",
    "SnapshotReader",
    "SnapshotRows",
    "heads_of",
    "highest",
    "in_pieces",
    "read_head",
]

PIECE_BYTES: Final = 1024 * 1024
"""Of one message. RabbitMQ 4 takes 16 MiB where nobody has said otherwise; many who do say otherwise say less."""

ChangeKind = Literal["look", "claim", "commit", "anew", "state", "end"]


class ChangeHead(msgspec.Struct, frozen=True, kw_only=True):
    """The headers of an entry."""

    kind: ChangeKind
    claim: str
    """Whose it is."""
    epoch: int = 0
    """Of that claim; not of `look`."""
    number: int = 0
    """Of a commit, counted from 1 through all owners; of a snapshot's rows, from 0."""
    piece: int = 0
    pieces: int = 1
    begin: int = 0
    snapshot: str = ""


class LoggedCommit(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What one commit changes."""

    changes: dict[str, dict[bytes, bytes | None]]
    checkpoint: FlowCheckpoint
    sent: int
    """The outbox up to this number goes."""
    first: int
    """The number of the first of `messages`."""
    messages: list[bytes]
    """As the outbox keeps them."""


class SnapshotRows(msgspec.Struct, array_like=True, frozen=True):
    """Some of the rows of a state."""

    state: list[tuple[str, bytes, bytes]] = []
    outbox: list[tuple[int, bytes]] = []


class SnapshotEnd(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Of a snapshot that is whole."""

    batches: int
    """Of rows."""
    size_bytes: int
    epoch: int
    """This and the next two: what had been followed when it was begun."""
    claim: str
    number: int
    checkpoint: FlowCheckpoint
    next_number: int
    """Of the next message in the outbox."""


class ChangeMark(msgspec.Struct, frozen=True, kw_only=True):
    """How far somebody has followed a log; kept beside the state that came of it."""

    epoch: int = 0
    claim: str = ""
    number: int = 0
    offset: int = -1
    """Of the last entry that was followed."""
    begin: int = 0
    snapshot: str = ""
    """The newest that is whole; empty: none."""
    snapshot_bytes: int = 0
    since_bytes: int = 0
    """Behind `begin`, about."""

    @property
    def is_of_nothing(self) -> bool:
        """Whether no state came of the log so far."""
        return not self.number and not self.snapshot


class ChangelogGap(FlowError):
    """A commit is missing in the log."""

    def __init__(self, has: int, found: int) -> None:
        super().__init__(f"commit {found} comes behind commit {has}")


class Change(NamedTuple):
    """An entry that is followed."""

    head: ChangeHead
    body: bytes


def read_head(headers: Mapping[str, Any] | None) -> ChangeHead | None:
    """The head of an entry; `None` if the message is no entry."""
    try:
        head = msgspec.convert(headers or {}, ChangeHead)
    except (msgspec.ValidationError, TypeError):
        return None
    return head if 0 <= head.piece < head.pieces else None


def in_pieces(body: bytes, size: int | None = None) -> list[bytes]:
    """The body, cut so that each piece is at most `size` bytes, 1 MiB by default. Of an empty one it is one."""
    size = PIECE_BYTES if size is None else size
    return [body[at : at + size] for at in range(0, len(body), size)] or [b""]


class _Pieces:
    """Puts together what was cut. Pieces may come twice, as a whole run of them or one by one."""

    def __init__(self) -> None:
        self._have: list[bytes] = []

    def put(self, head: ChangeHead, body: bytes) -> bytes | None:
        """The whole, once its last piece is there. Behind a piece that is missing nothing is taken: then it never is."""
        if head.piece != len(self._have):
            return None
        self._have.append(body)
        if len(self._have) < head.pieces:
            return None
        have, self._have = self._have, []
        return have[0] if len(have) == 1 else b"".join(have)

    def clear(self) -> None:
        self._have.clear()


class ChangeRegister:
    """What one reader of a log knows.

    Args:
        mark: how far it has come.
    """

    def __init__(self, mark: ChangeMark) -> None:
        self.mark = mark
        self._pieces = _Pieces()

    def read(self, head: ChangeHead, body: bytes, offset: int) -> Change | None:
        """Take note of an entry. Returns it if it is followed, None if it is not.

        Raises:
            ChangelogGap: one before it is missing.
        """
        mark = self.mark
        size = len(body) + _HEAD_BYTES
        if head.kind == "claim":
            if head.epoch <= mark.epoch:
                return None
            self._pieces.clear()
            self._note(head, offset, size, epoch=head.epoch, claim=head.claim)
            return Change(head, body)
        if head.kind not in ("commit", "anew"):
            self.mark = msgspec.structs.replace(mark, since_bytes=mark.since_bytes + size)
            return None
        if head.claim != mark.claim or head.number <= mark.number:
            return None
        if head.number > mark.number + 1:
            raise ChangelogGap(mark.number, head.number)
        whole = self._pieces.put(head, body)
        if whole is None:
            self.mark = msgspec.structs.replace(mark, since_bytes=mark.since_bytes + size)
            return None
        self._note(head, offset, size, number=head.number)
        return Change(head, whole)

    def _note(self, head: ChangeHead, offset: int, size: int, **changed: Any) -> None:
        mark = self.mark
        if head.snapshot not in ("", mark.snapshot) and head.begin >= mark.begin:
            changed |= {"begin": head.begin, "snapshot": head.snapshot}
        since = mark.since_bytes + size
        self.mark = msgspec.structs.replace(mark, offset=offset, since_bytes=since, **changed)

    def snapshot_is_whole(self, begin: int, snapshot: str, size: int, since: int) -> None:
        """The owner knows it before it has told."""
        self.mark = msgspec.structs.replace(
            self.mark, begin=begin, snapshot=snapshot, snapshot_bytes=size, since_bytes=since
        )


_HEAD_BYTES: Final = 200
"""What a message takes beside its body, about."""


class SnapshotReader:
    """Takes the rows of one snapshot out of the entries of a log.

    Attributes:
        end: what was said behind the last of them; `None`: that has not come.
    """

    def __init__(self, snapshot: str) -> None:
        self.snapshot = snapshot
        self.end: SnapshotEnd | None = None
        self._pieces = _Pieces()
        self._next = 0

    def read(self, head: ChangeHead, body: bytes) -> SnapshotRows | None:
        """The rows that are whole by this entry, if it is the snapshot's."""
        if head.snapshot != self.snapshot or self.end is not None:
            return None
        is_end = head.kind == "end"
        if not is_end and (head.kind != "state" or head.number != self._next):
            return None
        whole = self._pieces.put(head, body)
        if whole is None:
            return None
        if is_end:
            end = msgspec.msgpack.decode(whole, type=SnapshotEnd)
            if end.batches == self._next:
                self.end = end
            return None
        self._next += 1
        return msgspec.msgpack.decode(whole, type=SnapshotRows)


def highest(heads: Iterable[ChangeHead]) -> ChangeMark:
    """Whose a log is and how far it has come, of one in which entries may be missing: for who puts something else in its place."""
    mark = ChangeMark()
    for head in heads:
        if head.kind == "claim" and head.epoch > mark.epoch:
            mark = msgspec.structs.replace(mark, epoch=head.epoch, claim=head.claim)
        elif head.kind in ("commit", "anew"):
            is_followed = head.epoch > mark.epoch or head.claim == mark.claim
            if is_followed and head.piece == head.pieces - 1 and head.number > mark.number:
                mark = ChangeMark(epoch=head.epoch, claim=head.claim, number=head.number)
    return mark


def heads_of(head: ChangeHead, body: bytes) -> Iterator[tuple[ChangeHead, bytes]]:
    """An entry as it is written: in pieces, each with its head."""
    pieces: Sequence[bytes] = in_pieces(body)
    if len(pieces) == 1:
        yield head, body
        return
    for piece, part in enumerate(pieces):
        yield msgspec.structs.replace(head, piece=piece, pieces=len(pieces)), part
