"""The numbers of a partition's outbox, as its owner counts them: the same wherever the state is kept."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mycelia.amqp import Message

__all__ = ["OutboxNumbers"]

_decode = msgspec.msgpack.Decoder(Message).decode


class OutboxNumbers:
    """A part of each `PartitionState`."""

    def __init__(self) -> None:
        self._next_number = 1
        self._sent = 0
        """The last message of the outbox that has been published, and is to go."""

    def _found(self, kept: Sequence[tuple[int, bytes]]) -> list[tuple[int, Message]]:
        """The messages that an owner before has left, with their numbers, in order; ours are counted on from there."""
        if kept:
            self._next_number = kept[-1][0] + 1
        return [(number, _decode(data)) for number, data in kept]

    def sent(self, number: int) -> None:
        """The outbox has been published up to this number. It is deleted with the next commit: till then it may be published again."""
        self._sent = max(self._sent, number)
