"""What a stage asks of the state store of one of its partitions, wherever that is. `StateFile` is one such store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from mycelia.amqp import Message
from mycelia.flow.state import StoreReader
from mycelia.flow.state_file import FlowCheckpoint, StateCommit

__all__ = ["OpensState", "PartitionState", "StatePlace"]


class StatePlace(NamedTuple):
    """Whose state it is."""

    source: str
    """The first source of the stage: with the group, what its leases are called by."""
    group: str
    """The flow."""
    stage: str
    partition: int
    told: int | None = None
    """How far the group has come, as the lease says: the sum of the offsets. `None`: it says nothing."""

    def __str__(self) -> str:
        stage = "" if self.stage == self.source else f', stage "{self.stage}"'
        return f'flow "{self.group}"{stage}, partition {self.partition}'


class PartitionState(StoreReader, Protocol):
    """The state of one partition, as an owner has it. Calls block; they are made in a thread, one at a time.

    Attributes:
        where: its place, for people.
        epoch: this owner's; 0 before `claim()`.
        checkpoint: as of the last commit, or of `claim()`.
    """

    where: str
    epoch: int
    checkpoint: FlowCheckpoint

    def claim(self, epoch: int) -> list[tuple[int, Message]]:
        """Become the owner: nobody before commits any more. Returns the outbox: what may not have been published, with its numbers.

        Args:
            epoch: the lease's; its own is as great, and greater than that of any owner before.
        """

    def commit(self, commit: StateCommit) -> list[tuple[int, Message]]:
        """All of it, or nothing; returns the messages with their numbers in the outbox.

        Raises:
            LeaseLost: it has another owner by now; nothing was written.
            StateUnavailable: it cannot be written; nothing was.
        """

    def sent(self, number: int) -> None:
        """The outbox has been published up to this number. It is deleted with the next commit: till then it may be published again."""

    def forget_sent(self) -> None:
        """Delete now what has been published. After another owner has claimed it, it deletes nothing."""

    def scan(self, space: str, most: int | None = None) -> Iterable[tuple[bytes, bytes]]: ...

    def begin_anew(
        self,
        checkpoint: FlowCheckpoint,
        state: Iterable[tuple[str, bytes, bytes]],
        outbox: Iterable[tuple[int, bytes]],
    ) -> None:
        """Have this in place of all that is there; see `StateFile`."""

    def call_off(self) -> None:
        """From any thread: no broker is waited for any more. What waits for one raises `BrokerUnavailable`; whether a commit that did has been
        made, the next `claim()`, of another state, knows."""

    def close(self) -> None:
        """Idempotent."""


class OpensState(Protocol):
    """Opens the state of a partition; in a thread."""

    def __call__(self, place: StatePlace) -> PartitionState: ...
