"""Whose a partition is in a group, and how far the group has come there, as the messages of one queue say it. Pure.

The queue has a single active consumer: the **owner** of the partition. Its messages are entries:

    claim   who wrote it would like to be the owner
    at      a checkpoint: the group has handled everything before `position`; with the `epoch` of the owner who says so
    leave   who wrote it takes the partition: another who has it is to leave it

Whoever is given entries keeps the greatest checkpoint (by epoch, then number) unacknowledged, and acknowledges the rest; so it comes
to the next owner when the broker takes it back from this one. A consumer is the owner when its own claim has come back to it: the
queue is in order, so it has then seen every checkpoint of those before. Its first act is a checkpoint with the next epoch.

**The epoch is the fence.** A former owner that was paused, wakes up late and still writes a checkpoint writes it with its own, lower epoch:
whoever reads it drops it. So the position of a partition never follows two owners.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from mycelia.logs.position import LogPosition

__all__ = ["LeaseEntry", "LeaseRegister", "LeaseVerdict", "read_lease_entry"]


class LeaseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the queue, as JSON."""

    kind: Literal["claim", "at", "leave"]
    claim: str = ""
    """Of a claim: an id that no other has. Of who takes it, its claim's."""
    epoch: int = 0
    number: int = 0
    """Counts the checkpoints of an epoch."""
    position: LogPosition | None = None
    """`None`: nothing has been handled, and where to begin is the reader's to say."""
    owner: str = ""
    """Who wrote it, for whoever looks."""


def read_lease_entry(body: bytes) -> LeaseEntry | None:
    """The entry of a message; `None` if it is none."""
    try:
        return msgspec.json.decode(body, type=LeaseEntry)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


class LeaseVerdict(Enum):
    """What becomes of an entry that was delivered."""

    DROP = "drop"
    """Acknowledge it: it says nothing new."""
    KEEP = "keep"
    """Keep it unacknowledged, and acknowledge what was kept before."""
    OWNED = "owned"
    """As `DROP`, and from here on the partition is this consumer's."""
    FENCED = "fenced"
    """As `KEEP`, and the partition is another's: it writes with a higher epoch."""
    TAKEN = "taken"
    """As `DROP`, and the partition is to be left: another takes it."""


class LeaseRegister:
    """What one consumer of the queue knows."""

    def __init__(self, claim: str) -> None:
        self._claim = claim
        self.epoch = 0
        """This consumer's; 0 while the partition is not its own."""
        self.latest: LeaseEntry | None = None
        """The greatest checkpoint that has been seen."""
        self._number = 0

    @property
    def position(self) -> LogPosition | None:
        """How far the group has come."""
        return None if self.latest is None else self.latest.position

    def read(self, entry: LeaseEntry) -> LeaseVerdict:
        """Take note of an entry."""
        if entry.kind == "claim":
            if entry.claim != self._claim or self.epoch:
                return LeaseVerdict.DROP
            self.epoch = 1 if self.latest is None else self.latest.epoch + 1
            return LeaseVerdict.OWNED
        if entry.kind == "leave":
            if entry.claim == self._claim or not self.epoch:
                return LeaseVerdict.DROP
            self.epoch = 0
            return LeaseVerdict.TAKEN
        if self.epoch and entry.epoch > self.epoch:
            self.latest = entry
            self.epoch = 0
            return LeaseVerdict.FENCED
        if self.epoch and entry.epoch < self.epoch:
            return LeaseVerdict.DROP
        latest = self.latest
        if latest is not None and (entry.epoch, entry.number) <= (latest.epoch, latest.number):
            return LeaseVerdict.DROP
        self.latest = entry
        return LeaseVerdict.KEEP

    def next_checkpoint(self, position: LogPosition | None, owner: str) -> LeaseEntry:
        """The next entry of this owner."""
        assert self.epoch
        self._number += 1
        return LeaseEntry(
            kind="at", epoch=self.epoch, number=self._number, position=position, owner=owner
        )

    def lost(self) -> None:
        """The partition is this consumer's no more."""
        self.epoch = 0
