"""How far one partition of a stage is ahead of the stages behind it: the bytes that it has written to the logs between and that they have not committed yet. Pure.

A reader's position in such a log says of each producer which batch came last (`LogPosition.seen`). So who writes knows to the byte what is still to
be taken of its own, whoever else writes to the log, and without asking the broker where that ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from mycelia.amqp import Message
from mycelia.logs.batch_format import producer_of

__all__ = ["UNKNOWN_BYTES", "Ahead", "Reader", "TakenOf"]

UNKNOWN_BYTES: Final = 512 * 1024
"""What a batch of a former owner counts for, as its size is not known: as much as a batch may have, so that the bound holds over any number of owners."""


class Reader(NamedTuple):
    """Who reads one partition of a log between stages."""

    stage: str
    log: str
    partition: int


TakenOf = Callable[[Reader, str], int | None]
"""Of a reader and a producer: the highest sequence that the reader has committed, -1 for none; None where that is not known."""


class _Waiting:
    """Batches of one producer in one partition of a log that have not been taken: sequence and size."""

    __slots__ = ("batches", "bytes")

    def __init__(self) -> None:
        self.batches: deque[tuple[int, int]] = deque()
        self.bytes = 0

    def put(self, sequence: int, size: int) -> None:
        self.batches.append((sequence, size))
        self.bytes += size

    def taken(self, up_to: int) -> None:
        while self.batches and self.batches[0][0] <= up_to:
            self.bytes -= self.batches.popleft()[1]


class Ahead:
    """What one owner of a partition of a stage has written, and what is still to be taken of it.

    Args:
        producer: of its batches.
        readers: of each log that it writes to, the stages that read it.
        sequences: the next sequence for each `log/partition`, as of the last commit.
        max_bytes: how much may be still to be taken. What one commit gives may be above it.
    """

    def __init__(
        self,
        producer: str,
        readers: Mapping[str, Iterable[str]],
        sequences: Mapping[str, int],
        max_bytes: int,
    ) -> None:
        self._producer = producer
        self._readers = {log: tuple(stages) for log, stages in readers.items()}
        self.max_bytes = max_bytes
        self._written: dict[tuple[str, int, str], _Waiting] = {}
        """By log, partition and producer."""
        self._before: dict[tuple[str, int], int] = {}
        """By log and partition: the first sequence of this owner, where it is not known whether all that former owners have written was taken."""
        for place, number in sequences.items():
            log, _, partition = place.rpartition("/")
            if log in self._readers and partition.isdecimal() and number:
                self._before[log, int(partition)] = number
        self.bytes = 0
        """That are still to be taken."""
        self.waits_for: dict[Reader, bool] = {}
        """Who has not taken all of it; and whether it is known how far they have come."""

    @property
    def is_known(self) -> bool:
        """Whether it is known how far all have come with what former owners have written."""
        return all(self.waits_for.values())

    @property
    def has_room(self) -> bool:
        """Whether more may be written."""
        return self.bytes < self.max_bytes and self.is_known

    @property
    def is_far(self) -> bool:
        """Whether it is time to look how far the others have come."""
        return self.bytes * 2 >= self.max_bytes or bool(self._before)

    def wrote(self, messages: Iterable[Message]) -> None:
        """These are in the logs between, or will be."""
        for message in messages:
            told = producer_of(message.properties.headers)
            if message.exchange not in self._readers or told is None:
                continue
            producer, sequence = told
            place = message.exchange, int(message.routing_key), producer
            waiting = self._written.setdefault(place, _Waiting())
            waiting.put(sequence, len(message.body))
            self.bytes += len(message.body)

    def look(self, taken_of: TakenOf) -> None:
        """See what has been taken by now."""
        self.bytes = 0
        self.waits_for = {}
        for place, waiting in list(self._written.items()):
            self._look_at(place, waiting, taken_of)
        for (log, partition), first in list(self._before.items()):
            self._look_before(log, partition, first, taken_of)

    def _look_at(self, place: tuple[str, int, str], waiting: _Waiting, taken_of: TakenOf) -> None:
        log, partition, producer = place
        taken = {reader: taken_of(reader, producer) for reader in self._of(log, partition)}
        known = {reader: -1 if up_to is None else up_to for reader, up_to in taken.items()}
        waiting.taken(min(known.values(), default=-1))
        if not waiting.batches:
            del self._written[place]
            return
        self.bytes += waiting.bytes
        last, _ = waiting.batches[-1]
        for reader, up_to in known.items():
            if up_to < last:
                self.waits_for[reader] = True

    def _look_before(self, log: str, partition: int, first: int, taken_of: TakenOf) -> None:
        taken = {reader: taken_of(reader, self._producer) for reader in self._of(log, partition)}
        known = [up_to for up_to in taken.values() if up_to is not None]
        if len(known) < len(taken):
            self.waits_for.update({one: False for one, up_to in taken.items() if up_to is None})
            return
        own = self._written.get((log, partition, self._producer))
        again = 0 if own is None else sum(sequence < first for sequence, _ in own.batches)
        missing = first - 1 - min(known) - again
        if missing > 0:
            self.bytes += missing * UNKNOWN_BYTES
            for reader in taken:
                self.waits_for.setdefault(reader, True)
        else:
            del self._before[log, partition]

    def _of(self, log: str, partition: int) -> list[Reader]:
        return [Reader(stage, log, partition) for stage in self._readers[log]]
